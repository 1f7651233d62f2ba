package cgroups

import (
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const hogLimit = `{"memory": {"limit": 33554432, "swap": 33554432}}`

// runHog lets a process in the cgroup eat memory until the kernel kills it.
func runHog(t *testing.T, c *Cgroup) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", hog)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !exit.Sys().(syscall.WaitStatus).Signaled() {
		t.Fatalf("the hog was not killed: %v", err)
	}
}

// eachMemory runs a test on v1 and on v2, where they have the memory controller.
func eachMemory(t *testing.T, test func(t *testing.T, l *layout)) {
	t.Run("v1", func(t *testing.T) { test(t, v1Host(t, "memory")) })
	t.Run("v2", func(t *testing.T) { test(t, v2Memory(t)) })
}

// watched counts the kills that a watch of the cgroup reports.
func watched(t *testing.T, c *Cgroup) (events *atomic.Int32, stop func()) {
	t.Helper()
	events = &atomic.Int32{}
	end, err := c.WatchOOM(nil, func() { events.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	stop = func() { end() }
	t.Cleanup(stop)
	return events, stop
}

func TestWatchOOMReportsEachKillOnceAndNoRemoval(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "oom", hogLimit)
		events, stop := watched(t, c)
		for n := int32(1); n <= 2; n++ {
			runHog(t, c)
			proctest.Eventually(t, "the kill is reported", func() bool { return events.Load() >= n })
			if got := events.Load(); got != n {
				t.Fatalf("%d reports after %d kills", got, n)
			}
		}
		if err := c.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		stop()
		stop()
		if got := events.Load(); got != 2 {
			t.Errorf("%d reports of 2 kills", got)
		}
	})
}

// TestStopReportsWhatIsCounted: a container that dies by a kill is reaped at once, and its cgroup removed, while the
// kernel's notice may still be on its way.
func TestStopReportsWhatIsCounted(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "oom-stop", hogLimit)
		for range 10 {
			events, stop := watched(t, c)
			runHog(t, c)
			stop()
			if got := events.Load(); got != 1 {
				t.Fatalf("%d reports of 1 kill", got)
			}
			runHog(t, c)
			if got := events.Load(); got != 1 {
				t.Fatalf("%d reports: some after the stop", got)
			}
		}
	})
}

func TestStopTwiceAtTheSameTime(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "oom-stops", hogLimit)
		events, stop := watched(t, c)
		runHog(t, c)
		var stops sync.WaitGroup
		for range 4 {
			stops.Go(stop)
		}
		stops.Wait()
		if got := events.Load(); got != 1 {
			t.Errorf("%d reports of 1 kill", got)
		}
	})
}

func TestStopAfterTheCgroupIsGone(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "oom-gone", `{}`)
		events, stop := watched(t, c)
		if err := c.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		stop()
		if got := events.Load(); got != 0 {
			t.Errorf("%d reports of no kill", got)
		}
	})
}

// TestWatchOOMSince: one watch goes on where another has stopped.
func TestWatchOOMSince(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "oom-since", hogLimit)
		var events atomic.Int32
		watch := func(since *OOMCount) (stop func() OOMCount) {
			stop, err := c.WatchOOM(since, func() { events.Add(1) })
			if err != nil {
				t.Fatal(err)
			}
			return stop
		}
		stop := watch(nil)
		runHog(t, c)
		count := stop()
		runHog(t, c) // nobody watches
		count = watch(&count)()
		if got := events.Load(); got != 2 {
			t.Errorf("%d reports of 2 kills", got)
		}
		watch(&count)()
		if got := events.Load(); got != 2 {
			t.Errorf("%d reports of 2 kills: one was reported again", got)
		}
	})
}

