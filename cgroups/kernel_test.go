package cgroups

// Tests on the kernel's own cgroups. They need root, and skip where a hierarchy is not mounted.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// v1Host skips the test unless the host mounts these v1 controllers.
func v1Host(t *testing.T, controllers ...string) *layout {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	l, err := hostLayout()
	if err != nil {
		t.Skip(err)
	}
	for _, c := range controllers {
		if l.unified != nil || l.at("/x").(*v1Tree).dir(c) == "" {
			t.Skipf("no v1 %s controller is mounted", c)
		}
	}
	return l
}

// v2Host skips the test unless the host mounts cgroup2 somewhere. In hybrid mode no controllers are in use there, but
// the core files exist. The layout's mount point is a cgroup made for the test. So nothing of the host's changes,
// except that the root hands its controllers down.
func v2Host(t *testing.T) *layout {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	mounts, err := readFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(mounts) {
		m, ok := parseMount(line)
		if !ok || m.fstype != "cgroup2" {
			continue
		}
		if err := enableControllers(m.mountpoint); err != nil {
			t.Fatal(err)
		}
		name := prefix() + "root"
		h := hierarchy{mountpoint: filepath.Join(m.mountpoint, name), root: filepath.Join(m.root, name)}
		if err := os.Mkdir(h.mountpoint, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := removeDir(proctest.Context(t), h.mountpoint); err != nil {
				t.Error(err)
			}
		})
		return &layout{proc: "/proc", unified: &h}
	}
	t.Skip("cgroup2 is not mounted")
	return nil
}

// newCgroup makes a cgroup that is killed and removed at the end of the test.
func newCgroup(t *testing.T, l *layout, name, text string) *Cgroup {
	t.Helper()
	c, err := l.create("/"+prefix()+name, resources(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			t.Error(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), proctest.Deadline)
		defer cancel()
		if err := c.Remove(ctx); err != nil {
			t.Error(err)
		}
	})
	return c
}

