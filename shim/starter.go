package shim

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/containerd/containerd/v2/pkg/schedcore"
	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/shim/entry"
)

// starterEnv is the file descriptor of the pipe to the starter, if that is a Go process.
const starterEnv = "PAUSE_SHIM_STARTER"

// exitCode is the error of a call that has been done by another process, which has
// said already what there is to say.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// starter is the process that containerd has executed and waits for.
type starter struct {
	mu     sync.Mutex
	fd     int         // of the pipe to it; -1 when it has been told. Guarded by mu.
	watch  *time.Timer // guarded by mu
	socket string      // guarded by mu: what is to be removed if the starter is killed
}

// watchInterval is how often it is looked whether the starter still lives.
const watchInterval = 100 * time.Millisecond

// takeStarter returns the starter, nil if this process has none, and begins to watch it:
// containerd kills it when a deadline has passed, and then waits for the end of its
// output, which this process has open.
func takeStarter() (*starter, error) {
	fd := entry.Starter()
	if text := os.Getenv(starterEnv); text != "" {
		os.Unsetenv(starterEnv)
		inherited, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("cannot decode $%s: %w", starterEnv, err)
		}
		if fd >= 0 { // Package entry could fork this time: its starter has nobody to wait for.
			_ = entry.Tell(fd, 0)
		}
		fd = inherited
		unix.CloseOnExec(fd)
	}
	if fd < 0 {
		return nil, nil
	}
	if fd <= unix.Stderr { // The standard streams are to be replaced.
		above, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, unix.Stderr+1)
		if err != nil {
			return nil, fmt.Errorf("cannot keep the pipe to the process that waits for the shim: %w", err)
		}
		unix.Close(fd)
		fd = above
	}
	s := &starter{fd: fd}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch = time.AfterFunc(watchInterval, s.look)
	return s, nil
}

// look ends this process if the starter has ended.
func (s *starter) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	// The end of a pipe that nobody reads from is in error (poll(2)).
	fds := []unix.PollFd{{Fd: int32(s.fd)}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0 {
		if s.socket != "" {
			_ = unlinkSocket(s.socket)
		}
		os.Exit(1)
	}
	s.watch.Reset(watchInterval)
}

// claimed tells what is to be removed if the starter is killed.
func (s *starter) claimed(socket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socket = socket
}

// tell lets the starter end with success. It fails if it has ended already.
func (s *starter) tell() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch.Stop()
	fd := s.fd
	s.fd = -1
	if err := entry.Tell(fd, 0); err != nil {
		return fmt.Errorf("cannot answer: nobody waits for it: %w", err)
	}
	return nil
}

// executeAgain makes this process the starter, if package entry has not been linked as
// the entry point: what that does by fork(2), a Go program, which has many threads, can
// do only by executing itself again.
func executeAgain() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot start shim: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot start shim: %w", err)
	}
	defer r.Close()
	pid, err := syscall.ForkExec(self, os.Args, &syscall.ProcAttr{
		Env:   append(serverEnvironment(os.Environ()), starterEnv+"=3"),
		Files: []uintptr{0, 1, 2, w.Fd()},
	})
	w.Close()
	if err != nil {
		return fmt.Errorf("cannot start shim: %w", os.NewSyscallError("exec", err))
	}
	var code [1]byte
	if n, _ := r.Read(code[:]); n == 1 {
		return exitCode(code[0])
	}
	var status unix.WaitStatus
	_, err = unix.Wait4(pid, &status, 0, nil)
	for errors.Is(err, unix.EINTR) {
		_, err = unix.Wait4(pid, &status, 0, nil)
	}
	switch {
	case err != nil:
		return fmt.Errorf("cannot wait for shim: %w", err)
	case status.Signaled():
		return exitCode(128 + int(status.Signal()))
	}
	return exitCode(status.ExitStatus())
}

// What Go's runtime is to find in the environment of a server when it starts. Package entry
// puts the same there if it is linked.
const (
	// maxProcs is enough: the work is waiting, and what a server does in system calls goes on in
	// threads beside. Each P has caches of its own, a span for each class of sizes: a second
	// one costs 0.4 MB.
	maxProcs = "GOMAXPROCS=1"

	// noHugePages keeps the heap from huge pages (package runtime, "Environment Variables"): with
	// transparent_hugepage=always the first byte in use would cost 2 MiB. An operator's own
	// setting is left alone.
	//
	// Not PR_SET_THP_DISABLE: fork and exec inherit that (prctl(2)), so it
	// would take huge pages from every container that the shim starts.
	noHugePages = "GODEBUG=disablethp=1"
)

// serverEnvironment returns the environment of a server that is executed from
// the environment env. [restoreEnvironment] takes back what it adds.
func serverEnvironment(env []string) []string {
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(entry string) bool { return strings.HasPrefix(entry, name+"=") })
	}
	own := append(slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		return strings.HasPrefix(entry, "GOMAXPROCS=")
	}), maxProcs)
	if !has("GODEBUG") {
		own = append(own, noHugePages)
	}
	return own
}

// restoreEnvironment takes back what was put into the environment for Go's runtime: it has
// been read, and is not meant for the OCI runtime, which is a Go program, too.
func restoreEnvironment() {
	os.Unsetenv("GOMAXPROCS")
	if "GODEBUG="+os.Getenv("GODEBUG") == noHugePages {
		os.Unsetenv("GODEBUG")
	}
}

// leave makes this process one that is apart from containerd.
func (c *call) leave(b *bootstrap) error {
	// A signal to containerd's process group from a terminal must not reach it.
	if err := unix.Setpgid(0, 0); err != nil {
		return fmt.Errorf("cannot leave the process group: %w", err)
	}
	// containerd asks for it, so that no other workload runs on the same core at the same time
	// (https://docs.kernel.org/admin-guide/hw-vuln/core-scheduling.html). What is forked inherits it.
	if os.Getenv("SCHED_CORE") != "" {
		if err := schedcore.Create(schedcore.ThreadGroup); err != nil {
			return fmt.Errorf("cannot create core scheduling group: %w", err)
		}
	}
	if cgroup := b.options.Runc.ShimCgroup; cgroup != "" {
		if err := c.config.JoinCgroup(cgroup, os.Getpid()); err != nil {
			return fmt.Errorf("cannot put the shim into its cgroup: %w", err)
		}
	}
	return adjustOOMScore()
}

// detach makes /dev/null of the standard streams: containerd reads what is the answer to
// the end of file, so it would wait for as long as they are open. And it takes the word
// "start" out of what ps(1) shows, as this process is no longer about to.
func detach() error {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return fmt.Errorf("cannot replace a standard stream: %w", err)
		}
	}
	// The strings are where the kernel has put them, from which it makes
	// /proc/<pid>/cmdline.
	action := os.Args[len(os.Args)-1]
	clear(unsafe.Slice(unsafe.StringData(action), len(action)))
	return nil
}
