package integration

import (
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// eachPauseKind runs a test with pods of each kind, with each handler of the shim under test that
// can have it.
func eachPauseKind(t *testing.T, test func(t *testing.T, handler string, m mode)) {
	t.Helper()
	for name, m := range kinds {
		t.Run(name, func(t *testing.T) {
			each := eachPauseHandler
			if m.user {
				each = eachPauseShim // see mode.eachHandler
			}
			each(t, func(t *testing.T, shim string) { test(t, m.handler(shim), m) })
		})
	}
}

// eachPauseShim is eachShim without the stock shim.
func eachPauseShim(t *testing.T, test func(t *testing.T, shim string)) {
	t.Helper()
	for _, shim := range shims {
		if shim != "runc" {
			t.Run(shim, func(t *testing.T) {
				t.Cleanup(func() { checkLeftovers(t, shim) })
				test(t, shim)
			})
		}
	}
}

// keptFile is in the pod's /dev/shm.
const keptFile = "/dev/shm/kept"

// livePid is the sandbox's pid as the shim has it now.
func (p *pod) livePid() int {
	p.t.Helper()
	if !isSandboxAPI(p.Handler) {
		_, task := p.sandboxTask()
		return int(task.Pid())
	}
	ctx := namespaces.WithNamespace(p.ctx, node.CRINamespace)
	sandbox, err := theNode.Client().SandboxController("shim").Status(ctx, p.ID, false)
	must(p.t, err)
	return int(sandbox.Pid)
}

// podFacts is what of a pod with a container stays the same.
func (p *pod) podFacts(id string, m mode) map[string]string {
	p.t.Helper()
	facts := map[string]string{"host name": p.exec(id, "hostname"), "/dev/shm": p.exec(id, "cat "+keptFile)}
	for _, kind := range []string{"net", "ipc", "uts", "pid", "user", "mnt", "cgroup"} {
		facts[kind+" of "+id] = namespace(p.t, p.containerPid(id), kind)
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		facts[kind+" of the sandbox"] = namespace(p.t, p.livePid(), kind)
	}
	if m.pid == modePod {
		facts["init of the pod"] = fmt.Sprint(p.podInit(id))
	}
	facts["shim"] = fmt.Sprint(p.shimPid())
	if !strings.HasPrefix(p.Handler, sharedShim) {
		facts["sandbox's pid"] = fmt.Sprint(p.sandboxPid())
		facts["sandbox's pid in the shim"] = fmt.Sprint(p.livePid())
	}
	return facts
}

func expectFacts(t *testing.T, when string, got, want map[string]string) {
	t.Helper()
	for what, was := range want {
		expectEqual(t, what+" "+when, got[what], was)
	}
}

// expectJoined expects that a container which has come later has the same namespaces as another.
func (p *pod) expectJoined(m mode, later, first string) {
	p.t.Helper()
	shared := []string{"net", "ipc", "uts", "user"}
	if m.pid != modeContainer {
		shared = append(shared, "pid")
	}
	for _, kind := range shared {
		expectEqual(p.t, kind+" of the later container", namespace(p.t, p.containerPid(later), kind), namespace(p.t, p.containerPid(first), kind))
	}
	expectEqual(p.t, "/dev/shm of the later container", p.exec(later, "cat "+keptFile), p.exec(first, "cat "+keptFile))
	checkSysctls(p.t, p, later)
	checkSharing(p.t, p, m, first, later)
	if m.net == modePod {
		p.exec(first, "hostname "+p.Config.Hostname) // checkSharing has changed it
	}
	checkReaping(p.t, p, m, later)
	checkReaping(p.t, p, m, first)
	checkProcesses(p.t, p, m, first, later)
}

func TestPodsOfEachKindGoOnAfterUpgrades(t *testing.T) {
	eachPauseKind(t, func(t *testing.T, handler string, m mode) {
		since := len(readFile(t, theNode.LogFile()))
		p, empty := runPod(t, handler, m.apply), runPod(t, handler, m.apply)
		a := p.startAs("a", reaping, admin)
		p.exec(a, "echo kept >"+keptFile)
		was := p.podFacts(a, m)
		mustUpgrade(t, p.shimPid(), empty.shimPid())
		mustUpgrade(t, p.shimPid(), empty.shimPid())
		expectFacts(t, "after upgrades", p.podFacts(a, m), was)
		expectConnected(t, since, p.ID, empty.ID)
		if m.net == modePod {
			out, err := theNode.InNamespaces(p.ctx, p.livePid(), "hostname")
			must(t, err)
			expectEqual(t, "host name by nsenter", strings.TrimSpace(out), was["host name"])
		}
		b := p.startAs("b", reaping, admin)
		p.expectJoined(m, b, a)
		was = p.podFacts(a, m)

		// The first container of a pod comes after the upgrade.
		x := empty.startAs("x", reaping, admin)
		empty.exec(x, "echo other >"+keptFile)
		empty.expectJoined(m, empty.startAs("y", reaping, admin), x)

		must(t, theNode.Kill())
		must(t, theNode.Restart(p.ctx))
		expectEqual(t, "state after a restart of containerd", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
		expectFacts(t, "after a restart of containerd", p.podFacts(a, m), was)
		expectEqual(t, "sandbox's pid after a restart of containerd", p.sandboxPid(), p.livePid())
		must(t, theNode.StopContainer(p.ctx, b, 0))
		must(t, theNode.RemoveContainer(p.ctx, b))
		mustUpgrade(t, p.shimPid(), empty.shimPid())
		expectFacts(t, "after an upgrade after a restart", p.podFacts(a, m), was)
		p.expectJoined(m, p.startAs("c", reaping, admin), a)
		must(t, empty.Stop(p.ctx))
		empty.expectNotReady()
		expectFacts(t, "after the end of the other pod", p.podFacts(a, m), was)
	})
}

// What tools see of the sandbox of a pod in a shared shim after an upgrade: the shim has another
// pid for it, CRI has the old one until containerd is started again.
func TestSandboxPidAfterUpgrade(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := []*tenant{newTenant(t, handler, nil), newTenant(t, handler, nil)}
		for range 3 {
			mustUpgrade(t, pods[0].shim)
		}
		if pods[0].livePid() == pods[1].livePid() {
			t.Error("both sandboxes have the same pid")
		}
		for _, p := range pods {
			pid := p.livePid()
			t.Logf("pid of the sandbox: %d in the shim, %d in CRI", pid, p.sandboxPid())
			if !isThread(p.shim, pid) || pid == p.shim {
				t.Errorf("the sandbox's pid is %d, which is no other thread of shim %d", pid, p.shim)
			}
			for _, kind := range []string{"net", "ipc", "uts"} {
				expectEqual(t, kind, namespace(t, pid, kind), namespace(t, p.pid, kind))
				expectEqual(t, "threads in "+kind, len(threadsIn(t, p.shim, kind, namespace(t, p.pid, kind))), 1)
				expectEqual(t, kind+" of the shim", namespace(t, p.shim, kind), namespace(t, "self", kind))
			}
			p.start("server", "mkdir /www; echo page >/www/index.html; httpd -f -p 8080 -h /www")
			expectEqual(t, "answer through port-forward", p.forwarded(8080), "page\n")
			if !isSandboxAPI(handler) {
				list, err := theNode.Ctr(p.ctx, node.CRINamespace, "task", "ls")
				must(t, err)
				expectLine(t, list, p.ID, fmt.Sprint(pid), "RUNNING")
			}
		}
		gone := namespace(t, pods[0].pid, "ipc")
		pods[0].remove()
		eventually(t, "no thread of the shim is in them", func() bool { return len(threadsIn(t, pods[1].shim, "ipc", gone)) == 0 })
		expectLives(t, pods[1])
		expectWorks(t, pods[1])
	})
}