// newBelow makes a cgroup below another as a container would, by a plain directory.
func newBelow(t *testing.T, l *layout, parent *Cgroup) *Cgroup {
	t.Helper()
	for _, dir := range parent.Paths() {
		below := filepath.Join(dir, "below")
		if err := os.Mkdir(below, 0o755); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(dir, "/cpuset/") {
			if err := inheritCpuset(dir, below); err != nil {
				t.Fatal(err)
			}
		}
	}
	c, err := l.load(parent.path + "/below")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// both runs a test on v1 and on v2.
func both(t *testing.T, test func(t *testing.T, l *layout)) {
	t.Run("v1", func(t *testing.T) { test(t, v1Host(t, "freezer")) })
	t.Run("v2", func(t *testing.T) { test(t, v2Host(t)) })
}

// sleeper starts a process in the cgroup.
func sleeper(t *testing.T, c *Cgroup) int {
	t.Helper()
	pid := start(t, "sleep", "10000").Process.Pid
	if err := c.Add(pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// procState is the state letter of /proc/<pid>/stat, "" if there is no process.
func procState(pid int) string {
	text, err := readFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	return string(text[strings.LastIndex(text, ")")+2])
}

func isDead(pid int) bool {
	state := procState(pid)
	return state == "" || state == "Z" || state == "X"
}

func TestCreateAppliesLimitsToTheKernel(t *testing.T) {
	l := v1Host(t, "memory", "cpu", "cpuset", "pids")
	c := newCgroup(t, l, "limits/sub", `{
		"cpu": {"shares": 512, "quota": 50000, "period": 20000, "cpus": "0", "mems": "0"},
		"memory": {"limit": 67108864, "reservation": 33554432, "swap": 134217728},
		"pids": {"limit": 10}}`)
	tree := c.tree.(*v1Tree)
	files := map[string]map[string]string{
		"cpu":    {"cpu.shares": "512", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "20000"},
		"memory": {"memory.limit_in_bytes": "67108864", "memory.soft_limit_in_bytes": "33554432", "memory.memsw.limit_in_bytes": "134217728"},
		"cpuset": {"cpuset.cpus": "0", "cpuset.mems": "0"},
		"pids":   {"pids.max": "10"},
	}
	check := func() {
		t.Helper()
		for controller, values := range files {
			for file, want := range values {
				if got := content(t, tree.dir(controller), file); got != want {
					t.Errorf("%s is %s, want %s", file, got, want)
				}
			}
		}
	}
	check()
	parent := filepath.Dir(tree.dir("cpuset"))
	if got := content(t, parent, "cpuset.cpus"); got == "" {
		t.Error("the parent's cpuset is empty")
	}

	// Raising memory above the old memory and swap limit, then lowering both, needs opposite orders.
	for _, limits := range [][2]string{{"268435456", "536870912"}, {"8388608", "16777216"}} {
		files["memory"]["memory.limit_in_bytes"], files["memory"]["memory.memsw.limit_in_bytes"] = limits[0], limits[1]
		if err := c.Update(resources(`{"memory": {"limit": ` + limits[0] + `, "swap": ` + limits[1] + `}}`)); err != nil {
			t.Fatal(err)
		}
		check()
	}
	files["memory"]["memory.limit_in_bytes"], files["memory"]["memory.memsw.limit_in_bytes"] = "9223372036854771712", "9223372036854771712"
	files["cpu"]["cpu.cfs_quota_us"] = "-1"
	if err := c.Update(resources(`{"memory": {"limit": -1}, "cpu": {"quota": -1}}`)); err != nil {
		t.Fatal(err)
	}
	check()

	m, err := c.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if stats := m.(*v1.Metrics); stats.Pids.GetLimit() != 10 || stats.Memory.GetUsage().GetLimit() != 9223372036854771712 {
		t.Errorf("stats: %v", stats)
	}
	err = c.Update(resources(`{"cpu": {"cpus": "99999"}}`))
	if err == nil || !strings.Contains(err.Error(), "cpuset.cpus") || !strings.Contains(err.Error(), "99999") {
		t.Errorf("invalid cpuset: got %v", err)
	}
	if err := c.Remove(proctest.Context(t)); err != nil {
		t.Fatal(err)
	}
	up := &Cgroup{path: "parent", tree: l.at("/" + prefix() + "limits")}
	if err := up.Remove(proctest.Context(t)); err != nil {
		t.Fatal(err)
	}
	if err := up.Remove(proctest.Context(t)); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

// TestUpdateWritesAgainWhatWasRefused: next to the old quota, the new period is more than the parent has.
func TestUpdateWritesAgainWhatWasRefused(t *testing.T) {
	l := v1Host(t, "cpu")
	parent := newCgroup(t, l, "again", `{"cpu": {"quota": 50000, "period": 100000}}`)
	c := newBelow(t, l, parent)
	for _, cpu := range [][2]string{{"50000", "100000"}, {"5000", "10000"}, {"100000", "200000"}} {
		if err := c.Update(resources(`{"cpu": {"quota": ` + cpu[0] + `, "period": ` + cpu[1] + `}}`)); err != nil {
			t.Fatal(err)
		}
		dir := c.tree.(*v1Tree).dir("cpu")
		if quota, period := content(t, dir, "cpu.cfs_quota_us"), content(t, dir, "cpu.cfs_period_us"); quota != cpu[0] || period != cpu[1] {
			t.Errorf("quota %s and period %s, want %s", quota, period, cpu)
		}
	}
	if err := c.Update(resources(`{"cpu": {"quota": 90000, "period": 100000}}`)); !errors.Is(err, unix.EINVAL) {
		t.Errorf("more than the parent has: %v", err)
	}
}

// TestExportedFunctionsOnThisHost goes through the functions that find the layout themselves.
func TestExportedFunctionsOnThisHost(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("not root")
	}
	for name, c := range map[string]struct {
		path    string
		systemd bool
		want    string
	}{
		"cgroupfs": {path: prefix() + "a", want: "/" + prefix() + "a"},
		"systemd":  {path: "-.slice:" + prefix() + "b:c", systemd: true, want: "/" + prefix() + "b-c.scope"},
	} {
		cg, err := Create(c.path, c.systemd, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cg.Remove(proctest.Context(t)) })
		loaded, err := Load(c.path, c.systemd)
		if err != nil || loaded.String() != c.want || !reflect.DeepEqual(loaded.Paths(), cg.Paths()) {
			t.Errorf("%s: loaded %v, %v", name, loaded, err)
		}
		pid := sleeper(t, cg)
		found, err := OfProcess(pid)
		if err != nil || !reflect.DeepEqual(found.Paths(), cg.Paths()) {
			t.Errorf("%s: found %v, %v", name, found, err)
		}
		if err := cg.Signal(unix.SIGKILL); err != nil {
			t.Error(err)
		}
		if err := cg.Remove(proctest.Context(t)); err != nil {
			t.Error(err)
		}
		if _, err := Load(c.path, c.systemd); !errdefs.IsNotFound(err) {
			t.Errorf("%s: after removal: %v", name, err)
		}
	}
	if _, err := OfProcess(1 << 30); !errdefs.IsNotFound(err) {
		t.Errorf("no process: %v", err)
	}
	for _, create := range []func() (*Cgroup, error){
		func() (*Cgroup, error) { return Create("", false, nil) },
		func() (*Cgroup, error) { return Create("a:b:c", true, nil) },
		func() (*Cgroup, error) { return Load("..", false) },
	} {
		if _, err := create(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("invalid path: %v", err)
		}
	}
}

func TestCreateOnTheKernelCleansUpAfterError(t *testing.T) {
	l := v1Host(t, "cpuset")
	if _, err := l.create("/"+prefix()+"half/made", resources(`{"cpu": {"cpus": "99999"}}`)); err == nil {
		t.Fatal("no error for an impossible cpuset")
	}
	if left := leftovers(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCreateTakesOverAndLoadFinds(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "over", `{}`)
		again, err := l.create(c.path, nil)
		if err != nil || !reflect.DeepEqual(again.Paths(), c.Paths()) {
			t.Errorf("second create: %v, %v", again, err)
		}
		loaded, err := l.load(c.path)
		if err != nil || !reflect.DeepEqual(loaded.Paths(), c.Paths()) {
			t.Errorf("load: %v, %v", loaded, err)
		}
	})
}

func TestOfProcessFindsCgroupOnTheKernel(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "of", `{}`)
		pid := sleeper(t, c)
		got, err := l.ofProcess(pid)
		if err != nil || !reflect.DeepEqual(got.Paths(), c.Paths()) || got.String() != c.String() {
			t.Errorf("got %v at %v, %v; want %v", got, got.Paths(), err, c.Paths())
		}
		pids, err := c.Pids()
		if err != nil || !slices.Equal(pids, []int{pid}) {
			t.Errorf("got %v, %v; want only %d", pids, err, pid)
		}
	})
}

