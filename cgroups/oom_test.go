package cgroups

import (
	"errors"
	"maps"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

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

func TestWatchOOMReportsEachKillOnceAndNoRemoval(t *testing.T) {
	noLeakedFDs(t)
	c := newCgroup(t, v1Host(t, "memory"), "oom", hogLimit)
	var events atomic.Int32
	stop, err := c.WatchOOM(func() { events.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	for n := int32(1); n <= 2; n++ {
		runHog(t, c)
		eventually(t, "the kill is reported", func() bool { return events.Load() >= n })
		if got := events.Load(); got != n {
			t.Fatalf("%d reports after %d kills", got, n)
		}
	}
	if err := c.Remove(testContext(t)); err != nil {
		t.Fatal(err)
	}
	stop()
	stop()
	if got := events.Load(); got != 2 {
		t.Errorf("%d reports of 2 kills", got)
	}
}

// TestWatchOOMEndsWithCgroup: the removal's own signal ends the watch, and is no kill.
func TestWatchOOMEndsWithCgroup(t *testing.T) {
	c := newCgroup(t, v1Host(t, "memory"), "oom-removed", `{}`)
	before := openFDs()
	var events atomic.Int32
	if _, err := c.WatchOOM(func() { events.Add(1) }); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the eventfd is closed", func() bool { return maps.Equal(openFDs(), before) })
	if got := events.Load(); got != 0 {
		t.Errorf("%d reports of no kill", got)
	}
}

// TestWatchOOMCountsKillsBelow: the limit is the parent's, the victim the child's. Both watches see it.
func TestWatchOOMCountsKillsBelow(t *testing.T) {
	noLeakedFDs(t)
	l := v1Host(t, "memory")
	parent := newCgroup(t, l, "oom-parent", hogLimit)
	victim := newCgroup(t, l, "oom-parent/victim", `{}`)
	sibling := newCgroup(t, l, "oom-parent/sibling", `{}`)
	var inParent, inVictim, inSibling atomic.Int32
	for c, n := range map[*Cgroup]*atomic.Int32{parent: &inParent, victim: &inVictim, sibling: &inSibling} {
		stop, err := c.WatchOOM(func() { n.Add(1) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
	}
	runHog(t, victim)
	eventually(t, "the kill is reported", func() bool { return inParent.Load() > 0 && inVictim.Load() > 0 })
	if p, v, s := inParent.Load(), inVictim.Load(), inSibling.Load(); p != 1 || v != 1 || s != 0 {
		t.Errorf("parent %d, victim %d, sibling %d; want 1, 1, 0", p, v, s)
	}
}

func TestWatchOOMStopFromReport(t *testing.T) {
	noLeakedFDs(t)
	c := newCgroup(t, v1Host(t, "memory"), "oom-stop", hogLimit)
	var stop func()
	ready, done := make(chan struct{}), make(chan struct{})
	stop, err := c.WatchOOM(func() {
		<-ready
		stop()
		close(done)
	})
	if err != nil {
		t.Fatal(err)
	}
	close(ready)
	runHog(t, c)
	<-done
	runHog(t, c) // a second report would close done again, and panic
}

func TestWatchOOMWithoutController(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		noLeakedFDs(t)
		c := newCgroup(t, l, "no-memory", `{}`)
		if tree, ok := c.tree.(*v1Tree); ok {
			c = &Cgroup{path: c.path, tree: &v1Tree{groups: tree.groups[:1]}}
			if tree.groups[0].controllers[0] == "memory" {
				c.tree.(*v1Tree).groups = tree.groups[1:]
			}
		} else if exists(filepath.Join(c.Paths()[0], "memory.events")) {
			t.Skip("cgroup2 has the memory controller here")
		}
		if _, err := c.WatchOOM(func() {}); !errdefs.IsNotImplemented(err) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOOMWatchReportsGrowthOnly(t *testing.T) {
	counts := []uint64{3, 5, 5, 4, 6}
	var reports int
	w := &oomWatch{report: func() { reports++ }, last: 3, stopped: make(chan struct{})}
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
	close(w.stopped)
	w.reportTimes(1)
	if reports != 4 {
		t.Error("a report after the stop")
	}
}

func TestOOMSignalsOfRemovedCgroup(t *testing.T) {
	for _, c := range []struct{ signals, want uint64 }{{1, 0}, {2, 1}, {3, 1}} {
		var reports uint64
		w := &v1OOM{oomWatch: oomWatch{
			report: func() { reports++ }, stopped: make(chan struct{}),
			count: func() (uint64, error) { return 0, unix.ENODEV },
		}}
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
		w := &v1OOM{oomWatch: oomWatch{report: func() { reports++ }, stopped: make(chan struct{})}, exists: func() bool { return c.exists }}
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

func TestV2Kills(t *testing.T) {
	root := fakeTree(t, map[string]string{"good": "oom 9\noom_kill 2\noom_group_kill 1\n", "bad": "oom_kill x\n"})
	for name, want := range map[string]uint64{"good": 2, "bad": 0} {
		fd, err := openFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		n, err := v2Kills(&priorityPoll{paths: []string{name}, fds: []int{fd}})
		if n != want || (err == nil) != (name == "good") {
			t.Errorf("%s: got %d, %v", name, n, err)
		}
	}
}

// TestPriorityPollSeesChangesOfCgroupFiles uses cgroup.events, which every cgroup2 has.
func TestPriorityPollSeesChangesOfCgroupFiles(t *testing.T) {
	noLeakedFDs(t)
	c := newCgroup(t, v2Host(t), "poll", `{}`)
	p, err := newPriorityPoll(filepath.Join(c.Paths()[0], "cgroup.events"))
	if err != nil {
		t.Fatal(err)
	}
	populated := func() uint64 {
		t.Helper()
		texts, err := p.read()
		if err != nil {
			t.Fatal(err)
		}
		n, ok, err := keyedValue(texts[0], "populated")
		if !ok || err != nil {
			t.Fatalf("%q: %v", texts[0], err)
		}
		return n
	}
	if populated() != 0 {
		t.Fatal("populated at first")
	}
	for range 3 {
		pid := sleeper(t, c)
		for populated() == 0 {
			if err := p.wait(); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for populated() == 1 {
			if err := p.wait(); err != nil {
				t.Fatal(err)
			}
		}
	}
	waiting := make(chan error)
	go func() { waiting <- p.wait() }()
	p.interrupt()
	if err := <-waiting; err == nil {
		t.Error("no error after the interruption")
	}
	p.close()
}

// TestPriorityPollWatchReportsGrowth counts what cgroup.events has, in place of the kills that memory.events has.
func TestPriorityPollWatchReportsGrowth(t *testing.T) {
	noLeakedFDs(t)
	c := newCgroup(t, v2Host(t), "watch", `{}`)
	p, err := newPriorityPoll(filepath.Join(c.Paths()[0], "cgroup.events"))
	if err != nil {
		t.Fatal(err)
	}
	count := func() (uint64, error) {
		texts, err := p.read()
		if err != nil {
			return 0, err
		}
		n, _, err := keyedValue(texts[0], "populated")
		return n, err
	}
	var reports atomic.Int32
	stop, err := p.watch(count, func() { reports.Add(1) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	sleeper(t, c)
	eventually(t, "the growth is reported", func() bool { return reports.Load() > 0 })
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(testContext(t)); err != nil {
		t.Fatal(err)
	}
	stop()
	stop()
	if got := reports.Load(); got != 1 {
		t.Errorf("%d reports", got)
	}
}

func TestPriorityPollReleasesDescriptorsOnError(t *testing.T) {
	noLeakedFDs(t)
	root := fakeTree(t, map[string]string{"plain": ""})
	for _, file := range []string{"plain", "missing"} {
		if _, err := newPriorityPoll(filepath.Join(root, file)); err == nil {
			t.Errorf("%s can be polled", file)
		}
	}
}