func TestHooksOfSandboxRunAfterUpgrade(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		p := podByHand(t, shim, l.quiet()...)
		p.sandbox.create(cio.NullIO)
		mustUpgrade(t, p.sandbox.shimPid())
		expectEqual(t, "hooks of create", l.order(), "prestart createRuntime createContainer")
		must(t, p.sandbox.task.Start(p.sandbox.ctx))
		mustUpgrade(t, p.sandbox.shimPid())
		m := p.member(sh("exit 3"))
		m.run(m.streams(nil))
		expectEqual(t, "exit code of a member", m.wait(), 3)
		must(t, p.sandbox.task.Kill(p.sandbox.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, p.sandbox.exited), 137)
		mustUpgrade(t, p.sandbox.shimPid())
		m.remove()
		p.sandbox.remove()
		expectEqual(t, "hooks of all", l.order(), strings.Join(hookKinds, " "))
	})
}

func TestPausedContainerAfterUpgrade(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"))
		events := subscribe(t, c)
		c.run(c.streams(nil))
		c.out.expect(t, "\n3\n")
		paused := func() {
			t.Helper()
			must(t, c.task.Pause(c.ctx))
			mustUpgrade(t, c.shimPid())
			status, err := c.task.Status(c.ctx)
			must(t, err)
			expectEqual(t, "status", status.Status, containerd.Paused)
			expectEqual(t, "frozen", frozen(t, c.task.Pid()), true)
		}
		paused()
		must(t, c.task.Resume(c.ctx))
		lines := strings.Count(c.out.String(), "\n")
		c.out.expect(t, fmt.Sprintf("\n%d\n", lines+5))
		paused()
		must(t, c.task.Kill(c.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", c.wait(), 137)
		c.remove()
		events.expectAll("create", "start", "paused", "resumed", "paused", "exit", "delete")
	})
}