func TestPidsAreThoseOfAllBelow(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "tree", `{}`)
		below := newBelow(t, l, c)
		want := []int{sleeper(t, c), sleeper(t, below)}
		slices.Sort(want)
		if got, err := c.Pids(); err != nil || !slices.Equal(got, want) {
			t.Errorf("got %v, %v; want %v", got, err, want)
		}
	})
}

func TestStatOnTheKernel(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "stat", `{}`)
		sleeper(t, c)
		m, err := c.Stat()
		if err != nil {
			t.Fatal(err)
		}
		switch m := m.(type) {
		case *v1.Metrics:
			if m.Pids.GetCurrent() != 1 || m.CPU == nil || m.Memory == nil || m.Blkio == nil {
				t.Errorf("got %v", m)
			}
		case *v2.Metrics:
			if m.CPU == nil {
				t.Errorf("got %v", m)
			}
		}
		if err := c.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := c.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Stat(); !errdefs.IsNotFound(err) {
			t.Errorf("after removal: %v", err)
		}
	})
}

func TestFreezeStopsAndThawContinues(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "freeze", `{}`)
		below := newBelow(t, l, c)
		shell := start(t, "sh", "-c", "while :; do :; done")
		if err := below.Add(shell.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if frozen, err := c.Frozen(); frozen || err != nil {
			t.Errorf("before: %v, %v", frozen, err)
		}
		if err := c.Freeze(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		for _, g := range []*Cgroup{c, below} {
			if frozen, err := g.Frozen(); !frozen || err != nil {
				t.Errorf("%s after freeze: %v, %v", g, frozen, err)
			}
		}
		if state := procState(shell.Process.Pid); state != "D" && state != "S" {
			t.Errorf("a frozen process is in state %s", state)
		}
		if err := c.Freeze(proctest.Context(t)); err != nil {
			t.Errorf("freezing what is frozen: %v", err)
		}
		if err := c.Thaw(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if frozen, err := below.Frozen(); frozen || err != nil {
			t.Errorf("after thaw: %v, %v", frozen, err)
		}
		proctest.Eventually(t, "the process runs", func() bool { return procState(shell.Process.Pid) == "R" })
	})
}

