package pod

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// NamespaceTypes are the types that a sandbox's thread takes, with the name
// under /proc/<pid>/ns and the flag of unshare(2) and setns(2). PID and user
// namespaces are not among them: the first holds only for children, the second
// cannot be entered by one thread of many (setns(2)).
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
type NSID struct{ dev, Inode uint64 }

// StatNamespace identifies the namespace that a path leads to.
func StatNamespace(path string) (NSID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return NSID{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return NSID{st.Dev, st.Ino}, nil
}

// NSFile is the open file of a namespace. Unlike a path it leads to the same
// namespace as long as it is open, whatever becomes of the process or link that
// it was found by; and the namespace stays.
type NSFile struct {
	*os.File
	ID   NSID
	flag int // of clone(2): its type
}

// Open opens a path that a client has given. It refuses what is no
// namespace, and does not wait, as the open of a fifo would.
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
		return nil, fmt.Errorf("%s is no namespace: %w", f.Name(), errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return &NSFile{f, NSID{st.Dev, st.Ino}, flag}, nil
}

// Path is where others find the open file. runc takes a path to a user namespace
// that begins with /proc/<number>/ for that of a process in it, and reads the ID
// mappings of that process (GetUserNamespaceMappings in libcontainer); the dot
// keeps it from that.
func (f *NSFile) Path() string {
	return fmt.Sprintf("/proc/./%d/fd/%d", os.Getpid(), f.Fd())
}

// CheckNamespaceList refuses what runc refuses: a type listed twice.
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

// cloneFlags are the flags of clone(2) by which the kernel names the types.
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

// HostNamespace returns the identity of the shim's own namespace of a type,
// which is the host's in all threads but those that hold sandboxes. The path
// must not be /proc/self, which is the main thread's.
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
