package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// freeRounds is how often Signal looks for newly forked processes before it freezes the cgroup.
	freeRounds = 5
	// freezeTimeout bounds that freeze; if it expires, Signal goes on without the freeze.
	freezeTimeout = 2 * time.Second
	// maxRounds is when Signal gives up on processes that fork faster than it can signal them.
	maxRounds = 100
	// maxHandles is the number of pidfds held at a time.
	maxHandles = 256
)

// Signal sends a signal to every process of the cgroup and of those below, including children that they fork meanwhile.
// SIGKILL reaches frozen processes too: on v1, where a frozen process does not die, Signal thaws the cgroup and those
// below. A process that ends before the signal reaches it is no error, nor is a cgroup without processes. A cgroup that
// is gone is ErrNotFound. If the caller is in the cgroup, the error is ErrFailedPrecondition and no signal is sent.
//
// Between the read of a pid and the signal, the pid can pass to another process. So Signal pins the process with a
// pidfd, and signals it only if its pid is still in the cgroup (pidfd_open(2)). Where pidfds cannot be had, as before
// Linux 5.3, the signal follows the check as closely as possible.
//
// The library has only SIGKILL, and only on v2. Before Linux 5.14 it reads the pids without waiting for its freeze, so
// that a fork escapes.
func (c *Cgroup) Signal(sig unix.Signal) error {
	pids, err := c.Pids()
	if err != nil {
		return err
	}
	if err = refuseSelf(pids); err == nil {
		err = c.signal(sig, pids)
	}
	if err != nil {
		return fmt.Errorf("cannot send %s to cgroup %s: %w", unix.SignalName(sig), c.path, err)
	}
	return nil
}

func (c *Cgroup) signal(sig unix.Signal, pids []int) error {
	if sig != unix.SIGKILL {
		return c.signalEach(sig, pids)
	}
	if done, err := c.tree.killAll(); done || err != nil {
		return err
	}
	err := c.signalEach(sig, pids)
	_, thawErr := c.tree.releaseKilled()
	return errors.Join(err, thawErr)
}

// LetDie lets killed processes of the cgroup and of those below die. It kills nothing itself. On v1 a frozen process
// does not die, so LetDie thaws them all until none is left or ctx ends: a container can freeze a cgroup below its own,
// again and again while it dies. On v2 a frozen process dies like any other (cgroup-v2.rst, "cgroup.freeze"), and
// LetDie returns at once. A cgroup that is gone is no error.
func (c *Cgroup) LetDie(ctx context.Context) error {
	err := poll(ctx, func(int) (bool, error) { return c.tree.releaseKilled() })
	if err != nil {
		return fmt.Errorf("cannot let killed processes of cgroup %s die: %w", c.path, err)
	}
	return nil
}

// signalEach sends the signal to one process after the other until it finds no new one in the cgroup. If new ones keep
// coming, it freezes the cgroup to get ahead of them.
func (c *Cgroup) signalEach(sig unix.Signal, pids []int) error {
	s := signaller{sig: sig, list: c.Pids, seen: make(map[int]bool)}
	var thaw func()
	defer func() {
		if thaw != nil {
			thaw()
		}
	}()
	for round := 1; ; round++ {
		var err error
		pids, err = s.round(pids)
		switch {
		case errdefs.IsNotFound(err):
			return s.failures
		case err != nil:
			return errors.Join(s.failures, err)
		case !slices.ContainsFunc(pids, s.isNew):
			return s.failures
		case round == freeRounds:
			thaw = c.freezeForSignal()
		case round == maxRounds:
			return errors.Join(s.failures, errors.New("its processes fork faster than they can be signalled"))
		}
	}
}

// freezeForSignal freezes the cgroup and returns a function that thaws it, or nil if the cgroup was frozen before or
// cannot be frozen.
func (c *Cgroup) freezeForSignal() (thaw func()) {
	if frozen, err := c.Frozen(); frozen || err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), freezeTimeout)
	defer cancel()
	if c.Freeze(ctx) != nil {
		return nil
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), freezeTimeout)
		defer cancel()
		_ = c.Thaw(ctx)
	}
}

// signaller sends one signal to processes that come and go.
type signaller struct {
	sig      unix.Signal
	list     func() ([]int, error) // the pids in the cgroup
	seen     map[int]bool          // has had the signal
	failures error
}

func (s *signaller) isNew(pid int) bool { return !s.seen[pid] }

// round signals those of pids that have not had the signal, and returns the pids that are in the cgroup afterwards.
func (s *signaller) round(pids []int) ([]int, error) {
	todo := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return s.seen[pid] })
	for batch := range slices.Chunk(todo, maxHandles) {
		if err := s.batch(batch); err != nil {
			return nil, err
		}
	}
	return s.list()
}

// batch pins the processes, lists the cgroup again, and signals the pinned processes that are still in it.
func (s *signaller) batch(batch []int) error {
	handles := make([]int, len(batch))
	for i, pid := range batch {
		var err error
		if handles[i], err = unix.PidfdOpen(pid, 0); err != nil {
			handles[i] = -1
		}
		if handles[i] >= 0 {
			defer unix.Close(handles[i])
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return s.batchByPid(batch)
		}
	}
	members, err := s.list()
	if err != nil {
		return err
	}
	for i, pid := range batch {
		if handles[i] >= 0 && slices.Contains(members, pid) {
			s.record(pid, unix.PidfdSendSignal(handles[i], s.sig, nil, 0))
		}
	}
	return nil
}

// batchByPid is batch without pidfds: the kernel has none, a seccomp filter refuses them, or no descriptors are left.
func (s *signaller) batchByPid(batch []int) error {
	members, err := s.list()
	if err != nil {
		return err
	}
	for _, pid := range batch {
		if slices.Contains(members, pid) {
			s.record(pid, unix.Kill(pid, s.sig))
		}
	}
	return nil
}

// record notes the outcome. It does not note a process that was gone, as its pid may pass to another one in this
// cgroup.
func (s *signaller) record(pid int, err error) {
	switch {
	case err == nil:
		s.seen[pid] = true
	case !errors.Is(err, unix.ESRCH):
		s.fail(pid, err)
	}
}

func (s *signaller) fail(pid int, err error) {
	s.seen[pid] = true
	s.failures = errors.Join(s.failures, fmt.Errorf("process %d: %w", pid, err))
}

func (t *v1Tree) killAll() (bool, error) { return false, nil }

// releaseKilled thaws what is frozen or about to be, from the top down: a cgroup below a frozen one stays frozen.
func (t *v1Tree) releaseKilled() (bool, error) {
	top := t.dir("freezer")
	if top == "" {
		return true, nil
	}
	var left []int
	err := walk(top, func(dir string) error {
		file := filepath.Join(dir, "freezer.state")
		state, err := readFile(file)
		if err == nil && strings.TrimSpace(state) != "THAWED" {
			err = writeFile(file, "THAWED")
		}
		if err != nil {
			return err
		}
		return readPids(dir, &left)
	})
	if absent(err) {
		return true, nil
	}
	// The shim itself is not killed, if it was configured to be in the cgroup of its container.
	left = slices.DeleteFunc(left, func(pid int) bool { return pid == os.Getpid() })
	return len(left) == 0, err
}

// killAll uses cgroup.kill (Linux 5.14), which also gets processes that are being forked. A threaded cgroup refuses it.
func (t *v2Tree) killAll() (bool, error) {
	err := writeFile(filepath.Join(t.dir, "cgroup.kill"), "1")
	if absent(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

func (t *v2Tree) releaseKilled() (bool, error) { return true, nil }
