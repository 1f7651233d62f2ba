package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// v1Tree is a cgroup on v1: a directory in each hierarchy.
type v1Tree struct {
	groups []v1Group
	// unified is where the cgroup would be in the cgroup2 mount of a hybrid host; "" if there is no such mount, or if
	// the tree is that of a process.
	unified string
}

type v1Group struct {
	root, dir   string
	controllers []string
}

// dir returns the directory of a controller; "" if it is not mounted.
func (t *v1Tree) dir(controller string) string {
	for _, g := range t.groups {
		if slices.Contains(g.controllers, controller) {
			return g.dir
		}
	}
	return ""
}

func (t *v1Tree) dirs() []string {
	dirs := make([]string, len(t.groups))
	for i, g := range t.groups {
		dirs[i] = g.dir
	}
	return dirs
}

func (t *v1Tree) shadow() string { return t.unified }

// procs prefers the freezer, so that what is listed is what can be frozen; then controllers in which OCI runtimes put
// every container.
func (t *v1Tree) procs() string {
	for _, controller := range []string{"freezer", "devices", "pids", "memory"} {
		if dir := t.dir(controller); dir != "" {
			return dir
		}
	}
	return t.groups[0].dir
}

func (t *v1Tree) existing() tree {
	e := &v1Tree{}
	for _, g := range t.groups {
		if isDir(g.dir) {
			e.groups = append(e.groups, g)
		}
	}
	switch {
	case len(e.groups) > 0:
		e.unified = t.unified
		return e
	case t.unified != "" && isDir(t.unified):
		return t // all methods but Remove find it gone
	}
	return nil
}

func (t *v1Tree) create() ([]string, error) {
	var made []string
	for _, g := range t.groups {
		isCpuset := slices.Contains(g.controllers, "cpuset")
		if !isCpuset {
			// Its parent usually exists.
			isNew, err := makeDir(g.dir)
			if isNew {
				made = append(made, g.dir)
			}
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.ENOENT) {
				return made, err
			}
		}
		parent := g.root
		for dir := range ancestry(g.root, g.dir) {
			isNew, err := makeDir(dir)
			if isNew {
				made = append(made, dir)
			}
			if err == nil && isCpuset {
				err = inheritCpuset(parent, dir)
			}
			if err != nil {
				return made, err
			}
			parent = dir
		}
	}
	return made, nil
}

// ancestry yields the directories from below root down to dir.
func ancestry(root, dir string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		current := root
		for name := range strings.SplitSeq(strings.TrimPrefix(dir[len(root):], "/"), "/") {
			current = filepath.Join(current, name)
			if !yield(current) {
				return
			}
		}
	}
}

// makeDir makes a directory and reports whether it was missing.
func makeDir(dir string) (bool, error) {
	err := unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return true, nil
}

// inheritCpuset fills an empty cpuset from the parent's. A new v1 cpuset has neither CPUs nor memory nodes, and no
// process can join it in that state (cgroup-v1/cpusets.rst). Nor can it be given what its parent lacks, so Create fills
// the parents as well. The library does that too, but does not say which directories it made, so that an error could
// not undo them.
func inheritCpuset(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := readFile(filepath.Join(dir, file))
		if absent(err) || err == nil && strings.TrimSpace(value) != "" {
			continue
		}
		if err != nil {
			return err
		}
		inherited, err := readFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, file), strings.TrimSpace(inherited)); err != nil {
			return fmt.Errorf("cannot copy cpuset of %s: %w", parent, err)
		}
	}
	return nil
}
