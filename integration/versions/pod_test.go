package versions

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/integration/nodetest"
)

// pod is a pod that a test runs; runCases removes it, unless the test does.
type pod struct {
	*node.Pod
	t   *testing.T
	ctx context.Context
}

func runPod(t *testing.T, handler string, change func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	ctx := testContext(t)
	p, err := theNode.RunPod(ctx, handler, change)
	must(t, err)
	return &pod{p, t, ctx}
}

// in is the pod in another test, such as one after its start.
func (p *pod) in(t *testing.T) *pod {
	t.Helper()
	return &pod{p.Pod, t, testContext(t)}
}

// start creates and starts a container that runs a script.
func (p *pod) start(name, script string) (id string) {
	p.t.Helper()
	id, err := p.CreateContainer(p.ctx, name, []string{"sh", "-c", script}, nil)
	must(p.t, err)
	must(p.t, theNode.StartContainer(p.ctx, id))
	return id
}

// trapping ends with exit code 9 on SIGTERM, once it is up.
const trapping = "trap 'exit 9' TERM; touch /up; while :; do sleep 0.1; done"

func (p *pod) startTrapping(name string) (id string) {
	p.t.Helper()
	id = p.start(name, trapping)
	eventually(p.t, "trap is set", func() bool {
		r, err := theNode.Exec(p.ctx, id, "ls", "/up")
		return err == nil && r.ExitCode == 0
	})
	return id
}

// exec runs a script in a container and returns what it prints.
func (p *pod) exec(id, script string) string {
	p.t.Helper()
	r, err := theNode.Exec(p.ctx, id, "sh", "-c", script)
	must(p.t, err)
	if r.ExitCode != 0 {
		p.t.Fatalf("%s: exit code %d, %s", script, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func (p *pod) status() *runtime.PodSandboxStatus {
	p.t.Helper()
	s, err := p.Status(p.ctx)
	must(p.t, err)
	return s
}

// remove stops and removes the pod, and checks that the daemon knows it no longer.
func (p *pod) remove() {
	p.t.Helper()
	must(p.t, p.Stop(p.ctx))
	expectEqual(p.t, "state after the stop", p.status().State, runtime.PodSandboxState_SANDBOX_NOTREADY)
	must(p.t, p.Remove(p.ctx))
	if _, err := p.Status(p.ctx); err == nil {
		p.t.Error("the pod is still there")
	}
}

// removeInTheEnd removes a pod while containerd may still be cleaning up after
// its shim; the calls fail until that is done.
func (p *pod) removeInTheEnd() {
	p.t.Helper()
	eventually(p.t, "pod is removed", func() bool { return p.Stop(p.ctx) == nil && p.Remove(p.ctx) == nil })
}

func (p *pod) expectExited(id string, code int32) {
	p.t.Helper()
	var s *runtime.ContainerStatus
	eventually(p.t, "container has exited", func() bool {
		var err error
		s, err = theNode.ContainerStatus(p.ctx, id)
		return err == nil && s.State == runtime.ContainerState_CONTAINER_EXITED
	})
	expectEqual(p.t, "exit code", s.ExitCode, code)
}

// expectEnded waits until CRI knows that a container has ended, somehow.
func (p *pod) expectEnded(id string) {
	p.t.Helper()
	eventually(p.t, "container has exited", func() bool {
		s, err := theNode.ContainerStatus(p.ctx, id)
		return err == nil && s.State == runtime.ContainerState_CONTAINER_EXITED
	})
}

func (p *pod) expectNotReady() {
	p.t.Helper()
	eventually(p.t, "pod is not ready", func() bool {
		s, err := p.Status(p.ctx) // fails for a moment after the end of a shim
		return err == nil && s.State == runtime.PodSandboxState_SANDBOX_NOTREADY
	})
}

// expectServed checks what containerd asks of a shim for a pod that it has started.
func (p *pod) expectServed(id string) {
	p.t.Helper()
	expectEqual(p.t, "state of the pod", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
	s, err := theNode.ContainerStatus(p.ctx, id)
	must(p.t, err)
	expectEqual(p.t, "state of the container", s.State, runtime.ContainerState_CONTAINER_RUNNING)
	expectEqual(p.t, "exec", p.exec(id, "hostname"), p.Config.Hostname)
	p.expectStats(id)
}

// expectStats checks a container's memory, which no process can be without.
func (p *pod) expectStats(id string) {
	p.t.Helper()
	r, err := theNode.CRI().ContainerStats(p.ctx, &runtime.ContainerStatsRequest{ContainerId: id})
	must(p.t, err)
	if r.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 || r.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		p.t.Errorf("stats without memory or CPU: %v", r.Stats)
	}
}

// expectJoined checks that a container is in the pod's namespaces, and in none of the
// host's.
func (p *pod) expectJoined(id string) {
	p.t.Helper()
	sandbox, container := p.sandboxPid(), p.containerPid(id)
	for _, kind := range []string{"net", "ipc", "uts"} {
		expectEqual(p.t, kind, namespace(p.t, container, kind), namespace(p.t, sandbox, kind))
		if namespace(p.t, container, kind) == namespace(p.t, os.Getpid(), kind) {
			p.t.Errorf("%s is the host's", kind)
		}
	}
	if namespace(p.t, container, "pid") == namespace(p.t, os.Getpid(), "pid") {
		p.t.Error("pid is the host's")
	}
}

// sandboxPid is the pid that CRI knows the pod by.
func (p *pod) sandboxPid() int {
	p.t.Helper()
	pid, err := p.SandboxPid(p.ctx)
	must(p.t, err)
	return pid
}

// containerPid is the pid of a container's init.
func (p *pod) containerPid(id string) int {
	p.t.Helper()
	pid, err := p.ContainerPid(p.ctx, id)
	must(p.t, err)
	return pid
}

// expectSandboxIn checks that a sandbox is a thread of its shim: the main thread, or one of
// those of a shim that has many pods.
func expectSandboxIn(t *testing.T, sandbox, shim int, handler string) {
	t.Helper()
	expectEqual(t, "sandbox is the shim's main thread", sandbox == shim, !isShared(handler))
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", shim, sandbox)); err != nil {
		t.Errorf("the sandbox is no thread of the shim: %v", err)
	}
}

func (p *pod) shimPid() int {
	p.t.Helper()
	pid, err := p.ShimPid()
	must(p.t, err)
	return pid
}

// namespace is [nodetest.Namespace].
var namespace = nodetest.Namespace

// forgiveSocket removes the socket of a stock shim that was killed, which nothing
// else does.
func forgiveSocket(t *testing.T, shim string) {
	t.Helper()
	if shim != "runc" {
		return
	}
	for _, dir := range []string{filepath.Join(theNode.Dir, "s"), "/run/containerd/s"} {
		sockets, err := filepath.Glob(filepath.Join(dir, "*"))
		must(t, err)
		for _, s := range sockets {
			must(t, os.Remove(s))
		}
	}
}

// expectExitedWhileAway checks the exit code 9 of a container that has ended while
// containerd was away. That takes a task of the stock shim without processes for one
// that has leaked, when it starts again, and then may say 255.
func (p *pod) expectExitedWhileAway(id string) {
	p.t.Helper()
	if p.Handler != "runc" {
		p.expectExited(id, 9)
		return
	}
	eventually(p.t, "container has exited", func() bool {
		s, err := theNode.ContainerStatus(p.ctx, id)
		return err == nil && s.State == runtime.ContainerState_CONTAINER_EXITED && (s.ExitCode == 9 || s.ExitCode == 255)
	})
}
