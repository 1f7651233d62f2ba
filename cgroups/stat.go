package cgroups

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup1"
	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

// Metrics are what [Cgroup.Stat] measures: a *Metrics of github.com/containerd/cgroups/v3/cgroup1/stats on v1, of
// cgroup2/stats on v2.
type Metrics interface{ proto.Message }

// Stat measures the cgroup. The numbers are the library's, and so those of io.containerd.runc.v2: on v1, for example,
// I/O is without that of the cgroups below. What the kernel has no files for is left out. A cgroup that is gone is
// ErrNotFound.
func (c *Cgroup) Stat() (Metrics, error) {
	m, err := c.tree.stat()
	// A cgroup that goes meanwhile leaves zeros.
	if err == nil && !isDir(c.tree.procs()) {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("cannot stat cgroup %s: %w", c.path, notFound(err))
	}
	return m, nil
}

// v1Stater is a controller of the library.
type v1Stater interface {
	Stat(path string, m *v1.Metrics) error
}

// v1Staters are the controllers that have statistics. The library looks for a cgroup in <root>/<controller>/<path>;
// see outOf for how it finds those of any hierarchy from "/".
var v1Staters = sync.OnceValue(func() map[string]v1Stater {
	staters := map[string]v1Stater{
		"pids": cgroup1.NewPids("/"), "cpu": cgroup1.NewCpu("/"), "cpuacct": cgroup1.NewCpuacct("/"),
		"memory": cgroup1.NewMemory("/"), "blkio": cgroup1.NewBlkio("/"), "rdma": cgroup1.NewRdma("/"),
	}
	// It fails on a kernel without huge pages.
	if hugetlb, err := cgroup1.NewHugetlb("/"); err == nil {
		staters["hugetlb"] = hugetlb
	}
	return staters
})

// outOf is the path by which a controller with the root "/" finds a directory.
func outOf(dir string) string { return "../" + dir }

// stat asks the library's controllers one after the other. Its cgroup1.Load takes all hierarchies to be mounted in one
// directory, each by the name of its controller, and starts a goroutine for each.
func (t *v1Tree) stat() (Metrics, error) {
	m := &v1.Metrics{CPU: &v1.CPUStat{Usage: &v1.CPUUsage{}, Throttling: &v1.Throttle{}}}
	for controller, s := range v1Staters() {
		dir := t.dir(controller)
		if dir == "" {
			continue
		}
		if controller == "memory" {
			s = cgroup1.NewMemory("/", cgroup1.IgnoreModules(missingMemory(dir)...))
		}
		if err := s.Stat(outOf(dir), m); err != nil && !absent(err) {
			return nil, fmt.Errorf("cannot read %s of %s: %w", controller, dir, err)
		}
	}
	return m, nil
}

// missingMemory returns the kinds of memory that the kernel does not count, without swap accounting for example: the
// library would leave out those after them as well.
func missingMemory(dir string) (kinds []string) {
	for _, kind := range []string{"memsw", "kmem", "kmem.tcp"} {
		if !exists(filepath.Join(dir, "memory."+kind+".limit_in_bytes")) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// v2Stats says what each controller has statistics of. CPU time is counted without one.
var v2Stats = map[string]cgroup2.StatMask{
	"pids": cgroup2.StatPids, "memory": cgroup2.StatMemory | cgroup2.StatMemoryEvents, "io": cgroup2.StatIO,
	"rdma": cgroup2.StatRdma, "hugetlb": cgroup2.StatHugetlb,
}

// stat asks only for what there are controllers for: the library answers zeros for the others.
func (t *v2Tree) stat() (Metrics, error) {
	controllers, err := readFile(filepath.Join(t.dir, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	mask := cgroup2.StatCPU
	for controller := range strings.FieldsSeq(controllers) {
		mask |= v2Stats[controller]
	}
	manager, err := cgroup2.Load("/", cgroup2.WithMountpoint(t.dir))
	if err != nil {
		return nil, err
	}
	return manager.StatFiltered(mask)
}
