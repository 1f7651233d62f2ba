package versions

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

func testPods(t *testing.T, handlers ...string) {
	runCases(t, []testCase{
		{"two containers", testTwoContainers},
		{"exec", testExec},
		{"log and exit code", testLogAndExitCode},
		{"stats", testStats},
		{"shared PID namespace", testSharedPid},
		{"host network", testHostNetwork},
		{"shim is killed", testShimKilled},
		{"containerd is killed", testContainerdKilled},
	}, handlers...)
}

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

// expectJoined checks that a container is in the pod's namespaces.
func (p *pod) expectJoined(id string) {
	p.t.Helper()
	sandbox, container := p.sandboxPid(), p.containerPid(id)
	for _, kind := range []string{"net", "ipc", "uts"} {
		expectEqual(p.t, kind, namespace(p.t, container, kind), namespace(p.t, sandbox, kind))
		if namespace(p.t, container, kind) == namespace(p.t, os.Getpid(), kind) {
			p.t.Errorf("%s is the host's", kind)
		}
	}
}

// sandboxPid is the pid that CRI knows the pod by.
func (p *pod) sandboxPid() int {
	p.t.Helper()
	r, err := theNode.CRI().PodSandboxStatus(p.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	must(p.t, err)
	return pidOf(p.t, r.Info)
}

// containerPid is the pid of a container's init.
func (p *pod) containerPid(id string) int {
	p.t.Helper()
	r, err := theNode.CRI().ContainerStatus(p.ctx, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	must(p.t, err)
	return pidOf(p.t, r.Info)
}

func pidOf(t *testing.T, info map[string]string) int {
	t.Helper()
	var v struct{ Pid int }
	must(t, json.Unmarshal([]byte(info["info"]), &v))
	return v.Pid
}

func (p *pod) shimPid() int {
	p.t.Helper()
	pid, err := p.ShimPid()
	must(p.t, err)
	return pid
}

// namespace returns the identity of a process's namespace.
func namespace(t *testing.T, pid int, kind string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	must(t, err)
	return link
}

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

func testTwoContainers(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	a := p.start("a", "mkdir /www; echo page >/www/index.html; httpd -f -p 8080 -h /www")
	b := p.start("b", "sleep 1000")
	p.expectServed(a)
	p.expectJoined(a)
	p.expectJoined(b)
	if handler != "runc" {
		expectEqual(t, "sandbox's pid", p.sandboxPid(), p.shimPid())
	}
	// By the pod's loopback, from the other container, and from the host.
	eventually(t, "server answers", func() bool {
		r, err := theNode.Exec(p.ctx, b, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/")
		must(t, err)
		return string(r.Stdout) == "page\n"
	})
	client := http.Client{Timeout: patience * 10 * time.Second}
	r, err := client.Get("http://" + p.status().Network.Ip + ":8080/")
	must(t, err)
	r.Body.Close()
	expectEqual(t, "answer", r.StatusCode, http.StatusOK)
	p.exec(a, "echo shared >/dev/shm/x")
	expectEqual(t, "/dev/shm/x", p.exec(b, "cat /dev/shm/x"), "shared")
	p.remove()
}

func testExec(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	r, err := theNode.Exec(p.ctx, id, "sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
	must(t, err)
	expectEqual(t, "stdout", string(r.Stdout), "to stdout\n")
	expectEqual(t, "stderr", string(r.Stderr), "to stderr\n")
	expectEqual(t, "exit code", r.ExitCode, 3)
	expectEqual(t, "/etc/hostname", p.exec(id, "cat /etc/hostname"), p.Config.Hostname)
	p.remove()
}

func testLogAndExitCode(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "echo one; echo two >&2; exit 4")
	p.expectExited(id, 4)
	log := filepath.Join(p.Config.LogDirectory, "c.log")
	eventually(t, "the log is complete", func() bool {
		b, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(b), " stdout F one\n") && strings.Contains(string(b), " stderr F two\n")
	})
	trapped := p.startTrapping("trapping")
	must(t, theNode.StopContainer(p.ctx, trapped, 60))
	p.expectExited(trapped, 9)
	killed := p.start("killed", "sleep 1000")
	must(t, theNode.StopContainer(p.ctx, killed, 0))
	p.expectExited(killed, 137)
	must(t, theNode.RemoveContainer(p.ctx, killed))
	p.remove()
}

func testStats(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	p.expectStats(id)
	r, err := theNode.CRI().ListContainerStats(p.ctx, &runtime.ListContainerStatsRequest{})
	must(t, err)
	expectEqual(t, "containers with stats", len(r.Stats), 1)
	p.remove()
}

func testSharedPid(t *testing.T, handler string) {
	p := runPod(t, handler, sharedPid)
	a, b := p.start("a", "sleep 1000"), p.start("b", "sleep 1000")
	expectEqual(t, "PID namespace", namespace(t, p.containerPid(b), "pid"), namespace(t, p.containerPid(a), "pid"))
	expectEqual(t, "PID 1", p.exec(a, "tr '\\0' ' ' </proc/1/cmdline"), "/pause")
	if namespace(t, p.containerPid(a), "pid") == namespace(t, os.Getpid(), "pid") {
		t.Error("the PID namespace is the host's")
	}
	p.expectServed(a)
	p.remove()
}

func sharedPid(c *runtime.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
}

func testHostNetwork(t *testing.T, handler string) {
	p := runPod(t, handler, func(c *runtime.PodSandboxConfig) {
		c.Hostname = "" // the UTS namespace is the host's, too
		c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
	})
	pid := p.containerPid(p.start("c", "sleep 1000"))
	for _, kind := range []string{"net", "uts"} {
		expectEqual(t, kind, namespace(t, pid, kind), namespace(t, os.Getpid(), kind))
	}
	expectEqual(t, "ipc", namespace(t, pid, "ipc"), namespace(t, p.sandboxPid(), "ipc"))
	p.remove()
}

// containerd cleans up after a shim that was killed, by the shim's delete call.
func testShimKilled(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	init := p.containerPid(id)
	must(t, unix.Kill(p.shimPid(), unix.SIGKILL))
	p.expectNotReady()
	eventually(t, "init has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	eventually(t, "container has exited", func() bool {
		s, err := theNode.ContainerStatus(p.ctx, id)
		return err == nil && s.State == runtime.ContainerState_CONTAINER_EXITED
	})
	p.removeInTheEnd()
	forgiveSocket(t, handler)
}

func testContainerdKilled(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	stays, ends := p.start("stays", "sleep 1000"), p.startTrapping("ends")
	sandbox, shim := p.sandboxPid(), p.shimPid()
	init := p.containerPid(ends)
	must(t, theNode.Kill())
	must(t, unix.Kill(init, unix.SIGTERM))
	eventually(t, "container has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	must(t, theNode.Restart(p.ctx))
	p.expectExitedWhileAway(ends)
	p.expectServed(stays)
	expectEqual(t, "sandbox's pid", p.sandboxPid(), sandbox)
	expectEqual(t, "shim's pid", p.shimPid(), shim)
	p.expectJoined(p.start("new", "sleep 1000"))
	p.remove()
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
