package cgroups

// The only place that chooses between v1 and v2.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// tree is a cgroup on the version of cgroups that the host has.
type tree interface {
	// create makes the missing directories and returns them, parents first, also on error.
	create() (made []string, err error)
	// existing returns the tree without the directories that do not exist; nil if none does.
	existing() tree
	dirs() []string
	// shadow returns the directory that an OCI runtime may have made besides those; "" if there is no place for it.
	shadow() string
	// procs returns the directory whose cgroup.procs, together with those below, lists the processes.
	procs() string
	stat() (Metrics, error)
	update(r *specs.LinuxResources) error
	freeze(ctx context.Context) error
	thaw(ctx context.Context) error
	frozen() (bool, error)
	// killAll kills every process with one write; false if the kernel cannot.
	killAll() (bool, error)
	// releaseKilled lets frozen processes die of a SIGKILL that was sent to them. done says that none is left that
	// could be frozen again.
	releaseKilled() (done bool, err error)
	watchOOM(since *OOMCount, f func()) (stop func() OOMCount, err error)
}

// layout says where the host's hierarchies are mounted.
type layout struct {
	proc    string      // where procfs is mounted
	unified *hierarchy  // set in v2 mode only
	v1      []hierarchy // set in v1 and hybrid mode only
	hybrid  string      // where cgroup2 is mounted beside v1; "" if it is not, and in v2 mode
}

// hierarchy is one mounted cgroup hierarchy.
type hierarchy struct {
	mountpoint  string
	root        string   // the part of the hierarchy that is mounted there; "/" unless we are in a container or cgroup namespace
	controllers []string // v1: those mounted together, or "name=<x>"
}

const defaultMountpoint = "/sys/fs/cgroup"

// hybridMountpoint is where OCI runtimes look for cgroup2 beside v1.
const hybridMountpoint = defaultMountpoint + "/unified"

// v1Controllers are the controllers that a v1 mount can name among its options. Like OCI runtimes, Create makes a
// directory for each, even for those that this package does not use.
var v1Controllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls", "net_prio",
	"perf_event", "pids", "rdma",
}

// hostLayout returns the layout of this host. It looks once: mounts do not change under a running shim, and the shim
// never changes its mount namespace.
var hostLayout = sync.OnceValues(func() (*layout, error) {
	const path = "/proc/self/mountinfo"
	fd, err := openFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find cgroup mounts: %w", err)
	}
	mounts := os.NewFile(uintptr(fd), path)
	defer mounts.Close()
	var st unix.Statfs_t
	err = unix.Statfs(defaultMountpoint, &st)
	l, err := newLayout(mounts, err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC)
	if err != nil {
		return nil, fmt.Errorf("cannot find cgroup mounts: %w", err)
	}
	l.proc = "/proc"
	return l, nil
})

// Prepare finds the host's cgroup mounts ahead of time. Most functions of this package need them, and on a node with
// many mounts that search can take as long as all other work on a sandbox's cgroup.
func Prepare() { _, _ = hostLayout() }

