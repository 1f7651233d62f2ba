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

// tree is what a cgroup is on the version at hand.
type tree interface {
	// create makes the directories that are missing, and says which, parents first; also on error.
	create() (made []string, err error)
	// existing returns the tree without what is not there, nil if nothing is.
	existing() tree
	dirs() []string
	// shadow returns the directory that an OCI runtime may have made beside those, "" if there is no place for it.
	shadow() string
	// procs returns the directory whose cgroup.procs, with those below, is the list of processes.
	procs() string
	stat() (Metrics, error)
	update(r *specs.LinuxResources) error
	freeze(ctx context.Context) error
	thaw(ctx context.Context) error
	frozen() (bool, error)
	// killAll kills every process by one write; false if the kernel cannot.
	killAll() (bool, error)
	// releaseKilled lets frozen processes take a SIGKILL that was sent to them. It is done when there is none that could
	// be frozen again.
	releaseKilled() (done bool, err error)
	watchOOM(f func()) (stop func(), err error)
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
	root        string   // what of the hierarchy is mounted there; "/" unless a container or cgroup namespace is around us
	controllers []string // v1: those mounted together, or "name=<x>"
}

const defaultMountpoint = "/sys/fs/cgroup"

// hybridMountpoint is where OCI runtimes look for cgroup2 beside v1.
const hybridMountpoint = defaultMountpoint + "/unified"

// v1Controllers are the controllers that a v1 mount can name among its options. Every one gets a directory in
// Create, also those that this package has no other use for, as OCI runtimes do.
var v1Controllers = []string{
	"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "misc", "net_cls", "net_prio",
	"perf_event", "pids", "rdma",
}

// hostLayout is the layout of this host. Mounts do not change under a running shim, and the shim never changes its
// mount namespace, so that it is looked up once.
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

// Prepare finds the host's cgroup mounts, which most functions of this package need, before they do. On a node with
// many mounts that may take as long as all the rest of a sandbox's cgroup.
func Prepare() { _, _ = hostLayout() }

// newLayout decides from the text of a mountinfo file, and from whether /sys/fs/cgroup is a cgroup2 mount itself.
// Hybrid is v1: there, the cgroup2 mount is systemd's own, for tracking, and other software leaves processes where
// they are in it.
//
// It keeps only the lines that are of use, and reads in small pieces: the others are hundreds on a node, and long.
func newLayout(mountinfo io.Reader, unified bool) (*layout, error) {
	l := &layout{}
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, 16<<20) // The options of an overlay name all its layers.
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

// addV1 adds a v1 mount, if it names controllers. A hierarchy can be mounted more than once, for example in the root
// file systems of containers; the mount below /sys/fs/cgroup wins, else the first.
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

// of returns the tree that a process is in, and a path that stands for it in messages.
func (l *layout) of(lines []procCgroup) (tree, string, error) {
	errRoot := fmt.Errorf("it has none of its own, or one outside of the mounted hierarchies: %w", errdefs.ErrFailedPrecondition)
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

// below translates a path of /proc/<pid>/cgroup into one below the mount point. Both that path and the mount's root
// are relative to the root of our cgroup namespace; either begins with "/.." where it lies outside
// (cgroup_namespaces(7)), so that they are compared as they are, not cleaned. False if the path is not below the
// mount point, or is the mounted root itself.
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
