package cgroups

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// WatchOOM calls f once for each process that the kernel's OOM killer kills in the cgroup, or below it, from now on. On
// v2 with memory.oom.group, where the kernel kills all processes of a cgroup at once, it calls f once for all of them.
// The calls come one after the other, most of them from a goroutine of the watch. The removal of the cgroup is not
// reported.
//
// since is the count at which an earlier watch of the cgroup has stopped: this one reports the kills since then, too. It
// is nil for kills from now on.
//
// stop reports what has been counted so far, ends the watch, and returns the count: once stop has returned, f is not
// called any more. The kernel counts before it kills (__oom_kill_process, mm/oom_kill.c), so a stop between the end of a
// process and the removal of its cgroup misses nothing, however late the kernel's notice would come. stop may be called
// more than once, but not from f, as it waits for f. Without stop, descriptors leak.
//
// An idle watch costs a sleeping goroutine and its descriptors, one on v1, three on v2; no thread and no inotify
// instance, of which a user has 128 by default.
//
// A host without the memory controller is ErrNotImplemented, a cgroup that is gone ErrNotFound.
func (c *Cgroup) WatchOOM(since *OOMCount, f func()) (stop func() OOMCount, err error) {
	stop, err = c.tree.watchOOM(since, f)
	if err != nil {
		return nil, fmt.Errorf("cannot watch cgroup %s for OOM kills: %w", c.path, notFound(err))
	}
	return stop, nil
}

// OOMCount is what a watch for OOM kills has counted.
type OOMCount struct {
	Kills  uint64 `json:"kills"`            // of processes
	Groups uint64 `json:"groups,omitempty"` // of whole groups, on v2
	// Early says that a group has been counted that the kernel had not counted yet, and InGroups that there has been
	// one (see v2Kills).
	Early    bool `json:"early,omitempty"`
	InGroups bool `json:"in_groups,omitempty"`
}

// oomWatch reports the increase of a count of kills.
type oomWatch struct {
	report  func()
	count   func() (uint64, error) // nil if the kernel does not count
	counted func() OOMCount        // what count has seen so far, for a later watch; its caller holds mu
	unit    *unitWatch             // nil if the cgroup is in no slice, and on v1
	stopped chan struct{}

	// mu is held over a count and the reports of its growth, and guards what follows.
	mu   sync.Mutex
	last uint64
	over bool // nothing is counted or reported any more
}

func newOOMWatch(report func()) *oomWatch {
	return &oomWatch{report: report, stopped: make(chan struct{}), counted: func() OOMCount { return OOMCount{} }}
}

var errOver = errors.New("the watch is over")

// check reports what was added to the count since the last check, and returns how much that was.
func (w *oomWatch) check() (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return 0, errOver
	}
	return w.checkLocked()
}

func (w *oomWatch) checkLocked() (uint64, error) {
	now, err := w.count()
	if err != nil {
		return 0, err
	}
	added := growth(w.last, now)
	w.last = now
	w.reportLocked(added)
	return added, nil
}

// reportTimes reports n kills that cannot be counted.
func (w *oomWatch) reportTimes(n uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.over {
		w.reportLocked(n)
	}
}

// growth returns the increase of a count that can also fall: v1's is a sum, which loses the kills of a cgroup below
// when that is removed.
func growth(from, to uint64) uint64 {
	if to < from {
		return 0
	}
	return to - from
}

func (w *oomWatch) reportLocked(n uint64) {
	for range n {
		w.report()
	}
}

// finish ends the watch with a last check, and returns the count. If the cgroup is gone, the slice around it may know of
// another kill.
func (w *oomWatch) finish() OOMCount {
	if w.unit != nil {
		watchedSlices.Lock()
		defer watchedSlices.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return w.counted()
	}
	if w.count != nil {
		if _, err := w.checkLocked(); absent(err) && w.unit != nil && w.unit.lost(w) {
			w.reportLocked(1)
		}
	}
	if w.unit != nil {
		w.unit.leave(w)
	}
	w.over = true
	close(w.stopped)
	return w.counted()
}

