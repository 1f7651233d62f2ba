package cgroups

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

func TestKillLeavesNoProcess(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "kill", `{}`)
		below := newBelow(t, l, c)
		pids := []int{sleeper(t, c), sleeper(t, below)}
		if err := c.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for _, pid := range pids {
			proctest.Eventually(t, "the process is dead", func() bool { return isDead(pid) })
		}
	})
}

// TestKillReachesForks kills a process that forks all the time, and ignores every signal that it can.
func TestKillReachesForks(t *testing.T) {
	for name, noKillFile := range map[string]bool{"as the kernel can": false, "one by one": true} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, l *layout) {
				c := newCgroup(t, l, "storm", `{}`)
				if v2, ok := c.tree.(*v2Tree); ok && noKillFile {
					c.tree = withoutKillFile{v2}
				}
				cmd := start(t, "setsid", "sh", "-c", "trap '' TERM; while :; do sleep 0.002 & sleep 0.001; done")
				if err := c.Add(cmd.Process.Pid); err != nil {
					t.Fatal(err)
				}
				proctest.Eventually(t, "it has forked", func() bool {
					pids, err := c.Pids()
					return err == nil && len(pids) > 1
				})
				if err := c.Signal(unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
				proctest.Eventually(t, "the cgroup is empty", func() bool {
					pids, err := c.Pids()
					return err == nil && len(pids) == 0
				})
			})
		})
	}
}

// withoutKillFile is the v2 of a kernel before 5.14.
type withoutKillFile struct{ *v2Tree }

func (withoutKillFile) killAll() (bool, error) { return false, nil }

// TestSignalEndsAmongForks sends an ignored signal to a process that forks all the time. Signal returns although there
// is always a new process, and leaves the cgroup running.
func TestSignalEndsAmongForks(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "ignoring", `{}`)
		ready := filepath.Join(t.TempDir(), "ready")
		cmd := start(t, "sh", "-c", `trap '' USR1; : > "$0"; while :; do true | true & true | true; done`, ready)
		if err := c.Add(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		proctest.Eventually(t, "the signal is ignored", func() bool { return exists(ready) })
		if err := c.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		if frozen, err := c.Frozen(); frozen || err != nil {
			t.Errorf("frozen %v, %v", frozen, err)
		}
		if isDead(cmd.Process.Pid) {
			t.Error("the process is dead")
		}
	})
}

// forkingTree has a new process at every look, unless it is frozen.
type forkingTree struct {
	tree
	fork func()
}

func (f forkingTree) procs() string {
	if frozen, err := f.frozen(); err == nil && !frozen {
		f.fork()
	}
	return f.tree.procs()
}

func TestSignalFreezesToGetAheadOfForks(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "ahead", `{}`)
		var pids []int
		forking := &Cgroup{path: c.path, tree: forkingTree{c.tree, func() { pids = append(pids, sleeper(t, c)) }}}
		if err := forking.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		proctest.Eventually(t, "all are dead", func() bool {
			alive, err := c.Pids()
			return err == nil && !slices.ContainsFunc(alive, func(pid int) bool { return slices.Contains(pids, pid) && !isDead(pid) })
		})
	})
}

func TestFreezeForSignalLeavesAFrozenCgroupFrozen(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "was-frozen", `{}`)
		sleeper(t, c)
		thaw := c.freezeForSignal()
		if frozen, err := c.Frozen(); !frozen || err != nil || thaw == nil {
			t.Fatalf("frozen %v, %v", frozen, err)
		}
		if c.freezeForSignal() != nil {
			t.Error("it would thaw what it did not freeze")
		}
		thaw()
		if frozen, err := c.Frozen(); frozen || err != nil {
			t.Errorf("after thaw: frozen %v, %v", frozen, err)
		}
	})
}

func TestKillReachesFrozenProcesses(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		c := newCgroup(t, l, "frozen", `{}`)
		pid := sleeper(t, c)
		if err := c.Freeze(proctest.Context(t)); err != nil {
			t.Fatal(err)
		}
		if err := c.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		proctest.Eventually(t, "the process is dead", func() bool { return isDead(pid) })
	})
}

// TestKillReachesFrozenProcessesBelow has a container with docker inside that has paused one of its own containers: the
// cgroup of the outer container runs, one below is frozen.
func TestKillReachesFrozenProcessesBelow(t *testing.T) {
	for name, kill := range map[string]func(t *testing.T, c *Cgroup, pids []int){
		"by the cgroup": func(t *testing.T, c *Cgroup, _ []int) {
			if err := c.Signal(unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"by pid": func(t *testing.T, c *Cgroup, pids []int) {
			for _, pid := range pids {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.LetDie(proctest.Context(t)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, func(t *testing.T, l *layout) {
				c := newCgroup(t, l, "frozen-below", `{}`)
				below := newBelow(t, l, c)
				deepest := newBelow(t, l, below)
				pids := []int{sleeper(t, c), sleeper(t, below), sleeper(t, deepest)}
				// From below, so that each is frozen in its own right.
				for _, g := range []*Cgroup{deepest, below} {
					if err := g.Freeze(proctest.Context(t)); err != nil {
						t.Fatal(err)
					}
				}
				kill(t, c, pids)
				for _, pid := range pids {
					proctest.Eventually(t, "the process is dead", func() bool { return isDead(pid) })
				}
			})
		})
	}
}

// thawedTree calls a function each time that everything has been thawed.
type thawedTree struct {
	tree
	thawed func()
}

func (f thawedTree) releaseKilled() (bool, error) {
	done, err := f.tree.releaseKilled()
	f.thawed()
	return done, err
}

func TestWhatIsFrozenAgainDiesToo(t *testing.T) {
	l := v1Host(t, "freezer")
	c := newCgroup(t, l, "again", `{}`)
	below := newBelow(t, l, c)
	pids := []int{sleeper(t, c)} // as long as it lives, it may freeze others
	kill := func(pid int) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	}
	round := 0
	tree := thawedTree{c.tree, func() {
		if round++; round > 3 {
			return
		}
		pid := sleeper(t, below)
		if err := below.Freeze(proctest.Context(t)); err != nil {
			t.Error(err)
		}
		kill(pid)
		if pids = append(pids, pid); round == 3 {
			kill(pids[0])
		}
	}}
	if err := (&Cgroup{path: c.path, tree: tree}).LetDie(proctest.Context(t)); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		proctest.Eventually(t, "the process is dead", func() bool { return isDead(pid) })
	}
}

