package reap

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Reaper collects the exit statuses of the shim's children.
//
// The shim is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): when an OCI runtime
// ends, the container init or exec that it has made becomes a child of the shim. The shim
// claims such a child by its pid. The child's exit status waits in the kernel, in the
// zombie, until its owner asks for it.
//
// So even a child that ends before it is claimed is not lost, as long as the reaper leaves
// it alone. While an OCI runtime is at work, which Hold tells the reaper, any unclaimed
// child may be one whose pid is not known yet. Orphans, such as those of a container in the
// host's PID namespace, are unclaimed as well. The reaper reaps an unclaimed child, on
// SIGCHLD, only if no OCI runtime is at work, or if the child started before all OCI
// runtimes at work, which therefore cannot have made it.
type Reaper struct {
	mu       sync.Mutex
	holds    map[*hold]struct{} // guarded by mu: OCI runtimes at work
	searched time.Time          // guarded by mu: when the first hold began, or reapOld last ran
	claimed  map[int]struct{}   // guarded by mu: pids that have an owner
}

// hold stands for an OCI runtime at work. It started at since or later; the unit is that of
// [StartTime].
type hold struct{ since uint64 }

// NewReaper returns a reaper, which reaps orphans until ctx ends. claimed are the pids of
// children that are not orphans, which are to be claimed (see Claim).
func NewReaper(ctx context.Context, claimed ...int) *Reaper {
	r := &Reaper{holds: make(map[*hold]struct{}), claimed: make(map[int]struct{})}
	for _, pid := range claimed {
		r.claimed[pid] = struct{}{}
	}
	go func() {
		// A buffer for one signal is enough: reapOrphans reaps all orphans that have ended.
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGCHLD)
		defer signal.Stop(signals)
		r.reapOrphans() // those that ended before Notify
		for {
			select {
			case <-signals:
				r.reapOrphans()
			case <-ctx.Done():
				return
			}
		}
	}()
	return r
}

// Hold keeps the reaper from reaping unclaimed children that start between now and the call
// of release. It must be called before a child is started that is to be claimed.
func (r *Reaper) Hold() (release func()) {
	h := &hold{since: now()}
	r.mu.Lock()
	if len(r.holds) == 0 {
		r.searched = time.Now()
	}
	r.holds[h] = struct{}{}
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		delete(r.holds, h)
		r.mu.Unlock()
		r.reapOrphans()
	}
}

// Child is a child of the shim that has an owner.
type Child struct {
	reaper *Reaper
	Pid    int

	mu     sync.Mutex
	reaped bool // guarded by mu: if true, the pid may be another process's
}

// Claim makes the caller the owner of the child pid. The caller must call Wait or Reap once. Claim
// must be called before the release of the Hold under which the child was started.
func (r *Reaper) Claim(pid int) *Child {
	r.mu.Lock()
	r.claimed[pid] = struct{}{}
	r.mu.Unlock()
	return &Child{reaper: r, Pid: pid}
}

// Reaped returns a child that has been reaped already, by the program before this one.
func (r *Reaper) Reaped(pid int) *Child { return &Child{reaper: r, Pid: pid, reaped: true} }

// reapOrphans reaps the zombies that nobody owns; during a hold, only the old ones.
func (r *Reaper) reapOrphans() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.holds) == 0 {
		r.reapAll()
		return
	}
	// The search is seldom needed: most holds end soon, and reapAll follows.
	if time.Since(r.searched) >= searchInterval {
		r.searched = time.Now()
		r.reapOld()
	}
}

// reapAll reaps the zombies that nobody owns. It looks at each before it reaps it (WNOWAIT),
// so that a claimed one keeps its status. It must stop at a claimed zombie, because the
// kernel would show the same one again; once the owner has reaped that, Wait calls
// reapOrphans for the rest. The caller holds mu.
func (r *Reaper) reapAll() {
	for {
		var info unix.Siginfo
		err := IgnoringEINTR(func() error {
			return unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		})
		pid := siginfoPid(&info)
		if err != nil || pid == 0 {
			return
		}
		if _, ok := r.claimed[pid]; ok {
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
			return
		}
	}
}

// searchInterval is the shortest time between searches for old zombies. Without these,
// zombies would pile up if holds never ceased, as when there is always a probe being executed
// in some container.
const searchInterval = time.Second

// reapOld reaps the zombies that nobody owns and that started before all holds. The caller
// holds mu.
func (r *Reaper) reapOld() {
	oldest := uint64(math.MaxUint64)
	for h := range r.holds {
		oldest = min(oldest, h.since)
	}
	for _, pid := range childrenOfAll() {
		if _, ok := r.claimed[pid]; ok {
			continue
		}
		if start, err := StartTime(pid); err == nil && start < oldest {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // it does nothing if the child lives
		}
	}
}

