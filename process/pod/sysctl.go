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

// ipcSysctls are the keys that the kernel keeps per IPC namespace
// (ipc_namespaces(7); kernel, ipc/ipc_sysctl.c), besides fs/mqueue/*.
var ipcSysctls = []string{
	"kernel/auto_msgmni", "kernel/msg_next_id", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni",
	"kernel/sem", "kernel/sem_next_id",
	"kernel/shm_next_id", "kernel/shm_rmid_forced", "kernel/shmall", "kernel/shmmax", "kernel/shmmni",
}

// Sysctl is one value to write, at a path below /proc/sys.
type Sysctl struct{ Path, value string }

// Sysctls checks the sysctls of a sandbox's spec and returns them in the
// order of their keys. A key is allowed only if the kernel keeps it per
// namespace and the spec gives the pod a namespace of that type which is not
// the host's; anything else would change the host.
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

// sysctlPath turns a key into a path below /proc/sys. As in sysctl(8), the first
// separator of a key decides: after a slash dots are themselves, after a dot
// dots separate and slashes are dots (net.ipv4.conf.eth0/1.forwarding).
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

// WriteSysctls runs in the thread that is in the pod's namespaces: the kernel
// resolves /proc/sys/net and the IPC keys by the calling thread.
func WriteSysctls(list []Sysctl) error {
	for _, s := range list {
		if err := writeSysctl(s); err != nil {
			return fmt.Errorf("cannot set sysctl %q: %w", strings.ReplaceAll(s.Path, "/", "."), err)
		}
	}
	return nil
}

// writeSysctl writes one value. Those of an IPC namespace that belongs to a user
// namespace can be written by its root only, not even by the host's (kernel,
// ipc_permissions in ipc/ipc_sysctl.c); the file's owner tells who that is.
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

// asUser calls f with another effective user. Only the calling thread has it: it
// is libraries that change the user of all threads of a process (setresuid(2)). A
// thread that could not come back has no capabilities, so that it cannot leave
// the pod's namespaces either, and is not used again.
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
