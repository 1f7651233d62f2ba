package task

// The defaults of a pod, and the properties of the host on which they depend.

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

// host has the properties of the host that decide what a pod can have.
type host struct {
	selinux, seccomp bool
	shm              string // the directory of POSIX shared memory
	// userns says that this process is in a user namespace: containerd is rootless.
	userns bool
	// canLowerScore says that the shim may give processes a lower oom_score_adj than its
	// own, which is ownScore.
	canLowerScore bool
	ownScore      int
	procSys       string // the directory of sysctls
}

// thisHost returns the properties of the host that the shim runs on.
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
	// The kernel wants the capability in the initial user namespace (__set_oom_adj in
	// fs/proc/base.c).
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

// hasCapability reports whether the calling thread has an effective capability; false if
// that cannot be found out.
func hasCapability(capability uint) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}

// sysctls returns the pod's sysctls and, unless the handler's options turn them off,
// those that CRI adds to a pod with its own network namespace. As nobody asked for the
// latter, they are left out where they cannot be set.
func (c *podConfig) sysctls(o *HandlerOptions, h host) map[string]string {
	sysctls := make(map[string]string)
	add := func(key, value string) {
		path := filepath.Join(h.procSys, strings.ReplaceAll(key, ".", "/"))
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return // this kernel does not have it
		}
		sysctls[key] = value
	}
	if c.Linux.Security.Namespaces.Network != modeNode {
		if o.EnableUnprivilegedPorts {
			add("net.ipv4.ip_unprivileged_port_start", "0")
		}
		// A user namespace does not map all these groups.
		if o.EnableUnprivilegedICMP && !h.userns && c.userNamespace() == nil {
			add("net.ipv4.ping_group_range", "0 2147483647")
		}
	}
	for key, value := range c.Linux.Sysctls {
		sysctls[key] = value
	}
	return sysctls
}

// sandboxOOMScoreAdj is the oom_score_adj of a sandbox (defaultSandboxOOMAdj in
// containerd's internal/cri/server/podsandbox).
const sandboxOOMScoreAdj = -998

// oomScoreAdj returns the oom_score_adj of the only process that a sandbox can have, the
// init of a shared PID namespace. Where that may not be as low as CRI's, podsandbox
// fails; here it is as low as it may be.
func oomScoreAdj(o *HandlerOptions, h host) int {
	if o.RestrictOOMScoreAdj || !h.canLowerScore {
		return max(sandboxOOMScoreAdj, h.ownScore)
	}
	return sandboxOOMScoreAdj
}
