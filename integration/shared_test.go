package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// boundedHandlers are handlers whose shims take in few pods.
func boundedHandlers() (list []node.Handler) {
	for _, bound := range []int{2, 3, 8} {
		for base, sandboxer := range map[string]string{sharedShim: "", sharedSandboxHandler: "shim"} {
			list = append(list, node.Handler{
				Name: bounded(base, bound), Type: node.SharedType, OCIRuntime: ociRuntime, Sandboxer: sandboxer,
				Options: fmt.Sprintf("  PodsPerShim = %d\n", bound),
			})
		}
	}
	return list
}

// bounded is the name of the handler that is like another one, with a bound.
func bounded(handler string, bound int) string { return fmt.Sprintf("%s-%d", handler, bound) }

// withShared runs a test that is about shared shims.
func withShared(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	if !slices.Contains(shims, sharedShim) {
		t.Skip("PAUSE_TEST_SHIMS is without the shim that this is about")
	}
	t.Run(name, func(t *testing.T) {
		t.Cleanup(func() { checkLeftovers(t, sharedShim) })
		test(t)
	})
}

// eachSharedHandler runs a test with pods that share shims, made in both ways that
// containerd has.
func eachSharedHandler(t *testing.T, test func(t *testing.T, handler string)) {
	t.Helper()
	for _, handler := range []string{sharedShim, sharedSandboxHandler} {
		withShared(t, handler, func(t *testing.T) { test(t, handler) })
	}
}

// tenant is a pod in a shared shim, with a container that does nothing. The end of the test
// removes it.
type tenant struct {
	*pod
	sleeper string
	pid     int // of the sleeper
	shim    int
}

func newTenant(t *testing.T, handler string, change func(*runtime.PodSandboxConfig)) *tenant {
	t.Helper()
	ctx := testContext(t)
	p, err := theNode.RunPod(ctx, handler, change)
	must(t, err)
	id, pid, err := startSleeper(ctx, p)
	must(t, err)
	shim, err := p.ShimPid()
	must(t, err)
	return &tenant{&pod{p, t, ctx}, id, pid, shim}
}

// tenants are pods that have come one after the other.
func tenants(t *testing.T, handler string, n int) (pods []*tenant) {
	t.Helper()
	for range n {
		pods = append(pods, newTenant(t, handler, node.HostNetwork))
	}
	return pods
}

// remove removes the pod as kubelet does.
func (p *tenant) remove() {
	p.t.Helper()
	must(p.t, p.Stop(p.ctx))
	must(p.t, p.Remove(p.ctx))
}

// expectLives expects that pods are as they were, and still in the same shim.
func expectLives(t *testing.T, pods ...*tenant) {
	t.Helper()
	for _, p := range pods {
		expectEqual(t, "state of pod "+p.ID, p.status().State, runtime.PodSandboxState_SANDBOX_READY)
		expectEqual(t, "state of its container", p.container(p.sleeper).State, runtime.ContainerState_CONTAINER_RUNNING)
		expectEqual(t, "process of its container", p.containerPid(p.sleeper), p.pid)
		must(t, unix.Kill(p.pid, 0))
		expectEqual(t, "exec", p.exec(p.sleeper, "echo lives"), "lives")
		shim, err := p.ShimPid()
		must(t, err)
		expectEqual(t, "shim", shim, p.shim)
	}
}

// expectWorks expects that a pod does all that a pod does: a container comes, prints, and goes.
func expectWorks(t *testing.T, pods ...*tenant) {
	t.Helper()
	for _, p := range pods {
		id := p.start("new", "echo output; exit 7")
		p.expectExited(id, 7)
		log := filepath.Join(p.Config.LogDirectory, "new.log")
		eventually(t, "the output is in the log", func() bool { return strings.Contains(readFile(t, log), " stdout F output\n") })
		must(t, theNode.RemoveContainer(p.ctx, id))
		must(t, os.Remove(log))
	}
}

// shimsOf are the shims of pods, in the order in which they occur.
func shimsOf(pods []*tenant) (pids []int) {
	for _, p := range pods {
		if !slices.Contains(pids, p.shim) {
			pids = append(pids, p.shim)
		}
	}
	return pids
}

// sizes are how many of the pods each shim has, in order.
func sizes(pods []*tenant) string {
	var counts []int
	for _, shim := range shimsOf(pods) {
		n := 0
		for _, p := range pods {
			if p.shim == shim {
				n++
			}
		}
		counts = append(counts, n)
	}
	slices.Sort(counts)
	return fmt.Sprint(counts)
}

func TestPodsOfAHandlerShareAShim(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := tenants(t, handler, 4)
		expectEqual(t, "pods of each shim", sizes(pods), "[4]")
		expectLives(t, pods...)
		expectWorks(t, pods...)
		for _, p := range pods {
			p.remove()
		}
		expectEnded(t, pods[0].shim)
	})
}

