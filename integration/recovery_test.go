package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// exitWhileAway is what becomes of an exit code 9 that comes when containerd is
// dead. On its start, containerd 2.4 takes a shim whose task has no process for
// one that has leaked, and removes it; it then reports 255 for the container.
var exitWhileAway = map[string]int32{"runc": 255, "pause": 9, sandboxHandler: 9, sharedShim: 9, sharedSandboxHandler: 9}

func TestContainerdIsKilledWhilePodsRun(t *testing.T) {
	eachKind(t, func(t *testing.T, shim string, m mode) {
		p := runPod(t, m.handler(shim), m.apply)
		stays := p.start("stays", "sleep 1000")
		ends := p.start("ends", "trap 'exit 9' TERM; touch /up; while :; do sleep 0.1; done")
		eventually(t, "trap is set", func() bool {
			r, err := theNode.Exec(p.ctx, ends, "ls", "/up")
			return err == nil && r.ExitCode == 0
		})
		pid := p.containerPid(ends)
		sandbox := p.sandboxPid()
		must(t, theNode.Kill())
		// It ends while nobody listens.
		must(t, unix.Kill(pid, unix.SIGTERM))
		eventually(t, "container has ended", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
		must(t, theNode.Restart(p.ctx))

		p.expectExited(ends, exitWhileAway[shim])
		expectEqual(t, "state of the other", p.container(stays).State, runtime.ContainerState_CONTAINER_RUNNING)
		expectEqual(t, "state of the pod", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
		expectEqual(t, "sandbox's pid", p.sandboxPid(), sandbox)
		expectEqual(t, "exec", p.exec(stays, "echo still here"), "still here")
		p.exec(p.start("new", "sleep 1000"), "true")
	})
}

func TestContainerdIsStoppedWhileTaskRuns(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("sleep 1000"))
		c.run(c.detached(false))
		must(t, theNode.Stop())
		must(t, theNode.Restart(c.ctx))
		again, err := theNode.Client().LoadContainer(c.ctx, c.ID())
		must(t, err)
		c.Container = again
		task, err := again.Task(c.ctx, nil)
		must(t, err)
		exited, err := task.Wait(c.ctx)
		must(t, err)
		must(t, task.Kill(c.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, exited), 137)
	})
}

// exitOfKilledShim is the exit code that CRI gives to a container whose shim was
// killed: unknown, since its Wait has failed before the shim's delete call is made.
const exitOfKilledShim = 255

// removeInTheEnd removes a pod while containerd may still be cleaning up after
// its shim; the calls fail until that is done.
func (p *pod) removeInTheEnd() {
	p.t.Helper()
	eventually(p.t, "pod is removed", func() bool {
		return p.Stop(p.ctx) == nil && p.Remove(p.ctx) == nil
	})
}

// forgiveSocket removes the socket of a stock shim that was killed, or whose
// sandbox was: nothing else does.
func forgiveSocket(t *testing.T, shim string) {
	t.Helper()
	if shim != "runc" {
		return
	}
	sockets, err := filepath.Glob(filepath.Join(theNode.Dir, "s", "*"))
	must(t, err)
	for _, s := range sockets {
		must(t, os.Remove(s))
	}
}

// A pod that shares its PID namespace ends with PID 1, which its containers may
// tell to, and the host may kill.
func TestPodEndsWithItsInit(t *testing.T) {
	for _, name := range []string{"told from inside", "killed from outside"} {
		t.Run(name, func(t *testing.T) {
			eachHandler(t, func(t *testing.T, shim string) {
				p := runPod(t, shim, mode{pid: modePod}.apply)
				id := p.start("c", "sleep 1000")
				expectEqual(t, "PID 1", p.exec(id, "tr '\\0' ' ' </proc/1/cmdline"), "/pause")
				if name == "told from inside" {
					_, err := theNode.Exec(p.ctx, id, "kill", "-TERM", "1")
					must(t, err)
				} else {
					must(t, unix.Kill(p.podInit(id), unix.SIGKILL))
				}
				p.expectExited(id, 137)
				p.expectNotReady()
				p.removeInTheEnd()
			})
		})
	}
}