// newLayout decides from the text of a mountinfo file, and from unified: whether /sys/fs/cgroup itself is a cgroup2
// mount. Hybrid counts as v1: there the cgroup2 mount is systemd's, for tracking, and other software does not move
// processes in it.
//
// newLayout reads line by line, as a node has hundreds of other lines, and long ones.
func newLayout(mountinfo io.Reader, unified bool) (*layout, error) {
	l := &layout{}
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 16<<20) // An overlay's options name all its layers.
	for lines.Scan() {
		if !bytes.Contains(lines.Bytes(), []byte(" - cgroup")) {
			continue
		}
		m, ok := parseMount(lines.Text())
		switch {
		case !ok:
		case m.fstype == "cgroup2":
			if m.mountpoint == hybridMountpoint {
				l.hybrid = m.mountpoint
			}
			if l.unified == nil || m.mountpoint == defaultMountpoint {
				l.unified = &hierarchy{mountpoint: m.mountpoint, root: m.root}
			}
		case m.fstype == "cgroup":
			l.addV1(m)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	hasController := func(h hierarchy) bool { return !strings.HasPrefix(h.controllers[0], "name=") }
	switch {
	case unified && l.unified != nil:
		l.v1, l.hybrid = nil, ""
	case slices.ContainsFunc(l.v1, hasController):
		l.unified = nil
	case l.unified != nil:
		l.v1, l.hybrid = nil, ""
	default:
		return nil, fmt.Errorf("no hierarchy with controllers is mounted: %w", errdefs.ErrNotImplemented)
	}
	return l, nil
}

// addV1 adds a v1 mount if it names controllers. A hierarchy can be mounted more than once, for example in the root
// file systems of containers: the mount below /sys/fs/cgroup wins, else the first.
func (l *layout) addV1(m mount) {
	h := hierarchy{mountpoint: m.mountpoint, root: m.root}
	for opt := range strings.SplitSeq(m.options, ",") {
		if slices.Contains(v1Controllers, opt) || strings.HasPrefix(opt, "name=") {
			h.controllers = append(h.controllers, opt)
		}
	}
	if len(h.controllers) == 0 {
		return
	}
	i := slices.IndexFunc(l.v1, func(o hierarchy) bool { return slices.Contains(o.controllers, h.controllers[0]) })
	switch {
	case i < 0:
		l.v1 = append(l.v1, h)
	case isDefault(h.mountpoint) && !isDefault(l.v1[i].mountpoint):
		l.v1[i] = h
	}
}

func isDefault(mountpoint string) bool {
	return strings.HasPrefix(mountpoint, defaultMountpoint+"/")
}

// at returns the tree at a clean path below the mount points.
func (l *layout) at(path string) tree {
	if l.unified != nil {
		return &v2Tree{root: l.unified.mountpoint, dir: l.unified.mountpoint + path}
	}
	t := &v1Tree{}
	if l.hybrid != "" {
		t.unified = l.hybrid + path
	}
	for _, h := range l.v1 {
		t.groups = append(t.groups, v1Group{root: h.mountpoint, dir: h.mountpoint + path, controllers: h.controllers})
	}
	return t
}

// of returns the tree that a process is in, and a path that stands for the tree in messages.
func (l *layout) of(lines []procCgroup) (tree, string, error) {
	errRoot := fmt.Errorf("it is in the root cgroup, in the caller's, or outside of the mounted hierarchies: %w", errdefs.ErrFailedPrecondition)
	if l.unified != nil {
		for _, line := range lines {
			if !line.unified() {
				continue
			}
			if line.deleted {
				return nil, "", fmt.Errorf("%s is removed: %w", line.path, errdefs.ErrNotFound)
			}
			if below, ok := l.unified.below(line.path); ok {
				return &v2Tree{root: l.unified.mountpoint, dir: l.unified.mountpoint + below}, below, nil
			}
		}
		return nil, "", errRoot
	}
	t := &v1Tree{}
	paths := make(map[string]string)
	for _, h := range l.v1 {
		for _, line := range lines {
			if line.deleted || !slices.Contains(line.controllers, h.controllers[0]) {
				continue
			}
			if below, ok := h.below(line.path); ok {
				g := v1Group{root: h.mountpoint, dir: h.mountpoint + below, controllers: h.controllers}
				t.groups = append(t.groups, g)
				paths[g.dir] = below
			}
		}
	}
	if len(t.groups) == 0 {
		return nil, "", errRoot
	}
	return t, paths[t.procs()], nil
}

// below translates a path from /proc/<pid>/cgroup into one below the mount point. Both that path and the mount's root
// are relative to the root of our cgroup namespace, and begin with "/.." if they are outside of it
// (cgroup_namespaces(7)); so they are compared without cleaning. False if the path is not below the mount point, or is
// the mounted root itself.
func (h *hierarchy) below(path string) (string, bool) {
	rest := path
	if h.root != "/" {
		var ok bool
		if rest, ok = strings.CutPrefix(path, h.root); !ok {
			return "", false
		}
	}
	name, ok := strings.CutPrefix(rest, "/")
	if !ok || !fs.ValidPath(name) || name == "." {
		return "", false
	}
	return rest, true
}
