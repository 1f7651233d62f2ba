package shim

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// listenerFD is where a server finds the listener that `start` made: the first
// behind the standard streams. `start` binds so that it knows the outcome before it
// answers, and so that containerd can connect before the server accepts.
const listenerFD = 3

// spawn starts this executable as the server of a group, in the same working
// directory, which is the bundle.
//
// Its stdio is /dev/null until it opens its log: containerd reads ours to the
// end of file, so it would wait for as long as the server keeps a copy open.
// Its process group is its own, so that a signal to containerd's from a
// terminal does not reach it.
//
// It is not started by os/exec, which first forks another process to find out what
// the kernel can do (checkPidfd in package os): half a millisecond of each pod.
func (c *call) spawn(b *bootstrap, listener *net.UnixListener) (pid int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("cannot start shim: %w", err)
	}
	socket, err := listener.File()
	if err != nil {
		return 0, fmt.Errorf("cannot pass on the listener: %w", err)
	}
	defer socket.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()

	args := []string{self, "-namespace", c.namespace, "-id", c.id, "-address", b.grpcAddress}
	if b.debug {
		args = append(args, "-debug")
	}
	options, err := passOptions(b.options)
	if err != nil {
		return 0, err
	}

	// A core scheduling cookie is a thread's, and a child has that of the
	// thread which forked it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if os.Getenv("SCHED_CORE") != "" {
		if err := newCoreSchedulingGroup(); err != nil {
			return 0, err
		}
	}
	pid, err = syscall.ForkExec(self, args, &syscall.ProcAttr{
		Env:   serverEnvironment(os.Environ(), b.ttrpcAddress, options),
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), listenerFD: socket.Fd()},
		Sys:   &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("cannot start shim: %w", os.NewSyscallError("exec", err))
	}
	return pid, nil
}

// serverEnvironment returns the environment of a server that is started from
// the environment env.
func serverEnvironment(env []string, ttrpcAddress, options string) []string {
	own := []string{
		ttrpcAddressEnv + "=" + ttrpcAddress,
		optionsEnv + "=" + options,
		// Its work is waiting, and what it does in system calls goes on in
		// threads beside. Each P has caches of its own, a span for each class
		// of sizes: a second one costs 0.4 MB.
		"GOMAXPROCS=1",
		withoutHugePages(),
	}
	isOwn := func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return slices.ContainsFunc(own, func(o string) bool { return strings.HasPrefix(o, name+"=") })
	}
	return append(slices.DeleteFunc(slices.Clone(env), isOwn), own...)
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
