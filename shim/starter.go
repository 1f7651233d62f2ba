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

// starterEnv is the variable that holds the file descriptor of the pipe to the starter, if
// the starter is a Go process.
const starterEnv = "PAUSE_SHIM_STARTER"

// exitCode is the result of a call that another process has carried out. That process has
// already printed its error, if any.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// starter is the process that containerd has executed and waits for.
type starter struct {
	mu     sync.Mutex
	fd     int         // of the pipe to the starter; -1 after tell. Guarded by mu.
	watch  *time.Timer // guarded by mu
	socket string      // to remove if the starter is killed; guarded by mu
}

// watchInterval is how often the shim checks that the starter still lives.
const watchInterval = 100 * time.Millisecond

// takeStarter returns the starter of this process, or nil if there is none, and begins to
// watch it. containerd kills the starter when a deadline has passed, and then waits for
// the end of its output, which this process holds open.
func takeStarter() (*starter, error) {
	fd := entry.Starter()
	if text := os.Getenv(starterEnv); text != "" {
		os.Unsetenv(starterEnv)
		inherited, err := strconv.Atoi(text)
		if err != nil {
			return nil, fmt.Errorf("cannot decode $%s: %w", starterEnv, err)
		}
		// Package entry could fork here, but not in the process that executed this one.
		// That process is the starter; nothing waits for the one from package entry.
		if fd >= 0 {
			_ = entry.Tell(fd, 0)
		}
		fd = inherited
		unix.CloseOnExec(fd)
	}
	if fd < 0 {
		return nil, nil
	}
	if fd <= unix.Stderr { // detach will replace the standard streams.
		above, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, unix.Stderr+1)
		if err != nil {
			return nil, fmt.Errorf("cannot keep the pipe to the starter: %w", err)
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

// look ends this process, and removes its socket, if the starter has ended.
func (s *starter) look() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return
	}
	// poll(2) reports POLLERR for the write end of a pipe whose read end is closed.
	fds := []unix.PollFd{{Fd: int32(s.fd)}}
	if n, err := unix.Poll(fds, 0); err == nil && n > 0 && fds[0].Revents&unix.POLLERR != 0 {
		if s.socket != "" {
			_ = unlinkSocket(s.socket)
		}
		os.Exit(1)
	}
	s.watch.Reset(watchInterval)
}

// claimed names the socket to remove if the starter is killed.
func (s *starter) claimed(socket string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socket = socket
}

// tell lets the starter end with success. It fails if the starter has already ended.
func (s *starter) tell() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watch.Stop()
	fd := s.fd
	s.fd = -1
	if err := entry.Tell(fd, 0); err != nil {
		return fmt.Errorf("cannot tell the starter that the shim serves: containerd may have killed it: %w", err)
	}
	return nil
}

// executeAgain makes this process the starter, if package entry has not: it may not be
// linked as the entry point, or could not fork. A Go program has many threads, so it
// cannot fork(2) as package entry does; it has to execute itself again.
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

// The environment variables that a server sets for Go's runtime. Package entry sets the
// same ones if it is linked.
const (
	// maxProcs limits Go to one P, which is enough: a server mostly waits, and its system
	// calls run in threads that need no P. Each P caches a span for each size class, so a
	// second P costs 0.4 MB.
	maxProcs = "GOMAXPROCS=1"

	// noHugePages keeps the heap out of huge pages (package runtime, "Environment
	// Variables"): with transparent_hugepage=always the first byte in use would cost 2 MiB.
	// A GODEBUG that the operator has set is left alone.
	//
	// Not PR_SET_THP_DISABLE: fork and exec inherit that (prctl(2)), so it
	// would take huge pages from every container that the shim starts.
	noHugePages = "GODEBUG=disablethp=1"
)

// serverEnvironment returns env with the variables for Go's runtime, in place of a
// GOMAXPROCS in env. [restoreEnvironment] removes what it adds.
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

// restoreEnvironment removes the variables for Go's runtime. The runtime has read them,
// and an OCI runtime, which may be a Go program too, must not inherit them.
func restoreEnvironment() {
	os.Unsetenv("GOMAXPROCS")
	if "GODEBUG="+os.Getenv("GODEBUG") == noHugePages {
		os.Unsetenv("GODEBUG")
	}
}

// schedCoreEnv is set by containerd to ask for a core scheduling group.
const schedCoreEnv = "SCHED_CORE"

// leave separates this process from containerd.
func (c *call) leave(b *bootstrap, t tenancy) error {
	// A signal from a terminal to containerd's process group must not reach the shim.
	if err := unix.Setpgid(0, 0); err != nil {
		return fmt.Errorf("cannot leave the process group: %w", err)
	}
	// In a core scheduling group of its own, no other workload runs on the same core at the
	// same time. Child processes inherit the group
	// (https://docs.kernel.org/admin-guide/hw-vuln/core-scheduling.html).
	if os.Getenv(schedCoreEnv) != "" {
		if err := schedcore.Create(schedcore.ThreadGroup); err != nil {
			return fmt.Errorf("cannot create core scheduling group: %w", err)
		}
	}
	if cgroup := b.options.Runc.ShimCgroup; cgroup != "" {
		if err := c.config.JoinCgroup(cgroup, os.Getpid()); err != nil {
			return fmt.Errorf("cannot put the shim into cgroup %s: %w", cgroup, err)
		}
	}
	if t.shared {
		return nil // As many pods depend on it as on containerd, whose OOM score it has.
	}
	return adjustOOMScore()
}

// detach replaces the standard streams with /dev/null: containerd reads the answer to the
// end of file, so it would wait for as long as they are open. detach also clears the word
// "start" from what ps(1) shows, since the shim has started.
func detach() error {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return fmt.Errorf("cannot replace standard stream %d with %s: %w", fd, os.DevNull, err)
		}
	}
	// Go's runtime does not copy the arguments: this is the memory from which the kernel
	// reads /proc/<pid>/cmdline.
	action := os.Args[len(os.Args)-1]
	clear(unsafe.Slice(unsafe.StringData(action), len(action)))
	return nil
}
