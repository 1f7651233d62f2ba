package task

// What pods get that nobody has asked for, and the host that decides on it.

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"containerd-shim-pause-v2/process"

	"github.com/containerd/containerd/v2/pkg/seccomp"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// host is what the host has, as far as it decides on what a pod can have.
type host struct {
	selinux, seccomp bool
	shm              string // the directory of POSIX shared memory
	// userns says that this process is in a user namespace: containerd is rootless.
	userns bool
	// canLowerScore says that processes made here may have a lower oom_score_adj than
	// this one, which ownScore is.
	canLowerScore bool
	ownScore      int
	procSys       string // where sysctls are
}

// thisHost finds the host that the shim is on.
func thisHost() (host, error) {
	h := host{
		selinux: process.HasSELinux(),
		seccomp: seccomp.IsEnabled(),
		shm:     "/dev/shm",
		userns:  userns.RunningInUserNS(),
		procSys: "/proc/sys",
	}
	var err error
	if h.ownScore, err = ownOOMScoreAdj(); err != nil {
		return host{}, err
	}
	// The kernel asks for the capability in the initial user namespace (kernel,
	// __set_oom_adj in fs/proc/base.c).
	h.canLowerScore = !h.userns && hasCapability(unix.CAP_SYS_RESOURCE)
	return h, nil
}

func ownOOMScoreAdj() (score int, err error) {
	const path = "/proc/self/oom_score_adj"
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	if _, err := fmt.Sscan(string(data), &score); err != nil {
		return 0, fmt.Errorf("cannot decode %s: %w", path, err)
	}
	return score, nil
}

// hasCapability says whether the calling thread has an effective capability. What cannot
// be found out is taken for no.
func hasCapability(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// sysctls are those of the pod and, unless the handler's options say otherwise, those that
// CRI adds for a network namespace of its own. Nobody has asked for the latter: where they
// cannot be set, they are left out.
func (c *podConfig) sysctls(o *HandlerOptions, h host) map[string]string {
	sysctls := make(map[string]string)
	add := func(key, value string) {
		path := filepath.Join(h.procSys, strings.ReplaceAll(key, ".", "/"))
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return // a kernel without it
		}
		sysctls[key] = value
	}
	if c.Linux.Security.Namespaces.Network != modeNode {
		if o.EnableUnprivilegedPorts {
			add("net.ipv4.ip_unprivileged_port_start", "0")
		}
		// A user namespace does not have all these groups.
		if o.EnableUnprivilegedICMP && !h.userns && c.userNamespace() == nil {
			add("net.ipv4.ping_group_range", "0 2147483647")
		}
	}
	for key, value := range c.Linux.Sysctls {
		sysctls[key] = value
	}
	return sysctls
}

// sandboxOOMScoreAdj is a sandbox's (defaultSandboxOOMAdj in containerd's
// internal/cri/server/podsandbox).
const sandboxOOMScoreAdj = -998

// oomScoreAdj is that of a sandbox's process: of the init of a shared PID namespace, if
// there is one. podsandbox fails where it may not be as low.
func oomScoreAdj(o *HandlerOptions, h host) int {
	if o.RestrictOOMScoreAdj || !h.canLowerScore {
		return max(sandboxOOMScoreAdj, h.ownScore)
	}
	return sandboxOOMScoreAdj
}