// watchOOM uses the eventfd that cgroup.event_control ties to memory.oom_control (cgroup-v1/memory.rst, "OOM Control").
// v1OOM says what its signals mean.
func (t *v1Tree) watchOOM(since *OOMCount, f func()) (func() OOMCount, error) {
	dir := t.dir("memory")
	if dir == "" {
		return nil, errNoMemory
	}
	w := &v1OOM{oomWatch: newOOMWatch(f)}
	w.count = func() (uint64, error) { return v1Kills(dir) }
	w.counted = func() OOMCount { return OOMCount{Kills: w.last} }
	var err error
	if w.last, err = w.count(); errors.Is(err, errNoKillCount) {
		w.count = nil
	} else if err != nil {
		return nil, err
	}
	if since != nil {
		w.last = since.Kills
	}
	if w.event, err = registerOOM(dir); err != nil {
		return nil, err
	}
	w.exists = func() bool { return exists(filepath.Join(dir, "memory.oom_control")) }
	go w.run()
	return func() OOMCount {
		defer w.event.Close()
		return w.finish()
	}, nil
}

var errNoMemory = fmt.Errorf("the memory controller is not available: %w", errdefs.ErrNotImplemented)

// registerOOM returns an eventfd that the kernel signals. It is read through Go's poller.
func registerOOM(dir string) (*os.File, error) {
	eventfd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("cannot make eventfd: %w", err)
	}
	event := os.NewFile(uintptr(eventfd), "oom eventfd")
	control, err := openFile(filepath.Join(dir, "memory.oom_control"))
	if err == nil {
		// The kernel needs the descriptor only to see which file is meant.
		defer unix.Close(control)
		err = writeFile(filepath.Join(dir, "cgroup.event_control"), fmt.Sprintf("%d %d", eventfd, control))
	}
	if err != nil {
		_ = event.Close()
		return nil, err
	}
	return event, nil
}

// v1OOM waits on an eventfd. The kernel signals it
//   - when the cgroup is out of memory, before it kills;
//   - when a cgroup above is out of memory, whose victim may be anywhere below (mem_cgroup_oom_notify,
//     mm/memcontrol-v1.c);
//   - once when the cgroup is removed, after its files are gone (memcg_event_remove, css_clear_dir).
//
// It does not signal when a cgroup below hits its own limit, or when the host is out of memory.
//
// So a signal is only a reason to watch the count of kills, for as long as a kill may take. Kills without a signal are
// found by the next check.
type v1OOM struct {
	*oomWatch
	event  *os.File
	exists func() bool
}

// firstSettle and lastSettle are the first and the last delay of the checks after an OOM signal; each is twice the one
// before. A kill that takes longer is reported with the next signal.
const (
	firstSettle = time.Millisecond
	lastSettle  = time.Second
)

func (w *v1OOM) run() {
	defer w.event.Close()
	defer w.finish()
	// A kill before the registration has no signal.
	if w.count != nil {
		if _, err := w.check(); err != nil {
			return
		}
	}
	var buf [8]byte
	for {
		if _, err := w.event.Read(buf[:]); err != nil {
			return
		}
		if !w.signalled(binary.NativeEndian.Uint64(buf[:])) {
			return
		}
	}
}

// signalled handles n signals; false if the watch is over, because the cgroup is gone or by stop.
func (w *v1OOM) signalled(n uint64) bool {
	if w.count == nil {
		return w.signalledUncounted(n)
	}
	var reported uint64
	for delay := firstSettle; ; delay *= 2 {
		added, err := w.check()
		reported += added
		if err != nil {
			if absent(err) && n > 1 && reported == 0 {
				// One signal was for the removal. The others were for kills, too late to be counted.
				w.reportTimes(1)
			}
			return false
		}
		if reported >= n || delay > lastSettle {
			return true
		}
		select {
		case <-w.stopped:
			return false
		case <-time.After(delay):
		}
	}
}

// signalledUncounted is for kernels that do not count kills (before 4.13): each signal to a cgroup that exists counts
// as one.
func (w *v1OOM) signalledUncounted(n uint64) bool {
	if w.exists() {
		w.reportTimes(n)
		return true
	}
	w.reportTimes(n - 1)
	return false
}

var errNoKillCount = errors.New("memory.oom_control has no oom_kill")

// v1Kills sums the kills of a cgroup and of those below: on v1, each counts only its own.
func v1Kills(dir string) (uint64, error) {
	var sum uint64
	err := walk(dir, func(dir string) error {
		text, err := readFile(filepath.Join(dir, "memory.oom_control"))
		if err != nil {
			return err
		}
		kills, ok, err := keyedValue(text, "oom_kill")
		if err == nil && !ok {
			err = errNoKillCount
		}
		sum += kills
		return err
	})
	return sum, err
}
