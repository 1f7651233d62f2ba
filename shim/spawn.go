package shim

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenerFD is where a server finds the listener that `start` made: the first
// of exec.Cmd.ExtraFiles. `start` binds so that it knows the outcome before it
// answers, and so that containerd can connect before the server accepts.
const listenerFD = 3

// spawn starts this executable as the server of a group, in the same working
// directory, which is the bundle.
//
// Its stdio is /dev/null until it opens its log: containerd reads ours to the
// end of file, so it would wait for as long as the server keeps a copy open.
// Its process group is its own, so that a signal to containerd's from a
// terminal does not reach it.
func (c *call) spawn(b *bootstrap, listener *net.UnixListener) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("cannot start shim: %w", err)
	}
	socket, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("cannot pass on the listener: %w", err)
	}
	defer socket.Close()

	args := []string{"-namespace", c.namespace, "-id", c.id, "-address", b.grpcAddress}
	if b.debug {
		args = append(args, "-debug")
	}
	options, err := passOptions(b.options)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, args...)
	cmd.Env = serverEnvironment(os.Environ(), b.ttrpcAddress, options)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	// A core scheduling cookie is a thread's, and a child has that of the
	// thread which forked it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Getenv("SCHED_CORE") != "" {
		if err := newCoreSchedulingGroup(); err != nil {
			return nil, err
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start shim: %w", err)
	}
	return cmd, nil
}

// serverEnvironment returns the environment of a server that is started from
// the environment env. The last of several values of a name counts.
func serverEnvironment(env []string, ttrpcAddress, options string) []string {
	return append(env[:len(env):len(env)],
		ttrpcAddressEnv+"="+ttrpcAddress,
		optionsEnv+"="+options,
		// Its work is waiting, and what it does in system calls goes on in
		// threads beside. Each P has caches of its own, a span for each class
		// of sizes: a second one costs 0.4 MB.
		"GOMAXPROCS=1",
		withoutHugePages(),
	)
}

// newCoreSchedulingGroup gives the calling thread, and whatever it forks, a new
// core scheduling cookie, so that no other workload runs on the same core at
// the same time. containerd asks for it by SCHED_CORE in the environment.
// (https://docs.kernel.org/admin-guide/hw-vuln/core-scheduling.html)
func newCoreSchedulingGroup() error {
	err := unix.Prctl(unix.PR_SCHED_CORE, unix.PR_SCHED_CORE_CREATE, 0, unix.PR_SCHED_CORE_SCOPE_THREAD, 0)
	if err != nil {
		return fmt.Errorf("cannot create core scheduling group: %w", err)
	}
	return nil
}
