package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ipcSysctls are the keys that the kernel keeps per IPC namespace
// (ipc_namespaces(7); kernel, ipc/ipc_sysctl.c), besides fs/mqueue/*.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall",
	"kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// sysctl is one value to write, at a path below /proc/sys.
type sysctl struct{ path, value string }

// sandboxSysctls checks the sysctls of a sandbox's spec and returns them in the
// order of their keys. A key is allowed only if the kernel keeps it per
// namespace and the spec gives the pod a namespace of that type which is not
// the host's; anything else would change the host.
func sandboxSysctls(sysctls map[string]string, own ownNamespaces) ([]sysctl, error) {
	list := make([]sysctl, 0, len(sysctls))
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
		list = append(list, sysctl{path, value})
	}
	slices.SortFunc(list, func(a, b sysctl) int { return strings.Compare(a.path, b.path) })
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

// writeSysctls runs in the thread that is in the pod's namespaces: the kernel
// resolves /proc/sys/net and the IPC keys by the calling thread.
func writeSysctls(list []sysctl) error {
	for _, s := range list {
		if err := writeSysctl(s); err != nil {
			return fmt.Errorf("cannot set sysctl %q: %w", strings.ReplaceAll(s.path, "/", "."), err)
		}
	}
	return nil
}

func writeSysctl(s sysctl) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys", s.path), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.value)
	return errors.Join(err, f.Close())
}