// Who makes the spec of a sandbox is not the shim's business.
func TestPodsOfBothSandboxersShareAShim(t *testing.T) {
	withShared(t, "both", func(t *testing.T) {
		pods := append(tenants(t, sharedShim, 1), tenants(t, sharedSandboxHandler, 1)...)
		expectEqual(t, "pods of each shim", sizes(pods), "[2]")
		pods[0].remove()
		expectLives(t, pods[1])
		expectWorks(t, pods[1])
	})
}

func TestPodsWithOtherOptionsAreElsewhere(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := append(tenants(t, handler, 2), tenants(t, bounded(handler, 3), 2)...)
		expectEqual(t, "pods of each shim", sizes(pods), "[2 2]")
	})
}

func TestShimTakesInNoMorePodsThanItsBound(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		handler = bounded(handler, 3)
		pods := tenants(t, handler, 7)
		expectEqual(t, "pods of each shim", sizes(pods), "[1 3 3]")
		// Room that a pod leaves is for the next one.
		pods[1].remove()
		next := newTenant(t, handler, node.HostNetwork)
		expectEqual(t, "shim of the next", next.shim, pods[0].shim)
		pods[1] = next
		expectLives(t, pods...)
	})
}

func TestPodsThatComeAtOnceFillShims(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		const n, bound = 40, 8
		ctx := testContext(t)
		pods, errs := make([]*tenant, n), make([]error, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				p, err := theNode.RunPod(ctx, bounded(handler, bound), node.HostNetwork)
				pods[i], errs[i] = &tenant{pod: &pod{p, t, ctx}}, err
			})
		}
		all.Wait()
		must(t, errors.Join(errs...))
		for _, p := range pods {
			shim, err := p.ShimPid()
			must(t, err)
			p.shim = shim
		}
		expectEqual(t, "pods of each shim", sizes(pods), "[8 8 8 8 8]")
		// As many at once go.
		for i, p := range pods {
			all.Go(func() { errs[i] = errors.Join(p.Stop(ctx), p.Remove(ctx)) })
		}
		all.Wait()
		must(t, errors.Join(errs...))
		expectEnded(t, shimsOf(pods)...)
	})
}

// The shim runs in the bundle of the pod that it was started for, and logs to a fifo there.
func TestFirstPodIsRemovedFirst(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := tenants(t, handler, 3)
		pods[0].remove()
		expectLives(t, pods[1:]...)
		expectWorks(t, pods[1:]...)
		expectLogged(t, pods[1].shim)
		next := newTenant(t, handler, nil)
		expectEqual(t, "shim of the next", next.shim, pods[1].shim)
		pods[1].remove()
		expectLogged(t, next.shim)
		expectLives(t, pods[2], next)
		expectWorks(t, pods[2], next)
	})
}

// expectLogged expects that what the shim logs reaches containerd. The shim logs its stacks
// on SIGUSR1.
func expectLogged(t *testing.T, shim int) {
	t.Helper()
	count := func() int { return strings.Count(readFile(t, theNode.LogFile()), "=== end of stacks ===") }
	before := count()
	must(t, unix.Kill(shim, unix.SIGUSR1))
	eventually(t, "the shim's log is in containerd's", func() bool { return count() > before })
}

// Each way to end a pod ends that one.
func TestEndOfAPodLeavesOthersAlone(t *testing.T) {
	for name, end := range map[string]func(p *tenant){
		"stop":                func(p *tenant) { must(p.t, p.Stop(p.ctx)) },
		"remove":              func(p *tenant) { must(p.t, p.Remove(p.ctx)) },
		"end of the sandbox":  func(p *tenant) { p.killSandbox() },
		"end of a container":  func(p *tenant) { must(p.t, unix.Kill(p.pid, unix.SIGKILL)); p.expectExited(p.sleeper, 137) },
		"Shutdown of the pod": func(p *tenant) { p.askToShutDown(p.ID) },
		"Shutdown of nothing": func(p *tenant) { p.askToShutDown("") },
		"Shutdown of what is not there": func(p *tenant) {
			p.askToShutDown("no-such-id")
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachSharedHandler(t, func(t *testing.T, handler string) {
				pods := tenants(t, handler, 3)
				end(pods[1])
				if strings.HasPrefix(name, "Shutdown") {
					expectLives(t, pods[1]) // that is asked after each task
				}
				expectLives(t, pods[0], pods[2])
				expectWorks(t, pods[0], pods[2])
				pods[1].remove()
				expectLives(t, pods[0], pods[2])
				pods[0].remove()
				expectLives(t, pods[2])
				pods[2].remove()
				expectEnded(t, pods[2].shim)
			})
		})
	}
}

