package cgroups

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

func TestSliceOf(t *testing.T) {
	for dir, want := range map[string][2]string{
		"/c/a.slice/a-b.slice/x.scope":           {"/c/a.slice/a-b.slice", "x.scope"},
		"/c/a.slice/a-b.slice/x.scope/container": {"/c/a.slice/a-b.slice", "x.scope"},
		"/c/a.slice":                             {},
		"/c/pods/x":                              {},
	} {
		if slice, unit := sliceOf(dir); slice != want[0] || unit != want[1] {
			t.Errorf("%s: %q, %q", dir, slice, unit)
		}
	}
}

// fakeSlice is a pod's slice of plain files, and watches without their goroutines.
type fakeSlice struct {
	*testing.T
	dir     string
	reports map[string]int
}

func (f *fakeSlice) watch(unit string) *oomWatch {
	f.Helper()
	dir := filepath.Join(f.dir, unit)
	poll := &priorityPoll{paths: []string{unit}, fds: []int{openFake(f.T, dir, "memory.events")}}
	kills, err := poll.newV2Kills(groupFiles(dir))
	if err != nil {
		f.Fatal(err)
	}
	w := newOOMWatch(func() { f.reports[unit]++ })
	w.count = func() (uint64, error) {
		if !exists(dir) {
			return 0, unix.ENODEV // as the kernel's files say
		}
		return kills.count()
	}
	w.unit = w.enroll(dir)
	kills.unit = w.unit
	f.Cleanup(func() { w.finish() })
	return w
}

// killed counts kills as the kernel does; unit is empty for the slice itself.
func (f *fakeSlice) killed(unit string, kills, groups int) {
	f.Helper()
	write(f.T, fmt.Sprintf("oom_kill %d\noom_group_kill %d\n", kills, groups), f.dir, unit, "memory.events")
}

func (f *fakeSlice) remove(unit string) {
	f.Helper()
	if err := os.RemoveAll(filepath.Join(f.dir, unit)); err != nil {
		f.Fatal(err)
	}
}

func TestFinishOfAScopeThatIsGone(t *testing.T) {
	tests := map[string]struct {
		do   func(f *fakeSlice, a, b *oomWatch)
		a, b int // the reports of each watch
	}{
		"its kill has not been seen": {func(f *fakeSlice, _, _ *oomWatch) {
			f.killed("", 8, 0)
			f.remove("a.scope")
		}, 1, 0},
		"no kill": {func(f *fakeSlice, _, _ *oomWatch) {
			f.remove("a.scope")
		}, 0, 0},
		"its kill has been seen": {func(f *fakeSlice, a, _ *oomWatch) {
			f.killed("a.scope", 1, 0)
			f.killed("", 8, 0)
			_, _ = a.check()
			f.remove("a.scope")
		}, 1, 0},
		"the kill is another's": {func(f *fakeSlice, _, _ *oomWatch) {
			f.killed("b.scope", 1, 0)
			f.killed("", 8, 0)
			f.remove("a.scope")
		}, 0, 1},
		"both, at the same time": {func(f *fakeSlice, _, _ *oomWatch) {
			f.killed("b.scope", 1, 0)
			f.killed("", 9, 0)
			f.remove("a.scope")
		}, 1, 1},
		"another's, whose watch is over": {func(f *fakeSlice, _, b *oomWatch) {
			f.killed("b.scope", 1, 0)
			f.killed("", 8, 0)
			b.finish()
			f.remove("b.scope")
			f.remove("a.scope")
		}, 0, 1},
		"both gone, one has been seen": {func(f *fakeSlice, _, b *oomWatch) {
			f.killed("", 8, 0)
			f.remove("b.scope")
			b.finish()
			f.remove("a.scope")
		}, 0, 1},
		"a whole group": {func(f *fakeSlice, _, _ *oomWatch) {
			f.killed("", 7+6, 1)
			f.remove("a.scope")
		}, 1, 0},
		"the rest of a group": {func(f *fakeSlice, a, _ *oomWatch) {
			write(f.T, "1\n", f.dir, "a.scope/memory.oom.group")
			f.killed("a.scope", 1, 0)
			_, _ = a.check()
			f.killed("", 7+6, 1)
			f.remove("a.scope")
		}, 1, 0},
		"a whole group, whose setting goes while it is counted": {func(f *fakeSlice, a, _ *oomWatch) {
			write(f.T, "1\n", f.dir, "a.scope/memory.oom.group")
			_, _ = a.check()
			f.remove("a.scope/memory.oom.group")
			f.killed("a.scope", 6, 0)
			f.killed("", 7+6, 1)
		}, 1, 0},
		"processes that nobody watches are beside it": {func(f *fakeSlice, _, _ *oomWatch) {
			write(f.T, "populated 1\n", f.dir, "sandbox/cgroup.events")
			f.killed("", 8, 0)
			f.remove("a.scope")
		}, 0, 0},
		"the slice is gone, too": {func(f *fakeSlice, _, _ *oomWatch) {
			f.killed("", 8, 0)
			f.remove("")
		}, 0, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			root := fakeTree(t, map[string]string{
				"pod.slice/memory.events":            "oom_kill 7\n",
				"pod.slice/a.scope/memory.events":    "oom_kill 0\n",
				"pod.slice/a.scope/memory.oom.group": "0\n",
				"pod.slice/b.scope/memory.events":    "oom_kill 0\n",
				"pod.slice/sandbox/cgroup.events":    "populated 0\n",
			})
			f := &fakeSlice{t, filepath.Join(root, "pod.slice"), map[string]int{}}
			a, b := f.watch("a.scope"), f.watch("b.scope")
			test.do(f, a, b)
			a.finish()
			b.finish()
			if f.reports["a.scope"] != test.a || f.reports["b.scope"] != test.b {
				t.Errorf("reports %v, want %d of a and %d of b", f.reports, test.a, test.b)
			}
			if len(watchedSlices.byDir) != 0 {
				t.Errorf("left: %v", watchedSlices.byDir)
			}
		})
	}
}

func TestGroupFiles(t *testing.T) {
	got := groupFiles("/c/a.slice/x.scope/container")
	if want := []string{"/c/a.slice/x.scope/container/memory.oom.group", "/c/a.slice/x.scope/memory.oom.group"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := groupFiles("/c/pods/x"); len(got) != 1 {
		t.Errorf("got %q", got)
	}
}

// TestFinishAfterSystemdHasRemovedTheScope has the kernel count a kill that the watch does not look at in time.
func TestFinishAfterSystemdHasRemovedTheScope(t *testing.T) {
	proctest.NoLeakedFDs(t)
	l := v2Memory(t)
	newCgroup(t, l, "pod.slice", hogLimit)
	for range 2 {
		scope := newCgroup(t, l, "pod.slice/c.scope", `{}`)
		reports := 0
		w := newOOMWatch(func() { reports++ })
		w.count = func() (uint64, error) {
			_, err := readFile(filepath.Join(scope.Paths()[0], "memory.events"))
			return 0, err
		}
		w.unit = w.enroll(scope.Paths()[0])
		runHog(t, scope)
		if err := scope.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		w.finish()
		if reports != 1 {
			t.Errorf("%d reports of 1 kill", reports)
		}
	}
}
