package cgroups

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// v2Tree is a cgroup on v2: one directory.
type v2Tree struct {
	root, dir string
	hugepages []string
}

func (t *v2Tree) dirs() []string { return []string{t.dir} }

func (t *v2Tree) procs() string { return t.dir }

func (t *v2Tree) existing() tree {
	if !isDir(t.dir) {
		return nil
	}
	return t
}

// create makes the directories, and lets the parents hand their controllers down. The cgroup itself does not hand
// them down: one that does may hold no process ("No Internal Process Constraint", cgroup-v2.rst).
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

// enableControllers turns on, for the children of a cgroup, every controller that it has. One that refuses (a
// process is in the cgroup, a realtime process is on the host) is passed over: if a resource needs it, setting that
// resource fails and says so.
func enableControllers(dir string) error {
	r := reader{dir: dir}
	available, _ := r.text("cgroup.controllers")
	enabled, _ := r.text("cgroup.subtree_control")
	if r.err != nil {
		return fmt.Errorf("cannot enable controllers in %s: %w", dir, r.err)
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
	file := filepath.Join(dir, "cgroup.subtree_control")
	if writeFile(file, strings.Join(missing, " ")) == nil {
		return nil
	}
	// The kernel takes all or none.
	for _, controller := range missing {
		_ = writeFile(file, controller)
	}
	return nil
}

func (t *v2Tree) stat() (any, error) {
	m := &v2.Metrics{}
	for _, stat := range []func(*v2.Metrics) error{
		t.statPids, t.statCPU, t.statMemory, t.statIO, t.statRdma, t.statHugetlb,
	} {
		if err := stat(m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (t *v2Tree) update(r *specs.LinuxResources) error {
	for _, update := range []func(*specs.LinuxResources) error{
		t.setCPU, t.setCpuset, t.setMemory, t.setPids, t.setIO, t.setHugetlb, t.setRdma, t.setNetwork, t.setUnified,
	} {
		if err := update(r); err != nil {
			return err
		}
	}
	return nil
}

// setUnified writes the spec's own v2 values, in the order of their names. A value of several lines is one write per
// line, as files such as io.max want it.
func (t *v2Tree) setUnified(r *specs.LinuxResources) error {
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		if key == "" || strings.HasPrefix(key, ".") || strings.Contains(key, "/") {
			return fmt.Errorf("cannot set unified resource %q: it is not a file name: %w", key, errdefs.ErrInvalidArgument)
		}
		for line := range strings.Lines(r.Unified[key]) {
			if err := set(t.dir, "unified resource "+key, key, strings.TrimSuffix(line, "\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

// onV2 is the error for a resource that v2 has no file for.
func onV2(resource string, value any) error {
	return fmt.Errorf("cannot set %s to %v: cgroup v2 has no such file: %w", resource, value, errdefs.ErrNotImplemented)
}
