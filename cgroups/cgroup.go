// Package cgroups handles one cgroup: it makes, measures, watches, freezes, signals, updates and removes it.
//
// It measures with github.com/containerd/cgroups/v3, "the library", which also converts CPU shares to v2's weight. All
// else reads and writes the kernel's files directly: the library lacks it, or does it in a way that an operator would
// notice, such as waiting without limit or dropping a limit silently. The comments on Update, Freeze, Signal, Pids and
// Remove name the differences.
//
// Whether the host has cgroup v1, v2 or both (hybrid) is decided once, in mode.go; everything else sees a Cgroup.
// Nothing here talks to systemd or loads eBPF.
//
// File formats and their meaning are those of the kernel's Documentation/admin-guide/cgroup-v2.rst and
// Documentation/admin-guide/cgroup-v1/*.rst. Units are the kernel's (bytes, microseconds) unless stated otherwise.
package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Cgroup is one cgroup: one directory on v2, one per mounted hierarchy on v1. It holds no open file and does not
// change, so its methods may be called from any goroutine.
//
// Errors have the kinds of containerd's errdefs: ErrNotFound if the cgroup is gone, ErrNotImplemented if the host lacks
// the controller, ErrFailedPrecondition if the call would hit the caller itself, ErrInvalidArgument for an impossible
// path or value.
type Cgroup struct {
	path string
	tree tree
}

// Create makes the cgroup of an OCI spec's linux.cgroupsPath (see ResolvePath for its forms, and for systemd) and
// applies r, which may be nil. It takes over an existing cgroup. On error, it removes the directories that it made.
//
// Create makes the directory itself below a slice, too, instead of asking systemd for a unit. A scope unit lives only
// as long as a process is in it (systemd.scope(5)), and here none is: CRI-O lost its sandbox cgroups that way (cri-o
// #6196, #6856). systemd leaves a directory that it does not know alone while the slice above is active. A pod's slice
// is kubelet's unit, active from before the sandbox's creation until after its removal.
//
// Device rules in r are not applied: no process lives in a cgroup made here, and on v2 they would need an eBPF program.
// On v1, the devices hierarchy gets a directory like the others. In hybrid mode only the v1 hierarchies are used: the
// cgroup2 mount beside them is systemd's.
func Create(path string, systemd bool, r *specs.LinuxResources) (*Cgroup, error) {
	resolved, err := ResolvePath(path, systemd)
	if err != nil {
		return nil, err
	}
	l, err := hostLayout()
	if err != nil {
		return nil, err
	}
	return l.create(resolved, r)
}

// Load returns the existing cgroup of an OCI spec's linux.cgroupsPath (see ResolvePath). On v1, it leaves out
// hierarchies that lack the directory; if all do, the error is ErrNotFound. A cgroup that is only in the cgroup2 mount
// of a hybrid host can be removed; all other methods find it gone.
func Load(path string, systemd bool) (*Cgroup, error) {
	resolved, err := ResolvePath(path, systemd)
	if err != nil {
		return nil, err
	}
	l, err := hostLayout()
	if err != nil {
		return nil, err
	}
	return l.load(resolved)
}

// OfProcess returns the cgroup of a process, from /proc/<pid>/cgroup.
//
// On v1 the process can have a different path in each hierarchy. OfProcess leaves out
//   - hierarchies where the process is in the root, whose numbers are the host's and whose processes are everybody's;
//   - those where its cgroup is outside of what is mounted here (a path that begins with "/..", cgroup_namespaces(7));
//   - those where it is in the caller's cgroup, because nobody has put it there: the OCI runtime of a rootless
//     containerd may have no right to make a cgroup, and then leaves a container in that of the user's session.
//
// If none is left, the error is ErrFailedPrecondition. If the process does not exist, it is ErrNotFound.
func OfProcess(pid int) (*Cgroup, error) {
	l, err := hostLayout()
	if err != nil {
		return nil, err
	}
	return l.ofProcess(pid)
}

func (l *layout) create(path string, r *specs.LinuxResources) (*Cgroup, error) {
	c := &Cgroup{path: path, tree: l.at(path)}
	made, err := c.tree.create()
	if err == nil && r != nil {
		err = c.tree.update(r)
	}
	if err != nil {
		for i := len(made) - 1; i >= 0; i-- {
			// This fails, rightly, for a parent that another pod has come to use.
			_ = unix.Rmdir(made[i])
		}
		return nil, fmt.Errorf("cannot create cgroup %s: %w", path, err)
	}
	return c, nil
}

func (l *layout) load(path string) (*Cgroup, error) {
	t := l.at(path).existing()
	if t == nil {
		return nil, fmt.Errorf("cannot load cgroup %s: %w", path, errdefs.ErrNotFound)
	}
	return &Cgroup{path: path, tree: t}, nil
}

func (l *layout) ofProcess(pid int) (*Cgroup, error) {
	lines, err := l.procCgroups(strconv.Itoa(pid))
	if absent(err) || errors.Is(err, unix.ESRCH) {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	var own []procCgroup
	if err == nil {
		own, err = l.procCgroups("self")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find cgroup of process %d: %w", pid, err)
	}
	lines = slices.DeleteFunc(lines, func(c procCgroup) bool { return slices.ContainsFunc(own, c.same) })
	t, path, err := l.of(lines)
	if err != nil {
		return nil, fmt.Errorf("cannot find cgroup of process %d: %w", pid, err)
	}
	return &Cgroup{path: path, tree: t}, nil
}

func (l *layout) procCgroups(process string) ([]procCgroup, error) {
	file := filepath.Join(l.proc, process, "cgroup")
	text, err := readFile(file)
	if err != nil {
		return nil, err
	}
	return parseProcCgroup(file, text)
}

// Add moves a process into the cgroup, on v1 in every hierarchy.
func (c *Cgroup) Add(pid int) error {
	for _, dir := range c.tree.dirs() {
		if err := addProcess(dir, pid); err != nil {
			return fmt.Errorf("cannot add process %d to cgroup %s: %w", pid, c.path, err)
		}
	}
	return nil
}

// addProcess writes a pid to a directory's cgroup.procs. For some moments, the kernel answers EINVAL for a process
// whose fork is not finished (TASK_NEW in cpu_cgroup_can_attach, kernel/sched/core.c). The library retries on v1 only.
func addProcess(dir string, pid int) error {
	var err error
	for range 5 {
		err = writeFile(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
		if !errors.Is(err, unix.EINVAL) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// Paths returns the cgroup's directories: one on v2, one per hierarchy on v1.
func (c *Cgroup) Paths() []string {
	return c.tree.dirs()
}

// String returns the cgroup's path below the mount point, for logs.
func (c *Cgroup) String() string {
	return c.path
}
