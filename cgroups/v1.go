package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// v1Tree is a cgroup on v1: a directory in each hierarchy.
type v1Tree struct {
	proc      string
	hugepages []string
	groups    []v1Group
}

type v1Group struct {
	root, dir   string
	controllers []string
}

// dir returns the directory of a controller, "" if it is not mounted.
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

// procs prefers the freezer, so that what is listed is what can be frozen; then what OCI runtimes put every
// container into.
func (t *v1Tree) procs() string {
	for _, controller := range []string{"freezer", "devices", "pids", "memory"} {
		if dir := t.dir(controller); dir != "" {
			return dir
		}
	}
	return t.groups[0].dir
}

func (t *v1Tree) existing() tree {
	e := &v1Tree{proc: t.proc, hugepages: t.hugepages}
	for _, g := range t.groups {
		if isDir(g.dir) {
			e.groups = append(e.groups, g)
		}
	}
	if len(e.groups) == 0 {
		return nil
	}
	return e
}

func (t *v1Tree) create() ([]string, error) {
	var made []string
	for _, g := range t.groups {
		isCpuset := slices.Contains(g.controllers, "cpuset")
		if !isCpuset {
			// Its parent is there most often.
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

// makeDir makes a directory and tells whether it was missing.
func makeDir(dir string) (bool, error) {
	err := unix.Mkdir(dir, 0o755)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot make directory %s: %w", dir, err)
	}
	return true, nil
}

func (t *v1Tree) stat() (any, error) {
	m := &v1.Metrics{}
	for _, stat := range []func(*v1.Metrics) error{
		t.statPids, t.statCPU, t.statMemory, t.statBlkio, t.statRdma, t.statHugetlb,
	} {
		if err := stat(m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (t *v1Tree) update(r *specs.LinuxResources) error {
	for key, value := range r.Unified {
		return fmt.Errorf("cannot set unified resource %s to %q: this host has cgroup v1: %w", key, value, errdefs.ErrNotImplemented)
	}
	for _, update := range []func(*specs.LinuxResources) error{
		t.setCPU, t.setCpuset, t.setMemory, t.setPids, t.setBlkio, t.setHugetlb, t.setRdma, t.setNetwork,
	} {
		if err := update(r); err != nil {
			return err
		}
	}
	return nil
}

func notMounted(resource, file, value string) error {
	return fmt.Errorf("cannot set %s to %q: no controller for %s is mounted: %w", resource, value, file, errdefs.ErrNotImplemented)
}
