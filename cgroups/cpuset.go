package cgroups

import (
	"fmt"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// inheritCpuset fills an empty cpuset from the parent's. A v1 cpuset is born without CPUs and memory nodes, and no
// process can join it like that (cgroup-v1/cpusets.rst); nor can a child be given what its parent does not have,
// which is why Create fills the parents as well.
func inheritCpuset(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own := reader{dir: dir}
		value, ok := own.text(file)
		if own.err != nil {
			return own.err
		}
		if !ok || strings.TrimSpace(value) != "" {
			continue
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

func (t *v1Tree) setCpuset(r *specs.LinuxResources) error {
	return setCpuset(t.dir("cpuset"), r)
}

func (t *v2Tree) setCpuset(r *specs.LinuxResources) error {
	return setCpuset(t.dir, r)
}

func setCpuset(dir string, r *specs.LinuxResources) error {
	if r.CPU == nil {
		return nil
	}
	if r.CPU.Cpus != "" {
		if err := set(dir, "cpuset cpus", "cpuset.cpus", r.CPU.Cpus); err != nil {
			return err
		}
	}
	if r.CPU.Mems != "" {
		return set(dir, "cpuset mems", "cpuset.mems", r.CPU.Mems)
	}
	return nil
}