// childrenOfAll returns the pids of the children of all threads. It returns none if the
// kernel was built without CONFIG_PROC_CHILDREN (proc_pid_task(5)).
func childrenOfAll() (pids []int) {
	files, _ := filepath.Glob("/proc/self/task/*/children") // the pattern is well-formed
	for _, file := range files {
		text, _ := os.ReadFile(file) // the thread may have ended
		for field := range strings.FieldsSeq(string(text)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// Wait waits until the child has ended, and reaps it.
func (c *Child) Wait() (int, error) {
	c.Await()
	return c.Reap()
}

// Await waits until the child has ended, and does not reap it: its exit status stays in the
// kernel. It is for children that another program may reap, see package carry.
func (c *Child) Await() { _ = AwaitExit(c.Pid) } // Reap returns the same error

// Reap is called once, when the child has ended. It returns the child's exit status as a
// shell would: 128 plus the number of the signal if one ended the child. With an error, the
// status is 255.
func (c *Child) Reap() (int, error) {
	err := AwaitExit(c.Pid)
	var status unix.WaitStatus
	c.mu.Lock()
	c.reaped = true
	if err == nil {
		err = IgnoringEINTR(func() error {
			_, err := unix.Wait4(c.Pid, &status, 0, nil)
			return err
		})
	}
	c.mu.Unlock()
	c.reaper.disown(c.Pid)
	if err != nil {
		return unknownStatus, fmt.Errorf("cannot wait for process %d: %w", c.Pid, err)
	}
	if status.Signaled() {
		return ExitSignalBase + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// Signal sends a signal to the child. It fails with [errdefs.ErrNotFound] if the child has
// been reaped. The pid cannot be another process's, because Wait does not reap the child
// meanwhile.
func (c *Child) Signal(sig unix.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped {
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	}
	if err := unix.Kill(c.Pid, sig); err != nil {
		return fmt.Errorf("cannot send signal %d to process %d: %w", int(sig), c.Pid, err)
	}
	return nil
}

func (r *Reaper) disown(pid int) {
	r.mu.Lock()
	delete(r.claimed, pid)
	r.mu.Unlock()
	r.reapOrphans()
}

const (
	// unknownStatus is the same as containerd.UnknownExitStatus in containerd's client.
	unknownStatus = 255
	// ExitSignalBase plus a signal's number is the exit status of a process that the signal
	// has ended, as in sh(1).
	ExitSignalBase = 128
)

// AwaitExit waits until the child pid has ended, and does not reap it. It fails only if there
// is no such child.
//
// It waits on a pidfd, which costs no thread. If it cannot, it waits in a thread: Linux has
// non-blocking pidfds since 5.10, a seccomp filter may refuse pidfd_open(2), and there may be
// no free descriptors, memory or room in the poller.
func AwaitExit(pid int) error {
	if err := awaitPidfd(pid); err == nil {
		return nil
	}
	return awaitPid(pid)
}

// awaitPidfd is AwaitExit without a thread. It fails if there is no pidfd, or if the process
// has ended as the child of another process.
func awaitPidfd(pid int) error {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var werr error
	err = conn.Read(func(fd uintptr) bool {
		werr = unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOWAIT, nil)
		switch {
		case errors.Is(werr, unix.ECHILD):
			// It may not be a child yet: an OCI runtime forks twice, and the process in
			// between may outlive the runtime for a moment.
			return IsReady(int(fd), unix.POLLIN) // true once it has ended (pidfd_open(2))
		case errors.Is(werr, unix.EAGAIN), errors.Is(werr, unix.EINTR):
			return false
		}
		return true
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("waitid", werr)
}

// notYetAChild is how often awaitPid checks whether a process has become a child.
const notYetAChild = 10 * time.Millisecond

// awaitPid is AwaitExit without a descriptor: it waits in a thread.
func awaitPid(pid int) error {
	for {
		exists := !errors.Is(unix.Kill(pid, 0), unix.ESRCH) // before waitid, as it may become a child and end after that
		err := IgnoringEINTR(func() error {
			return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		})
		if !errors.Is(err, unix.ECHILD) || !exists {
			return os.NewSyscallError("waitid", err)
		}
		time.Sleep(notYetAChild)
	}
}

// IgnoringEINTR calls f until it returns anything but EINTR, the error of a system
// call that a signal has interrupted.
func IgnoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
