package pod

import (
	"fmt"
	"os"

	"containerd-shim-pause-v2/process/carry"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// NamespaceTypes are the types of the namespaces that a sandbox's thread enters, with their
// names under /proc/<pid>/ns and flags for unshare(2) and setns(2). There are two that it
// cannot enter (setns(2)): a new PID namespace is only for the caller's children, and a
// process with several threads must not change its user namespace.
var NamespaceTypes = []struct {
	Kind specs.LinuxNamespaceType
	Proc string
	flag int
}{
	{specs.NetworkNamespace, "net", unix.CLONE_NEWNET},
	{specs.IPCNamespace, "ipc", unix.CLONE_NEWIPC},
	{specs.UTSNamespace, "uts", unix.CLONE_NEWUTS},
}

// NSID identifies a namespace: the device and inode of its file in nsfs
// (namespaces(7), "The /proc/pid/ns/ directory").
type NSID struct{ Dev, Inode uint64 }

// StatNamespace returns the identity of the namespace at a path.
func StatNamespace(path string) (NSID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return NSID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return NSID{st.Dev, st.Ino}, nil
}

// NSFile is the open file of a namespace, and keeps the namespace alive. A path may lead to
// another namespace once a process has ended or a link has changed; an open file does not.
type NSFile struct {
	*os.File
	ID   NSID
	flag int // the namespace's type, as a flag of clone(2)
}

// Open opens the namespace at a path that a client has given. It fails with
// [errdefs.ErrInvalidArgument] if that is not a namespace. It never waits, even if the path
// is a fifo's.
func Open(path string) (*NSFile, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return newNSFile(os.NewFile(uintptr(fd), path))
}

func newNSFile(f *os.File) (*NSFile, error) {
	flag, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is not a namespace: %w", f.Name(), errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return &NSFile{f, NSID{st.Dev, st.Ino}, flag}, nil
}

// TakeNamespace returns the file of a namespace that the program before this one has left
// open under a number; nil for [carry.None].
func TakeNamespace(fd int, kind specs.LinuxNamespaceType) (*NSFile, error) {
	f := carry.Take(fd, fmt.Sprintf("the pod's %s namespace", kind))
	if f == nil {
		return nil, nil
	}
	return newNSFile(f)
}

// Path returns a path through which other processes can open the file. It has a dot because
// of runc: if the path of a user namespace begins with /proc/<number>/, runc reads the ID
// mappings of that process (GetUserNamespaceMappings in libcontainer), and the shim is not
// in the namespace.
func (f *NSFile) Path() string {
	return fmt.Sprintf("/proc/./%d/fd/%d", os.Getpid(), f.Fd())
}

// CheckNamespaceList fails with [errdefs.ErrInvalidArgument] if a type is listed twice, which
// runc refuses as well.
func CheckNamespaceList(list []specs.LinuxNamespace) error {
	seen := make(map[specs.LinuxNamespaceType]bool)
	for _, ns := range list {
		if seen[ns.Type] {
			return fmt.Errorf("%s namespace is listed twice in the spec: %w", ns.Type, errdefs.ErrInvalidArgument)
		}
		seen[ns.Type] = true
	}
	return nil
}

// cloneFlags are the types' flags of clone(2), which NS_GET_NSTYPE returns.
var cloneFlags = map[specs.LinuxNamespaceType]int{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// HostNamespace returns the identity of the host's namespace of a type, which is the calling
// thread's. It must not be called in a thread that holds a sandbox. /proc/self would not
// do: it shows the main thread, which may hold one.
func HostNamespace(kind specs.LinuxNamespaceType) (NSID, error) {
	name, ok := ProcNames[kind]
	if !ok {
		return NSID{}, fmt.Errorf("unknown namespace type %q: %w", kind, errdefs.ErrInvalidArgument)
	}
	return StatNamespace("/proc/thread-self/ns/" + name)
}

// ProcNames are the names under /proc/<pid>/ns of the types in an OCI spec.
var ProcNames = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace:     "pid",
	specs.NetworkNamespace: "net",
	specs.MountNamespace:   "mnt",
	specs.IPCNamespace:     "ipc",
	specs.UTSNamespace:     "uts",
	specs.UserNamespace:    "user",
	specs.CgroupNamespace:  "cgroup",
	specs.TimeNamespace:    "time",
}

// ThreadNamespaces returns the calling thread's namespaces of the types that a
// sandbox's thread may take.
func ThreadNamespaces() (map[specs.LinuxNamespaceType]NSID, error) {
	ids := make(map[specs.LinuxNamespaceType]NSID)
	for _, t := range NamespaceTypes {
		id, err := StatNamespace("/proc/thread-self/ns/" + t.Proc)
		if err != nil {
			return nil, err
		}
		ids[t.Kind] = id
	}
	return ids, nil
}
