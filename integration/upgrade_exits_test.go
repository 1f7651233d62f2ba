package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// Execs and containers end in the very moment of an upgrade, too. Each end is told once, with the
// right exit code, and in order.
func TestExitsInTheMomentOfAnUpgrade(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		since := len(readFile(t, theNode.LogFile()))
		c := newContainer(t, shim, sh("exec sleep 1000"))
		events := subscribe(t, c)
		c.run(c.streams(nil))
		const rounds, execs = 6, 12
		for round := range rounds {
			errs := make([]error, execs)
			var started, ended sync.WaitGroup
			for i := range execs {
				started.Add(1)
				ended.Go(func() {
					id, code := fmt.Sprintf("r%de%d", round, i), uint32(1+rand.IntN(100))
					script := fmt.Sprintf("sleep 0.%03d; echo %s; exit %d", rand.IntN(600), id, code)
					p, err := c.tryExec(id, nil, nil, "sh", "-c", script)
					started.Done()
					if err != nil {
						errs[i] = err
						return
					}
					got, err := p.finish()
					if err != nil || got != code || p.out.String() != id+"\n" {
						errs[i] = fmt.Errorf("exec %s: exit code %d, want %d, output %q, error %w", id, got, code, p.out.String(), err)
					}
				})
			}
			started.Wait()
			for range 4 {
				mustUpgrade(t, c.shimPid())
			}
			ended.Wait()
			must(t, errors.Join(errs...))
		}
		must(t, c.task.Kill(c.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", c.wait(), 137)
		expectConnected(t, since, c.ID())
		c.remove()
		events.expect("delete")
		all := events.get()
		expectExecsInOrder(t, all)
		told := make(map[string]int)
		for _, e := range all {
			told[e]++
		}
		want := []string{"create", "start", "exit", "delete"}
		for round := range rounds {
			for i := range execs {
				for _, word := range []string{"exec-added", "exec-started", "exit"} {
					want = append(want, fmt.Sprintf("%s r%de%d", word, round, i))
				}
			}
		}
		for _, w := range want {
			expectEqual(t, "events "+w, told[w], 1)
		}
		expectEqual(t, "number of events", len(all), len(want))
	})
}

// Pods whose containers end in the moment of an upgrade.
func TestContainersEndInTheMomentOfAnUpgrade(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, node.HostNetwork)
		exits := watchKills(t)
		p.start("stays", "exec sleep 1000")
		const n = 8
		ids := make([]string, n)
		for i := range ids {
			ids[i] = p.start(fmt.Sprintf("c%d", i), fmt.Sprintf("until [ -e /stop ]; do sleep 0.05; done; sleep 0.%03d; exit %d", rand.IntN(500), i+1))
		}
		for _, id := range ids {
			touchStop(t, p.containerPid(id))
		}
		for range 10 {
			mustUpgrade(t, p.shimPid())
			time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		}
		for i, id := range ids {
			p.expectExited(id, int32(i+1))
		}
		for _, id := range ids {
			eventually(t, "exit is told", func() bool { return exits.told("exit", id) > 0 })
			must(t, theNode.RemoveContainer(p.ctx, id))
			expectEqual(t, "exits that are told", exits.told("exit", id), 1)
		}
	})
}

// told is how many events of a kind there have been of a container's init.
func (l *killLog) told(what, container string) (n int) {
	for _, k := range l.get() {
		if k == (kill{what, container, container}) {
			n++
		}
	}
	return n
}

// 64 pods in two shims are as before after upgrades, and the shims hold no more.
func TestUpgradeOfManyPods(t *testing.T) {
	withShared(t, "64 pods", func(t *testing.T) {
		const n = 64
		var residents []*resident
		for i := range n {
			handler := sharedShim
			if i%2 == 1 {
				handler = sharedSandboxHandler
			}
			tenant := newTenant(t, handler, node.HostNetwork)
			residents = append(residents, &resident{tenant, nil})
		}
		expectEqual(t, "pods of each shim", sizes(tenantsOf(residents)), "[32 32]")
		for _, r := range residents {
			r.was = r.lasting()
		}
		shims := shimsOf(tenantsOf(residents))
		// A program that has taken pods over holds other things for them than one that has made them.
		fresh := heldByShimsOf(t, residents)
		mustUpgrade(t, shims...)
		before := heldByShimsOf(t, residents)
		for _, shim := range shims {
			t.Logf("shim %d before the first upgrade: %s", shim, fresh[shim])
			for _, more := range added("files", fresh[shim].files, before[shim].files) {
				t.Logf("and after it: %s", more)
			}
		}
		b := newBackground(t)
		for range 4 {
			b.repeat("exec", func() error {
				r := residents[rand.IntN(n)]
				result, err := theNode.Exec(r.ctx, r.sleeper, "sh", "-c", "echo x; exit 9")
				if err == nil && (result.ExitCode != 9 || string(result.Stdout) != "x\n") {
					err = fmt.Errorf("exit code %d, output %q", result.ExitCode, result.Stdout)
				}
				return err
			})
		}
		for range 5 {
			mustUpgrade(t, shims...)
		}
		b.end()
		b.expectCalled("exec")
		expectLives(t, tenantsOf(residents)...)
		for _, r := range residents {
			is := r.lasting()
			for what, was := range r.was {
				expectEqual(t, what, is[what], was)
			}
		}
		expectHeldByShimsOf(t, residents, before)
	})
}

// lasting is what of a pod's identity an upgrade does not change: CRI may know another pid of the
// sandbox than the shim has now.
func (p *tenant) lasting() map[string]string {
	p.t.Helper()
	is := map[string]string{"file of the container's": p.exec(p.sleeper, "test -e /file || echo $RANDOM$RANDOM >/file; cat /file")}
	pid := p.livePid()
	for _, kind := range []string{"net", "ipc", "uts", "pid", "user", "mnt", "cgroup"} {
		is[kind+" of the container"] = namespace(p.t, p.pid, kind)
		is[kind+" of the sandbox"] = namespace(p.t, pid, kind)
	}
	is["start of the container"] = fmt.Sprint(p.container(p.sleeper).StartedAt)
	return is
}
