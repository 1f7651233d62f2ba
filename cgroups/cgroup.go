// Package cgroups handles one cgroup: it makes, measures, watches, freezes, signals, updates and removes it.
//
// It measures with github.com/containerd/cgroups/v3, "the library", which also converts CPU shares to v2's weight. The
// rest is its own, by plain reads and writes of the kernel's files: what the library has not, and what it does in a way
// that an operator would notice, such as to wait without end, or to leave a limit out and say nothing. The comments on
// Update, Freeze, Signal, Pids and Remove say what that is.
//
// Whether the host has cgroup v1, v2 or both (hybrid) is decided once, in mode.go; everything above that file sees a
// Cgroup. Nothing here talks to systemd or loads eBPF.
//
// The file formats and their meaning are those of the kernel's Documentation/admin-guide/cgroup-v2.rst and
// Documentation/admin-guide/cgroup-v1/*.rst; units are theirs (bytes, microseconds) where nothing else is said.
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

// Cgroup is one cgroup: a directory on v2, one directory per mounted hierarchy on v1. It holds no open file and no
// state that changes, so that its methods may be called from any goroutine.
//
// Errors carry the kinds of containerd's errdefs: ErrNotFound where the cgroup is gone, ErrNotImplemented where the
// host lacks the controller, ErrFailedPrecondition where the call would hit the caller itself, ErrInvalidArgument
// for a path or a value that cannot be.
type Cgroup struct {
	path string
	tree tree
}

// Create makes the cgroup of an OCI spec's linux.cgroupsPath (see ResolvePath for its forms, and for systemd) and
// applies r, which may be nil. An existing cgroup is taken over. On error, the directories that Create made are
// removed again.
//
// Below a slice, too, the directory is made as cgroupfs makes it; systemd is not asked for a unit. A scope unit lives
// only as long as a process is in it (systemd.scope(5)), and none is: CRI-O lost its sandbox cgroups that way
// (cri-o #6196, #6856). A directory that systemd knows nothing of is left alone while the slice above it is active, and
// a pod's slice is active from before the sandbox's creation until after its removal, as it is kubelet's unit.
//
// Device rules in r are not applied: no process lives in a cgroup made here, and on v2 they would take an eBPF
// program. On v1 the directory in the devices hierarchy is made like the others. In hybrid mode only the v1
// hierarchies are used: the cgroup2 mount beside them is systemd's own.
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

// Load returns the existing cgroup of an OCI spec's linux.cgroupsPath (see ResolvePath). On v1, hierarchies without the
// directory are left out; if none has it, the error is ErrNotFound. What only the cgroup2 mount of a hybrid host has can be
// removed, and is gone for all other methods.
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

// OfProcess returns the cgroup that a process is in, as /proc/<pid>/cgroup tells.
//
// On v1 the process can be in another place of each hierarchy. Hierarchies where it is in the root are left out, as
// the root's numbers are the host's and its processes everybody's; so are those where it is outside of what is
// mounted here (a path that begins with "/..", cgroup_namespaces(7)), and those where it is in the cgroup of the caller,
// which it was not put into: an OCI runtime of a rootless containerd may not make a cgroup, and then leaves a container
// in that of the user's session. If none is left, the error is ErrFailedPrecondition. A process that does not exist is
// ErrNotFound.
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
			// Another pod may have moved into a parent meanwhile; then it stays.
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

// addProcess writes a pid to a directory's cgroup.procs. The kernel answers EINVAL for a process that fork has not
// finished yet (TASK_NEW in cpu_cgroup_can_attach, kernel/sched/core.c), a matter of moments. The library tries again
// on v1 only.
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