func TestKillsForLackOfMemoryAreToldOnceAcrossUpgrades(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		events := watchKills(t)
		c := startContainer(t, shim, limited(victim+"; echo first; until [ -e /go ]; do sleep 0.1; done; "+victim+"; "+victim+"; exit 3"))
		c.out.expect(t, "first")
		for range 3 {
			mustUpgrade(t, c.shimPid())
		}
		c.exec("e", nil, nil, "touch", "/go").mustFinish(0)
		expectEqual(t, "exit code of init", c.wait(), 3)
		events.expect(shim, c.ID(), 3)
		// A kill while nobody watches.
		during := startContainer(t, shim, limited("i=0; while [ $i -lt 20 ]; do "+victim+"; i=$((i+1)); done; exit 4"))
		ended := make(chan uint32, 1)
		go func() { ended <- exitCode(t, during.exited) }()
		n := 0
		for end := false; !end; n++ {
			select {
			case code := <-ended:
				expectEqual(t, "exit code", code, 4)
				end = true
			default:
				mustUpgrade(t, during.shimPid())
			}
		}
		t.Logf("%d upgrades", n)
		events.expect(shim, during.ID(), 20)
		init := startContainer(t, shim, limited("until [ -e /go ]; do sleep 0.1; done; exec "+hog))
		mustUpgrade(t, init.shimPid())
		touch(t, int(init.task.Pid()), "/go")
		expectEqual(t, "exit code", init.wait(), 137)
		events.expect(shim, init.ID(), 1)
	})
}

// What was made and not started is started by the new program.
func TestStartAfterUpgrade(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		for _, tty := range []bool{false, true} {
			cfg := sh("read line; echo got $line; exit 7")
			if tty {
				cfg.spec = []oci.SpecOpts{oci.WithTTY}
			}
			c := newContainer(t, shim, cfg)
			events := subscribe(t, c)
			stdin, in := io.Pipe()
			if tty {
				c.create(c.terminal(stdin))
			} else {
				c.create(c.streams(stdin))
			}
			mustUpgrade(t, c.shimPid())
			status, err := c.task.Status(c.ctx)
			must(t, err)
			expectEqual(t, "status", status.Status, containerd.Created)
			must(t, c.task.Start(c.ctx))
			_, err = io.WriteString(in, "a line\n")
			must(t, err)
			expectEqual(t, "exit code", c.wait(), 7)
			in.Close()
			if !strings.Contains(c.out.String(), "got a line") {
				t.Errorf("output: %q", c.out.String())
			}
			c.remove()
			events.expectAll("create", "start", "exit", "delete")
		}
		c := startContainer(t, shim, sh("exec sleep 1000"))
		for _, tty := range []bool{false, true} {
			p, err := c.addExec(fmt.Sprintf("e%t", tty), strings.NewReader("a line\n"), func(s *specs.Process) { s.Terminal = tty }, "sh", "-c", "stty size; read line; echo got $line; exit 8")
			must(t, err)
			if tty {
				must(t, p.Resize(c.ctx, 120, 30))
			}
			mustUpgrade(t, c.shimPid())
			p.start()
			p.mustFinish(8)
			if !strings.Contains(p.out.String(), "got a line") || tty && !strings.Contains(p.out.String(), "30 120") {
				t.Errorf("output of the exec: %q", p.out.String())
			}
		}
		// One that is never started is deleted.
		p, err := c.addExec("never", nil, nil, "true")
		must(t, err)
		mustUpgrade(t, c.shimPid())
		_, err = p.Delete(c.ctx)
		must(t, err)
		c.exec("never", nil, nil, "true").mustFinish(0)
	})
}

func TestStoppedTaskAfterUpgrade(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("exec sleep 1000"))
		done := c.exec("done", nil, nil, "sh", "-c", "exit 9")
		expectEqual(t, "exit code of the exec", exitCode(t, done.exited), 9)
		mustUpgrade(t, c.shimPid())
		status, err := done.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status of the exec", status.Status, containerd.Stopped)
		exit, err := done.Delete(c.ctx)
		must(t, err)
		expectEqual(t, "exit code of the deleted exec", exit.ExitCode(), 9)

		must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
		expectEqual(t, "exit code", c.wait(), 137)
		state := func() string {
			task, done, err := theNode.Shim(theNode.ID, c.ID())
			must(t, err)
			defer done()
			ctx := namespaces.WithNamespace(c.ctx, theNode.ID)
			s, err := task.State(ctx, &taskv3.StateRequest{ID: c.ID()})
			must(t, err)
			pids, err := task.Pids(ctx, &taskv3.PidsRequest{ID: c.ID()})
			must(t, err)
			w, err := task.Wait(ctx, &taskv3.WaitRequest{ID: c.ID()})
			must(t, err)
			return fmt.Sprint(s, pids, w)
		}
		before := state()
		mustUpgrade(t, c.shimPid())
		expectEqual(t, "state", state(), before)
		again, err := c.task.Wait(c.ctx)
		must(t, err)
		expectEqual(t, "exit code", exitCode(t, again), 137)
		deleted, err := c.task.Delete(c.ctx)
		must(t, err)
		expectEqual(t, "exit code of the deleted task", deleted.ExitCode(), 137)
	})
}