// askToShutDown calls Shutdown of the Task API, past containerd.
func (p *tenant) askToShutDown(id string) {
	p.t.Helper()
	task, done, err := theNode.Shim(node.CRINamespace, p.sleeper)
	must(p.t, err)
	defer done()
	_, err = task.Shutdown(namespaces.WithNamespace(p.ctx, node.CRINamespace), &taskv3.ShutdownRequest{ID: id, Now: true})
	must(p.t, err)
}

// The pid of the sandbox is that of a thread, which all that tools do with pids takes.
func TestSandboxPidIsThatOfAThread(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := []*tenant{newTenant(t, handler, nil), newTenant(t, handler, nil)}
		expectEqual(t, "pods of each shim", sizes(pods), "[2]")
		for _, p := range pods {
			pid := p.sandboxPid()
			if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", p.shim, pid)); err != nil || pid == p.shim {
				t.Errorf("the sandbox's pid is %d, which is no other thread of shim %d", pid, p.shim)
			}
			for _, kind := range []string{"net", "ipc", "uts"} {
				expectEqual(t, kind, namespace(t, pid, kind), namespace(t, p.pid, kind))
			}
			for _, kind := range []string{"mnt", "pid", "user"} {
				expectEqual(t, kind, namespace(t, pid, kind), namespace(t, "self", kind))
			}
			out, err := theNode.InNamespaces(p.ctx, pid, "hostname")
			must(t, err)
			expectEqual(t, "host name by nsenter", strings.TrimSpace(out), p.Config.Hostname)
			p.start("server", "mkdir /www; echo page >/www/index.html; httpd -f -p 8080 -h /www")
			expectEqual(t, "answer through port-forward", p.forwarded(8080), "page\n")
			expectEqual(t, "answer by the pod's address", httpGet("http://"+p.status().Network.Ip+":8080/"), "page\n")
			if !isSandboxAPI(handler) {
				list, err := theNode.Ctr(p.ctx, node.CRINamespace, "task", "ls")
				must(t, err)
				expectLine(t, list, p.ID, fmt.Sprint(pid), "RUNNING")
			}
		}
		if pods[0].sandboxPid() == pods[1].sandboxPid() {
			t.Error("both sandboxes have the same pid")
		}
		for _, kind := range []string{"net", "ipc", "uts"} {
			if namespace(t, pods[0].pid, kind) == namespace(t, pods[1].pid, kind) {
				t.Errorf("both pods have the same %s", kind)
			}
			expectEqual(t, kind+" of the shim", namespace(t, pods[0].shim, kind), namespace(t, "self", kind))
		}
	})
}

// When a sandbox has gone, no thread holds its namespaces any more.
func TestNamespacesOfAPodGoWithIt(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := []*tenant{newTenant(t, handler, nil), newTenant(t, handler, nil), newTenant(t, handler, nil)}
		gone := namespace(t, pods[1].sandboxPid(), "ipc")
		expectEqual(t, "threads in it", len(threadsIn(t, pods[1].shim, "ipc", gone)), 1)
		pods[1].remove()
		eventually(t, "no thread of the shim is in them", func() bool { return len(threadsIn(t, pods[0].shim, "ipc", gone)) == 0 })
		expectLives(t, pods[0], pods[2])
	})
}

// threadsIn are the threads of a process that are in a namespace.
func threadsIn(t *testing.T, pid int, kind, ns string) (threads []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/%s", pid, kind))
	must(t, err)
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && target == ns {
			threads = append(threads, link)
		}
	}
	return threads
}

func TestContainersWithoutAPodShareAShim(t *testing.T) {
	withShared(t, "containers", func(t *testing.T) {
		shimOf := func(c *container) int {
			pid, err := theNode.ShimPid(theNode.ID, c.ID())
			must(t, err)
			return pid
		}
		first, second := startContainer(t, sharedShim, sh("exec sleep 1000")), startContainer(t, sharedShim, sh("exit 6"))
		shim := shimOf(first)
		expectEqual(t, "exit code", second.wait(), 6)
		expectEqual(t, "shim of the second", shimOf(second), shim)
		cfg := sh("exec sleep 1000")
		cfg.spec = []oci.SpecOpts{oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": "a-group"})}
		alone, member := newContainer(t, sharedShim, cfg), newContainer(t, sharedShim, cfg)
		alone.run(cio.NullIO)
		member.run(cio.NullIO)
		if shimOf(alone) == shim {
			t.Error("a container with a group of its own is in the shared shim")
		}
		expectEqual(t, "shim of the group's other member", shimOf(member), shimOf(alone))
		out := nodeShell(t, "ctr run --rm --runtime "+node.SharedType+" $IMAGE by-ctr sh -c 'echo by ctr'")
		expectEqual(t, "output", out, "by ctr\n")
		alone.remove()
		member.remove()
		second.remove()
		first.exec("e", nil, nil, "true").mustFinish(0)
		first.remove()
	})
}