// podInit is the pid of PID 1 in the PID namespace of a container.
func (p *pod) podInit(id string) int {
	p.t.Helper()
	want := namespace(p.t, p.containerPid(id), "pid")
	for _, process := range node.Processes() {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", process.Pid))
		if err == nil && link == want && process.Args[0] == "/pause" {
			return process.Pid
		}
	}
	p.t.Fatal("there is no PID 1")
	return 0
}

// containerd cleans up after a shim that was killed, by the shim's delete call.
func TestShimOfPodIsKilled(t *testing.T) {
	eachKind(t, func(t *testing.T, shim string, m mode) {
		p := runPod(t, m.handler(shim), m.apply)
		id := p.start("c", "sleep 1000")
		pid, err := p.ShimPid()
		must(t, err)
		p.neighbourEndsWithShim()
		must(t, unix.Kill(pid, unix.SIGKILL))
		p.expectNotReady()
		p.expectExited(id, exitOfKilledShim)
		p.removeInTheEnd()
		forgiveSocket(t, shim)
	})
}

func TestShimOfEmptyPodIsKilled(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		pid, err := p.ShimPid()
		must(t, err)
		p.neighbourEndsWithShim()
		must(t, unix.Kill(pid, unix.SIGKILL))
		p.expectNotReady()
		p.removeInTheEnd()
		forgiveSocket(t, shim)
	})
}

func TestShimOfTaskIsKilled(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("sleep 1000"))
		events := subscribe(t, c)
		c.run(c.streams(nil))
		pid, err := theNode.ShimPid(theNode.ID, c.ID())
		must(t, err)
		c.neighbourEndsWithShim()
		must(t, unix.Kill(pid, unix.SIGKILL))
		events.expectAll("create", "start", "exit", "delete")
		forgiveSocket(t, shim)
		eventually(t, "init has ended", func() bool { return unix.Kill(int(c.task.Pid()), 0) == unix.ESRCH })
	})
}

// The shim is killed while containerd is dead: it is found on the next start.
func TestShimAndContainerdAreKilled(t *testing.T) {
	eachKind(t, func(t *testing.T, shim string, m mode) {
		p := runPod(t, m.handler(shim), m.apply)
		id := p.start("c", "sleep 1000")
		pid, err := p.ShimPid()
		must(t, err)
		must(t, theNode.Kill())
		p.neighbourEndsWithShim()
		must(t, unix.Kill(pid, unix.SIGKILL))
		must(t, theNode.Restart(p.ctx))
		p.expectNotReady()
		eventually(t, "container has exited", func() bool {
			return p.container(id).State == runtime.ContainerState_CONTAINER_EXITED
		})
		p.removeInTheEnd()
		forgiveSocket(t, shim)
	})
}

// podsInSequence says how many pods come and go.
var podsInSequence = map[string]int{"runc": 10, "pause": 200, sandboxHandler: 50, sharedShim: 50, sharedSandboxHandler: 50}

// Pods that come and go leave no file open in the daemon, and nothing else. Its
// memory is shown only: when Go's runtime gives it back is its own business.
func TestPodsLeaveNoFilesOpen(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		n := podsInSequence[shim]
		one := func() {
			p := runPod(t, shim, nil)
			p.exec(p.start("c", "sleep 1000"), "true")
			must(t, p.Stop(p.ctx))
			must(t, p.Remove(p.ctx))
		}
		count := func() map[string]int {
			files, err := node.OpenFiles(theNode.DaemonPid())
			must(t, err)
			return files
		}
		one() // what stays open once
		before, memory := count(), daemonMemory(t)
		for i := range n {
			one()
			if i%50 == 49 {
				fmt.Printf("    %d of %d pods have come and gone\n", i+1, n)
			}
		}
		defer func() {
			t.Logf("after %d pods: open files before %d, after %d; memory of containerd before %s, after %s",
				n, total(before), total(count()), memory, daemonMemory(t))
			if t.Failed() {
				t.Logf("open before: %v\nopen after: %v", before, count())
			}
		}()
		eventually(t, "as many files are open as before", func() bool { return !grown(before, count()) })
	})
}

