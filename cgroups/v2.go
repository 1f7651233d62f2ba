package cgroups

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// v2Tree is a cgroup on v2: one directory.
type v2Tree struct {
	root, dir string
}

func (t *v2Tree) dirs() []string { return []string{t.dir} }

func (t *v2Tree) shadow() string { return "" }

func (t *v2Tree) procs() string { return t.dir }

func (t *v2Tree) existing() tree {
	if !isDir(t.dir) {
		return nil
	}
	return t
}

// create makes the directories and has each parent hand its controllers down. The cgroup itself does not hand them
// down, as it could then hold no process ("No Internal Process Constraint", cgroup-v2.rst).
func (t *v2Tree) create() ([]string, error) {
	var made []string
	parent := t.root
	for dir := range ancestry(t.root, t.dir) {
		if err := enableControllers(parent); err != nil {
			return made, err
		}
		isNew, err := makeDir(dir)
		if isNew {
			made = append(made, dir)
		}
		if err != nil {
			return made, err
		}
		parent = dir
	}
	return made, nil
}

// enableControllers enables every controller of a cgroup for the children. One that the kernel refuses (a process is in
// the cgroup, a realtime process is on the host) is skipped: if a resource needs it, setting that resource fails and
// says so.
func enableControllers(dir string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	available, err := readFile(filepath.Join(dir, "cgroup.controllers"))
	enabled, err2 := readFile(file)
	for _, err := range []error{err, err2} {
		if err != nil && !absent(err) {
			return fmt.Errorf("cannot enable controllers in %s: %w", dir, err)
		}
	}
	has := strings.Fields(enabled)
	var missing []string
	for _, controller := range strings.Fields(available) {
		if !slices.Contains(has, controller) {
			missing = append(missing, "+"+controller)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if writeFile(file, strings.Join(missing, " ")) == nil {
		return nil
	}
	// The kernel takes all or none, so now each is tried alone.
	for _, controller := range missing {
		_ = writeFile(file, controller)
	}
	return nil
}
