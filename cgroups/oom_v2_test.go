package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

func v2Memory(t *testing.T) *layout {
	t.Helper()
	l := v2Host(t)
	if !exists(filepath.Join(l.unified.mountpoint, "memory.max")) {
		t.Skip("cgroup2 has no memory controller here")
	}
	return l
}

// TestWatchOOMTakesADeadGroupForOne: in a group kill, the kernel counts each process, and perhaps the victim twice.
func TestWatchOOMTakesADeadGroupForOne(t *testing.T) {
	proctest.NoLeakedFDs(t)
	c := newCgroup(t, v2Memory(t), "oom-group", hogLimit)
	if err := c.Update(resources(`{"unified": {"memory.oom.group": "1"}}`)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		events, stop := watched(t, c)
		for range 5 {
			sleeper(t, c)
		}
		runHog(t, c)
		proctest.Eventually(t, "the group is dead", func() bool {
			pids, err := c.Pids()
			return err == nil && len(pids) == 0
		})
		stop()
		if got := events.Load(); got != 1 {
			t.Errorf("%d reports of 1 kill", got)
		}
	}
}

func TestV2KillsCountsAGroupOnce(t *testing.T) {
	type step struct {
		kills, groups int
		group         bool
		want          uint64
	}
	for name, steps := range map[string][]step{
		"single kills":                    {{4, 1, false, 1}, {7, 1, false, 4}},
		"a group at once":                 {{9, 2, true, 1}, {9, 2, true, 1}},
		"a group, step by step":           {{4, 1, true, 1}, {4, 2, true, 1}, {7, 2, true, 1}, {9, 2, true, 1}, {12, 3, true, 2}},
		"a group without the switch":      {{9, 2, false, 1}},
		"single kills before a group":     {{5, 1, false, 2}, {9, 2, true, 3}},
		"a file that has lost its counts": {{0, 0, false, 0}},
	} {
		root := fakeTree(t, map[string]string{"memory.events": "oom_kill 3\noom_group_kill 1\n", "memory.oom.group": "0\n"})
		events := openFake(t, root, "memory.events")
		k, err := (&priorityPoll{paths: []string{"memory.events"}, fds: []int{events}}).newV2Kills(groupFiles(root))
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range steps {
			write(t, fmt.Sprintf("oom_kill %d\noom_group_kill %d\n", s.kills, s.groups), root, "memory.events")
			write(t, map[bool]string{true: "1\n", false: "0\n"}[s.group], root, "memory.oom.group")
			if got, err := k.count(); got != s.want || err != nil {
				t.Errorf("%s: step %d: got %d, %v; want %d", name, i, got, err, s.want)
			}
		}
	}
}

// TestV2KillsOfTheFirstGroup: the kernel counts the victim before its group; before 5.17 it does not count the group.
func TestV2KillsOfTheFirstGroup(t *testing.T) {
	for name, texts := range map[string][]string{
		"its group is counted": {"oom_kill 0\noom_group_kill 0\n", "oom_kill 1\noom_group_kill 0\n", "oom_kill 1\noom_group_kill 1\n", "oom_kill 9\noom_group_kill 1\n"},
		"groups are not":       {"oom_kill 0\n", "oom_kill 1\n", "oom_kill 5\n", "oom_kill 9\n"},
	} {
		root := fakeTree(t, map[string]string{"memory.events": texts[0], "memory.oom.group": "1\n"})
		k, err := (&priorityPoll{paths: []string{"memory.events"}, fds: []int{openFake(t, root, "memory.events")}}).newV2Kills(groupFiles(root))
		if err != nil {
			t.Fatal(err)
		}
		for i, text := range texts {
			write(t, text, root, "memory.events")
			if got, err := k.count(); got != uint64(min(i, 1)) || err != nil {
				t.Errorf("%s: step %d: got %d, %v", name, i, got, err)
			}
		}
	}
}

func openFake(t *testing.T, path ...string) int {
	t.Helper()
	fd, err := openFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func write(t *testing.T, text string, path ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(path...), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestV2KillsRefusesNonsense(t *testing.T) {
	root := fakeTree(t, map[string]string{"kills": "oom_kill x\n", "groups": "oom_kill 1\noom_group_kill x\n"})
	for _, name := range []string{"kills", "groups"} {
		p := &priorityPoll{paths: []string{name}, fds: []int{openFake(t, root, name)}}
		if _, err := p.newV2Kills(nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestPriorityPollSeesChangesOfCgroupFiles uses cgroup.events, which every cgroup2 has.
func TestPriorityPollSeesChangesOfCgroupFiles(t *testing.T) {
	proctest.NoLeakedFDs(t)
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

// TestPriorityPollWatchReportsGrowth counts a number in cgroup.events, in place of the kills in memory.events.
func TestPriorityPollWatchReportsGrowth(t *testing.T) {
	proctest.NoLeakedFDs(t)
	c := newCgroup(t, v2Host(t), "watch", `{}`)
	p, err := newPriorityPoll(filepath.Join(c.Paths()[0], "cgroup.events"))
	if err != nil {
		t.Fatal(err)
	}
	var reports atomic.Int32
	w := newOOMWatch(func() { reports.Add(1) })
	w.count = func() (uint64, error) {
		texts, err := p.read()
		if err != nil {
			return 0, err
		}
		n, _, err := keyedValue(texts[0], "populated")
		return n, err
	}
	stop := p.watch(w)
	t.Cleanup(func() { stop() })
	sleeper(t, c)
	proctest.Eventually(t, "the growth is reported", func() bool { return reports.Load() > 0 })
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(proctest.Context(t)); err != nil {
		t.Fatal(err)
	}
	stop()
	stop()
	if got := reports.Load(); got != 1 {
		t.Errorf("%d reports", got)
	}
}

func TestPriorityPollReleasesDescriptorsOnError(t *testing.T) {
	proctest.NoLeakedFDs(t)
	root := fakeTree(t, map[string]string{"plain": ""})
	for _, file := range []string{"plain", "missing"} {
		if _, err := newPriorityPoll(filepath.Join(root, file)); err == nil {
			t.Errorf("%s can be polled", file)
		}
	}
}