func TestFreezeWithForks(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "forks", `{}`)
		shell := start(t, "sh", "-c", "while :; do true | true; done")
		if err := c.Add(shell.Process.Pid); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if err := c.Freeze(proctest.Context(t)); err != nil {
				t.Fatal(err)
			}
			if err := c.Thaw(proctest.Context(t)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestThawUnderFrozenParentEndsWithContext(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		parent := newCgroup(t, l, "up", `{}`)
		c := newBelow(t, l, parent)
		sleeper(t, c)
		if err := parent.Freeze(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := c.Thaw(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if err := parent.Thaw(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFreezeAndSignalRefuseTheCaller(t *testing.T) {
	root := fakeTree(t, map[string]string{"c/cgroup.procs": fmt.Sprintln(os.Getpid()), "c/cgroup.freeze": "0", "c/cgroup.kill": ""})
	c, err := fakeV2(root).load("/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Freeze(proctest.Context(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("freeze: %v", err)
	}
	if err := c.Signal(unix.SIGKILL); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signal: %v", err)
	}
	if content(t, root, "c/cgroup.freeze") != "0" || content(t, root, "c/cgroup.kill") != "" {
		t.Error("the cgroup was touched")
	}
}

func TestOperationsOnGoneCgroup(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := &Cgroup{path: "/gone", tree: l.at("/" + prefix() + "gone")}
		_, frozen := c.Frozen()
		_, watch := c.WatchOOM(nil, func() {})
		for verb, err := range map[string]error{
			"freeze": c.Freeze(proctest.Context(t)), "thaw": c.Thaw(proctest.Context(t)), "frozen": frozen,
			"signal": c.Signal(unix.SIGTERM), "kill": c.Signal(unix.SIGKILL), "watch": watch,
		} {
			if !errdefs.IsNotFound(err) {
				t.Errorf("%s: got %v, want not found", verb, err)
			}
		}
		if err := c.Remove(proctest.Context(t)); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
}

func TestRemoveWaitsForProcessesAndTakesChildren(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "remove", `{}`)
		newBelow(t, l, newBelow(t, l, c))
		pid := sleeper(t, c)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := c.Remove(ctx); !errors.Is(err, context.Canceled) || !errors.Is(err, unix.EBUSY) {
			t.Errorf("with a process in it: got %v, want canceled and busy", err)
		}
		done := make(chan error, 1)
		go func() { done <- c.Remove(proctest.Context(t)) }()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(c.Paths(), isDir) {
			t.Error("a directory is left")
		}
	})
}

// TestRemoveOnAHybridHost has what is left of a container if runc is killed: the directories that it has made in the
// cgroup2 mount.
func TestRemoveOnAHybridHost(t *testing.T) {
	l := v1Host(t, "freezer")
	if l.hybrid == "" {
		t.Skip("cgroup2 is not mounted beside v1")
	}
	shadow := func(name string) string { return filepath.Join(l.hybrid, prefix()+name) }
	makeShadow := func(t *testing.T, name string) string {
		t.Helper()
		below := filepath.Join(shadow(name), "below")
		if err := os.MkdirAll(below, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = removeDir(proctest.Context(t), shadow(name)) })
		return below
	}
	t.Run("empty", func(t *testing.T) {
		c := newCgroup(t, l, "hybrid", `{}`)
		makeShadow(t, "hybrid")
		loaded, err := l.load(c.path)
		if err != nil {
			t.Fatal(err)
		}
		if err := loaded.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if isDir(shadow("hybrid")) || slices.ContainsFunc(c.Paths(), isDir) {
			t.Error("a directory is left")
		}
	})
	t.Run("all that there is", func(t *testing.T) {
		makeShadow(t, "only")
		c, err := l.load("/" + prefix() + "only")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Signal(unix.SIGKILL); !errdefs.IsNotFound(err) {
			t.Errorf("signal: got %v, want not found", err)
		}
		if err := c.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if isDir(shadow("only")) {
			t.Error("it is left")
		}
	})
	t.Run("with a process of somebody else", func(t *testing.T) {
		c := newCgroup(t, l, "shared", `{}`)
		below := makeShadow(t, "shared")
		cmd := start(t, "sleep", "10000")
		if err := addProcess(below, cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if err := c.Remove(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if !isDir(below) || slices.ContainsFunc(c.Paths(), isDir) {
			t.Error("the process has lost its cgroup, or a directory of v1 is left")
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}