// daemonMemory is the daemon's private memory.
func daemonMemory(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("%d kB", anonymousMemory(t, theNode.DaemonPid()))
}

// anonymousMemory is the private memory of a process in kB, as proc_pid_status(5) has it.
func anonymousMemory(t *testing.T, pid int) (kB int) {
	t.Helper()
	status := readFile(t, fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := strings.Cut(status, "RssAnon:")
	_, err := fmt.Sscan(rest, &kB)
	must(t, err)
	return kB
}

func total(files map[string]int) (n int) {
	for _, count := range files {
		n += count
	}
	return n
}

func grown(before, after map[string]int) bool {
	for kind := range maps.Keys(after) {
		if after[kind] > before[kind] {
			return true
		}
	}
	return false
}

// stepsOfLife are what happens to a pod, in this order.
var stepsOfLife = []string{"sandbox run", "container created", "container started", "container stopped", "sandbox stopped"}

// live lets a pod live up to a step.
func live(t *testing.T, p *pod, step string) (id string) {
	t.Helper()
	for _, s := range stepsOfLife {
		var err error
		switch s {
		case "container created":
			id, err = p.CreateContainer(p.ctx, "c", []string{"sleep", "1000"}, nil)
		case "container started":
			err = theNode.StartContainer(p.ctx, id)
		case "container stopped":
			err = theNode.StopContainer(p.ctx, id, 0)
		case "sandbox stopped":
			err = p.Stop(p.ctx)
		}
		must(t, err)
		if s == step {
			return id
		}
	}
	t.Fatalf("there is no step %q", step)
	return ""
}

func TestContainerdIsKilledAtEachStep(t *testing.T) {
	eachStep(t, func(t *testing.T, handler, step string) {
		p := runPod(t, handler, nil)
		id := live(t, p, step)
		must(t, theNode.Kill())
		must(t, theNode.Restart(p.ctx))
		ready := runtime.PodSandboxState_SANDBOX_READY
		if step == "sandbox stopped" {
			ready = runtime.PodSandboxState_SANDBOX_NOTREADY
		}
		expectEqual(t, "state of the pod", p.status().State, ready)
		switch step {
		case "sandbox run":
			p.exec(p.start("new", "sleep 1000"), "true")
		case "container created":
			if isSandboxAPI(handler) {
				// When it starts, CRI removes the files that the container was to
				// have; the next one finds them again.
				id = p.start("again", "sleep 1000")
			} else {
				must(t, theNode.StartContainer(p.ctx, id))
			}
			expectEqual(t, "host name", p.exec(id, "cat /etc/hostname"), p.Config.Hostname)
		case "container started":
			// The new one's files are those of the old one.
			p.exec(id, "echo shared >/dev/shm/x")
			expectEqual(t, "/dev/shm/x", p.exec(p.start("new", "sleep 1000"), "cat /dev/shm/x"), "shared")
		case "container stopped":
			expectEqual(t, "exit code", p.container(id).ExitCode, 137)
		}
	})
}

func TestShimIsKilledAtEachStep(t *testing.T) {
	eachStep(t, func(t *testing.T, handler, step string) {
		p := runPod(t, handler, nil)
		pid, err := p.ShimPid()
		must(t, err)
		live(t, p, step)
		p.neighbourEndsWithShim()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && (err != unix.ESRCH || step != "sandbox stopped") {
			t.Fatal(err)
		}
		p.expectNotReady()
		p.removeInTheEnd()
		forgiveSocket(t, handler)
	})
}

func eachStep(t *testing.T, test func(t *testing.T, handler, step string)) {
	t.Helper()
	for _, step := range stepsOfLife {
		t.Run(step, func(t *testing.T) {
			eachHandler(t, func(t *testing.T, handler string) { test(t, handler, step) })
		})
	}
}