// TestWatchOOMEndsWithCgroup: the removal's own signal ends the watch, and is no kill.
func TestWatchOOMEndsWithCgroup(t *testing.T) {
	c := newCgroup(t, v1Host(t, "memory"), "oom-removed", `{}`)
	before := proctest.OpenFDs()
	var events atomic.Int32
	if _, err := c.WatchOOM(nil, func() { events.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(proctest.Context(t)); err != nil {
		t.Fatal(err)
	}
	proctest.Eventually(t, "the eventfd is closed", func() bool { return maps.Equal(proctest.OpenFDs(), before) })
	if got := events.Load(); got != 0 {
		t.Errorf("%d reports of no kill", got)
	}
}

// TestWatchOOMCountsKillsBelow: the limit is the parent's, the victim the child's. Both watches see it.
func TestWatchOOMCountsKillsBelow(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		parent := newCgroup(t, l, "oom-parent", hogLimit)
		victim := newCgroup(t, l, "oom-parent/victim", `{}`)
		sibling := newCgroup(t, l, "oom-parent/sibling", `{}`)
		inParent, stopParent := watched(t, parent)
		inVictim, _ := watched(t, victim)
		inSibling, stopSibling := watched(t, sibling)
		runHog(t, victim)
		proctest.Eventually(t, "the kill is reported", func() bool { return inParent.Load() > 0 && inVictim.Load() > 0 })
		stopParent()
		stopSibling()
		if p, v, s := inParent.Load(), inVictim.Load(), inSibling.Load(); p != 1 || v != 1 || s != 0 {
			t.Errorf("parent %d, victim %d, sibling %d; want 1, 1, 0", p, v, s)
		}
	})
}

// TestStopReportsKillsByALimitBelow: v1 has no signal for those.
func TestStopReportsKillsByALimitBelow(t *testing.T) {
	eachMemory(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		parent := newCgroup(t, l, "oom-above", `{}`)
		events, stop := watched(t, parent)
		runHog(t, newCgroup(t, l, "oom-above/limited", hogLimit))
		stop()
		if got := events.Load(); got != 1 {
			t.Errorf("%d reports of 1 kill", got)
		}
	})
}

func TestWatchOOMWithoutController(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "no-memory", `{}`)
		if tree, ok := c.tree.(*v1Tree); ok {
			c = &Cgroup{path: c.path, tree: &v1Tree{groups: tree.groups[:1]}}
			if tree.groups[0].controllers[0] == "memory" {
				c.tree.(*v1Tree).groups = tree.groups[1:]
			}
		} else if exists(filepath.Join(c.Paths()[0], "memory.events")) {
			t.Skip("cgroup2 has the memory controller here")
		}
		if _, err := c.WatchOOM(nil, func() {}); !errdefs.IsNotImplemented(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOOMWatchReportsGrowthOnly(t *testing.T) {
	counts := []uint64{3, 5, 5, 4, 6, 7}
	var reports int
	w := newOOMWatch(func() { reports++ })
	w.last = 3
	w.count = func() (uint64, error) {
		n := counts[0]
		counts = counts[1:]
		return n, nil
	}
	// The sum falls when a child that counted kills is removed.
	for i, want := range []int{0, 2, 2, 2, 4} {
		if _, err := w.check(); err != nil || reports != want {
			t.Errorf("check %d: %d reports, %v; want %d", i, reports, err, want)
		}
	}
	w.finish()
	if reports != 5 {
		t.Errorf("%d reports at the end, want 5", reports)
	}
	w.reportTimes(1)
	if _, err := w.check(); !errors.Is(err, errOver) || reports != 5 {
		t.Errorf("after the end: %d reports, %v", reports, err)
	}
}

func TestOOMSignalsOfRemovedCgroup(t *testing.T) {
	for _, c := range []struct{ signals, want uint64 }{{1, 0}, {2, 1}, {3, 1}} {
		var reports uint64
		w := &v1OOM{oomWatch: newOOMWatch(func() { reports++ })}
		w.count = func() (uint64, error) { return 0, unix.ENODEV }
		if w.signalled(c.signals) || reports != c.want {
			t.Errorf("%d signals: %d reports, want %d", c.signals, reports, c.want)
		}
	}
}

func TestOOMSignalsWithoutCount(t *testing.T) {
	for _, c := range []struct {
		exists        bool
		signals, want uint64
	}{{true, 1, 1}, {true, 2, 2}, {false, 1, 0}, {false, 2, 1}} {
		var reports uint64
		w := &v1OOM{oomWatch: newOOMWatch(func() { reports++ }), exists: func() bool { return c.exists }}
		if w.signalled(c.signals) != c.exists || reports != c.want {
			t.Errorf("%+v: %d reports", c, reports)
		}
	}
}

func TestV1KillsOfOldKernel(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"new/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "new/a/memory.oom_control": "oom_kill 3\n",
		"old/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n",
	})
	if n, err := v1Kills(filepath.Join(root, "new")); n != 5 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := v1Kills(filepath.Join(root, "old")); !errors.Is(err, errNoKillCount) {
		t.Errorf("got %v", err)
	}
}
