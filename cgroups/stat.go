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

// Metrics is what [Cgroup.Stat] returns: a *Metrics of github.com/containerd/cgroups/v3/cgroup1/stats on v1, of
// cgroup2/stats on v2.
type Metrics interface{ proto.Message }

// Stat measures the cgroup. The numbers are the library's, and so the same as those of io.containerd.runc.v2: on v1,
// for example, I/O excludes that of the cgroups below. What the kernel has no files for is left out. A cgroup that is
// gone is ErrNotFound.
func (c *Cgroup) Stat() (Metrics, error) {
	m, err := c.tree.stat()
	// A cgroup that vanishes meanwhile leaves zeros.
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
// with the root "/", outOf makes the path for a directory of any hierarchy.
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

// outOf returns the path by which a controller with the root "/" finds a directory: its ".." undoes the controller's
// name.
func outOf(dir string) string { return "../" + dir }

// stat asks the library's controllers one after the other. It does not use cgroup1.Load, which takes all hierarchies to
// be mounted in one directory, each under the name of its controller, and starts a goroutine for each.
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

// missingMemory returns the kinds of memory that the kernel does not count, such as swap without swap accounting. The
// library has to skip them: at a missing one it would leave out the kinds after it, too.
func missingMemory(dir string) (kinds []string) {
	for _, kind := range []string{"memsw", "kmem", "kmem.tcp"} {
		if !exists(filepath.Join(dir, "memory."+kind+".limit_in_bytes")) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// v2Stats says which statistics each controller has. CPU time is counted without a controller.
var v2Stats = map[string]cgroup2.StatMask{
	"pids": cgroup2.StatPids, "memory": cgroup2.StatMemory | cgroup2.StatMemoryEvents, "io": cgroup2.StatIO,
	"rdma": cgroup2.StatRdma, "hugetlb": cgroup2.StatHugetlb,
}

// stat asks only for the statistics of controllers that are enabled: for others, the library answers zeros.
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
