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
// The shim is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): the init of
// a container and every process executed in it become its children once the OCI
// runtime that made them has ended. Such a child is claimed by its pid, and its
// status waits in the kernel, in the zombie, until its owner asks. So a process
// that ends before anybody has claimed it is not lost, provided that nothing
// reaps it blindly: while an OCI runtime is at work, which is said by hold, a child
// may be a process whose pid is not known yet. So children that nobody owns, such as
// orphans of a container in the host's PID namespace, are reaped on SIGCHLD when no
// OCI runtime is at work, or if they are older than all that are: those have made
// others.
type Reaper struct {
	mu       sync.Mutex
	holds    map[*hold]struct{} // guarded by mu: OCI runtimes at work
	searched time.Time          // guarded by mu: when holds began, or old orphans were looked for since
	claimed  map[int]struct{}   // guarded by mu: pids that have an owner
}

// hold is of an OCI runtime at work, which began not before that time, as of [StartTime].
type hold struct{ since uint64 }

// NewReaper starts to reap orphans until ctx ends.
func NewReaper(ctx context.Context) *Reaper {
	r := &Reaper{holds: make(map[*hold]struct{}), claimed: make(map[int]struct{})}
	go func() {
		// One waiting signal is enough: every call of reapOrphans reaps all there are.
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGCHLD)
		defer signal.Stop(signals)
		r.reapOrphans() // those that have ended before
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

// Hold keeps unclaimed children unreaped that begin before release is called.
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
	reaped bool // guarded by mu: the pid may belong to another process by now
}

// Claim makes the caller the owner of the child pid: it must call wait, once. A
// child can be claimed only while it cannot be reaped: under hold.
func (r *Reaper) Claim(pid int) *Child {
	r.mu.Lock()
	r.claimed[pid] = struct{}{}
	r.mu.Unlock()
	return &Child{reaper: r, Pid: pid}
}

// reapOrphans reaps the zombies that nobody owns, under hold no more than the old ones.
func (r *Reaper) reapOrphans() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.holds) == 0 {
		r.reapAll()
		return
	}
	// Most often there will be no hold in a moment.
	if time.Since(r.searched) >= searchInterval {
		r.searched = time.Now()
		r.reapOld()
	}
}

// reapAll looks at one zombie after another without reaping it (WNOWAIT), so that an
// owned one keeps its status; the kernel shows the same one until it is gone, hence the
// return: when its owner has reaped it, wait comes back here for the rest. The caller
// holds mu.
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

// searchInterval is how often zombies are looked for while there are always holds, as
// when a probe is executed in some container at any time.
const searchInterval = time.Second

// reapOld reaps the zombies that nobody owns, and that began before all that are at work
// now. The caller holds mu.
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
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // nothing happens to one that lives
		}
	}
}

// childrenOfAll returns the pids of the children of all threads, none if the kernel
// was built without CONFIG_PROC_CHILDREN (proc_pid_task(5)).
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

// Wait blocks until the child has ended, reaps it and returns its exit status as
// a shell would: 128 plus the signal if one ended it.
func (c *Child) Wait() (int, error) {
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

// Signal sends a signal to the child. Its pid cannot be another process's,
// because it is not reaped meanwhile.
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
	// unknownStatus is what containerd calls containerd.UnknownExitStatus.
	unknownStatus = 255
	// ExitSignalBase is added to the signal that ended a process, as sh(1) does.
	ExitSignalBase = 128
)

// AwaitExit blocks until the child pid is a zombie. Its error says that there is no such
// child. A goroutine parked on a pidfd costs no thread; where there is none to be had, a
// thread waits: kernels before 5.10 know no non-blocking pidfd, descriptors may be used up,
// memory or the poller's room as well, and a seccomp filter may know no pidfd_open(2).
func AwaitExit(pid int) error {
	if err := awaitPidfd(pid); err == nil {
		return nil
	}
	return awaitPid(pid)
}

// awaitPidfd is awaitExit without a thread. It fails if there is no pidfd, and if the
// process has ended as another's child.
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
			// It may not be a child yet: an OCI runtime has forked twice, and what is
			// between outlives the runtime for a moment.
			return IsReady(int(fd), unix.POLLIN) // it has ended (pidfd_open(2))
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

// notYetAChild is how often awaitPid looks whether a process has become a child.
const notYetAChild = 10 * time.Millisecond

// awaitPid is awaitExit in a thread, without a descriptor.
func awaitPid(pid int) error {
	for {
		exists := !errors.Is(unix.Kill(pid, 0), unix.ESRCH) // before waitid: it may become a child, and end, after that
		err := IgnoringEINTR(func() error {
			return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		})
		if !errors.Is(err, unix.ECHILD) || !exists {
			return os.NewSyscallError("waitid", err)
		}
		time.Sleep(notYetAChild)
	}
}

// IgnoringEINTR calls f again as long as a signal interrupts it.
func IgnoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