func TestLetDieEndsWithItsContext(t *testing.T) {
	c := newCgroup(t, v1Host(t, "freezer"), "alive", `{}`)
	pid := sleeper(t, c)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := c.LetDie(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a process that nobody has killed: %v", err)
	}
	if isDead(pid) {
		t.Error("LetDie has killed it")
	}
}

// TestSignalReachesEveryProcess has more processes than are pinned at a time, and looks at the signal's own effect.
func TestSignalReachesEveryProcess(t *testing.T) {
	both(t, func(t *testing.T, l *layout) {
		proctest.NoLeakedFDs(t)
		c := newCgroup(t, l, "term", `{}`)
		dir := t.TempDir()
		const n = 20
		script := `exec 2>/dev/null; trap 'echo >> "$0/got.$$"' USR1; : > "$0/ready.$$"; while :; do sleep 0.01; done`
		for range n {
			cmd := start(t, "sh", "-c", script, dir)
			if err := c.Add(cmd.Process.Pid); err != nil {
				t.Fatal(err)
			}
		}
		count := func(pattern string) int {
			files, _ := filepath.Glob(filepath.Join(dir, pattern))
			return len(files)
		}
		proctest.Eventually(t, "all have set their trap", func() bool { return count("ready.*") == n })
		if err := c.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		proctest.Eventually(t, "all had the signal", func() bool { return count("got.*") == n })
		files, _ := filepath.Glob(filepath.Join(dir, "got.*"))
		for _, file := range files {
			if got, _ := os.ReadFile(file); strings.Count(string(got), "\n") > 1 {
				t.Errorf("%s had the signal more than once", file)
			}
		}
	})
}

func TestSignalledProcessMustStillBeMember(t *testing.T) {
	cmd := start(t, "sleep", "10000")
	pid := cmd.Process.Pid
	lists := [][]int{{}} // by the second look, the pid has left
	s := signaller{sig: unix.SIGKILL, seen: make(map[int]bool), list: func() ([]int, error) { return lists[0], nil }}
	for name, batch := range map[string]func([]int) error{"by pidfd": s.batch, "by pid": s.batchByPid} {
		if err := batch([]int{pid}); err != nil || s.failures != nil || s.seen[pid] {
			t.Errorf("%s: %v, %v, seen %v", name, err, s.failures, s.seen)
		}
	}
	if isDead(pid) {
		t.Error("a process outside of the cgroup was killed")
	}
	lists[0] = []int{pid}
	if err := s.batchByPid([]int{pid}); err != nil || !s.seen[pid] {
		t.Errorf("a member was not signalled: %v", err)
	}
	proctest.Eventually(t, "the member is dead", func() bool { return isDead(pid) })
}

func TestSignalRoundsGoOnForNewProcesses(t *testing.T) {
	first, second := start(t, "sleep", "10000").Process.Pid, start(t, "sleep", "10000").Process.Pid
	members := []int{first}
	s := signaller{sig: unix.SIGKILL, seen: make(map[int]bool), list: func() ([]int, error) { return members, nil }}
	pids, err := s.round([]int{first})
	if err != nil || slices.ContainsFunc(pids, s.isNew) {
		t.Errorf("after the first round: %v, %v", pids, err)
	}
	members = append(members, second)
	if pids, err = s.round(pids); err != nil || !slices.ContainsFunc(pids, s.isNew) {
		t.Errorf("a new member is not new: %v, %v", pids, err)
	}
	if pids, err = s.round(pids); err != nil || slices.ContainsFunc(pids, s.isNew) {
		t.Errorf("after the last round: %v, %v", pids, err)
	}
	proctest.Eventually(t, "both are dead", func() bool { return isDead(first) && isDead(second) })
}

func TestSignalReportsFailures(t *testing.T) {
	s := signaller{seen: make(map[int]bool)}
	s.record(1, unix.EPERM)
	s.record(2, unix.ESRCH)
	s.record(3, nil)
	if !errors.Is(s.failures, unix.EPERM) || errors.Is(s.failures, unix.ESRCH) || !strings.Contains(s.failures.Error(), "process 1:") {
		t.Errorf("got %v", s.failures)
	}
	if s.isNew(1) || !s.isNew(2) || s.isNew(3) {
		t.Errorf("seen: %v", s.seen)
	}
}
