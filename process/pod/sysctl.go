package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ipcSysctls are the keys, besides fs/mqueue/*, that the kernel keeps per IPC namespace
// (ipc_namespaces(7); kernel, ipc/ipc_sysctl.c).
var ipcSysctls = []string{
	"kernel/auto_msgmni", "kernel/msg_next_id", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni",
	"kernel/sem", "kernel/sem_next_id",
	"kernel/shm_next_id", "kernel/shm_rmid_forced", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
}

// Sysctl is a value to write to a path below /proc/sys.
type Sysctl struct{ Path, value string }

// Sysctls checks the sysctls of a sandbox's spec and returns them sorted by key. It fails
// with [errdefs.ErrInvalidArgument] for a key that would change the host: one that the
// kernel does not keep per namespace, or for whose type of namespace the pod uses the
// host's.
func Sysctls(sysctls map[string]string, own Own) ([]Sysctl, error) {
	list := make([]Sysctl, 0, len(sysctls))
	for key, value := range sysctls {
		path, err := sysctlPath(key)
		if err != nil {
			return nil, err
		}
		kind, ok := sysctlNamespace(path)
		if !ok {
			return nil, fmt.Errorf("sysctl %q is not kept per namespace: it would change the host: %w", key, errdefs.ErrInvalidArgument)
		}
		if !own[kind] {
			return nil, fmt.Errorf("sysctl %q is not allowed, because the pod uses the host's %s namespace: %w", key, kind, errdefs.ErrInvalidArgument)
		}
		list = append(list, Sysctl{path, value})
	}
	slices.SortFunc(list, func(a, b Sysctl) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// sysctlPath turns a key into a path below /proc/sys. As in sysctl(8), the first separator
// in the key decides. If it is a slash, the key is a path. If it is a dot, dots separate,
// and slashes stand for dots (net.ipv4.conf.eth0/1.forwarding).
func sysctlPath(key string) (string, error) {
	path := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	if !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return "", fmt.Errorf("sysctl %q is not a valid key: %w", key, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

func sysctlNamespace(path string) (specs.LinuxNamespaceType, bool) {
	switch {
	case strings.HasPrefix(path, "net/"):
		return specs.NetworkNamespace, true
	case strings.HasPrefix(path, "fs/mqueue/"), slices.Contains(ipcSysctls, path):
		return specs.IPCNamespace, true
	case path == "kernel/domainname":
		return specs.UTSNamespace, true
	}
	return "", false
}

// WriteSysctls writes the values. It must run in the thread that is in the pod's namespaces:
// the kernel resolves the network and IPC keys in the namespaces of the calling thread.
func WriteSysctls(list []Sysctl) error {
	for _, s := range list {
		if err := writeSysctl(s); err != nil {
			return fmt.Errorf("cannot set sysctl %q: %w", strings.ReplaceAll(s.Path, "/", "."), err)
		}
	}
	return nil
}

// writeSysctl writes one value. If an IPC namespace belongs to a user namespace, only the
// root of that may write its keys, and not even the host's root (kernel, ipc_permissions in
// ipc/ipc_sysctl.c). That root owns the file.
func writeSysctl(s Sysctl) error {
	path := filepath.Join("/proc/sys", s.Path)
	if kind, _ := sysctlNamespace(s.Path); kind != specs.IPCNamespace {
		return writeValue(path, s.value)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return asUser(st.Uid, func() error { return writeValue(path, s.value) })
}

func writeValue(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// asUser calls f with another effective user, in the calling thread only: the system call
// changes one thread, and C libraries make it in all threads (setresuid(2)). If the thread
// cannot change back, it has no capabilities; then it cannot leave the pod's namespaces
// either, and is not used again.
func asUser(uid uint32, f func() error) error {
	if uid == 0 {
		return f()
	}
	if err := setEffectiveUser(uid); err != nil {
		return err
	}
	return errors.Join(f(), setEffectiveUser(0))
}

func setEffectiveUser(uid uint32) error {
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		return os.NewSyscallError("setresuid", errno)
	}
	return nil
}
