package versions

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/integration/nodetest"
)

// oldPod is a pod that was started under the old containerd.
type oldPod struct {
	*pod
	stays, ends, away   string // containers; the last ends while there is no containerd
	sandboxPid, awayPid int
}

// testUpgrade replaces the daemon by that of the newest release under pods, and
// leaves the node with it.
func testUpgrade(t *testing.T) {
	pods := map[string]*oldPod{
		"podsandbox/runc":  startOldPod(t, "runc", nil),
		"podsandbox/pause": startOldPod(t, "pause", nil),
		"shared PID/pause": startOldPod(t, "pause", sharedPid),

		"podsandbox/pause-shared": startOldPod(t, sharedShim, nil),
		"shared PID/pause-shared": startOldPod(t, sharedShim, sharedPid),
	}
	if theNode.Version.AtLeast(2, 0) {
		pods["Sandbox API/pause"] = startOldPod(t, sandboxHandler, nil)
		pods["Sandbox API/pause-shared"] = startOldPod(t, sharedSandboxHandler, nil)
	}
	moved := startPodsToMove(t)
	containers := map[string]*container{
		"ctr run/runc": newContainer(t, "runc"), "ctr run/pause": newContainer(t, "pause"), "ctr run/pause-shared": newContainer(t, sharedShim),
	}
	for _, c := range containers {
		c.start("sleep", "1000")
	}

	must(t, theNode.Stop())
	for _, p := range slices.Concat(slices.Collect(maps.Values(pods)), slices.Collect(maps.Values(moved))) {
		must(t, unix.Kill(p.awayPid, unix.SIGTERM))
		eventually(t, "container has ended", func() bool { return unix.Kill(p.awayPid, 0) == unix.ESRCH })
	}
	must(t, theNode.Upgrade(t.Context(), directory(t, newest)))
	server, err := theNode.Client().Version(t.Context())
	must(t, err)
	t.Logf("containerd is now %s", server.Version)
	if !strings.HasPrefix(strings.TrimPrefix(server.Version, "v"), newest+".") {
		t.Fatalf("containerd is %s, not %s", server.Version, newest)
	}

	testNewPodInOldShim(t, pods)
	for name, p := range pods {
		t.Run(name, func(t *testing.T) {
			defer nodetest.ShowLog(t, theNode)
			p.in(t).expectOldServed(p)
		})
	}
	for name, c := range containers {
		t.Run(name, func(t *testing.T) {
			defer nodetest.ShowLog(t, theNode)
			c := &container{t, testContext(t), c.id, c.shim}
			c.expectOldServed()
		})
	}
	if len(moved) > 0 {
		must(t, theNode.MoveSockets(t.Context()))
	}
	for name, p := range moved {
		t.Run(name, func(t *testing.T) {
			defer nodetest.ShowLog(t, theNode)
			p.in(t).expectOldServed(p)
		})
	}
	t.Run("nothing is left/pause", func(t *testing.T) {
		defer nodetest.ShowLog(t, theNode)
		if left := theNode.Leftovers(context.Background()); len(left) > 0 {
			t.Errorf("left:\n  %s", strings.Join(left, "\n  "))
		}
	})
	checkLeftovers(t)
}

// startPodsToMove starts pods to be looked at when, after the upgrade, the sockets of
// shims have another directory. Since 2.3 they have it from the start.
func startPodsToMove(t *testing.T) map[string]*oldPod {
	t.Helper()
	moved := map[string]*oldPod{}
	if theNode.Version.AtLeast(2, 3) {
		return moved
	}
	moved["sockets moved, podsandbox/pause"] = startOldPod(t, "pause", sharedPid)
	moved["sockets moved, podsandbox/pause-shared"] = startOldPod(t, sharedShim, sharedPid)
	if theNode.Version.AtLeast(2, 0) {
		moved["sockets moved, Sandbox API/pause"] = startOldPod(t, sandboxHandler, sharedPid)
		moved["sockets moved, Sandbox API/pause-shared"] = startOldPod(t, sharedSandboxHandler, sharedPid)
	}
	return moved
}

func startOldPod(t *testing.T, handler string, change func(*runtime.PodSandboxConfig)) *oldPod {
	t.Helper()
	p := &oldPod{pod: runPod(t, handler, change)}
	p.stays, p.ends, p.away = p.start("stays", "sleep 1000"), p.startTrapping("ends"), p.startTrapping("away")
	p.sandboxPid, p.awayPid = p.pod.sandboxPid(), p.containerPid(p.away)
	return p
}

// expectOldServed checks that a pod is served as before, also with new containers,
// and removes it.
func (p *pod) expectOldServed(old *oldPod) {
	p.t.Helper()
	p.expectServed(old.stays)
	expectEqual(p.t, "sandbox's pid", p.sandboxPid(), old.sandboxPid)
	p.expectExitedWhileAway(old.away)
	must(p.t, theNode.StopContainer(p.ctx, old.ends, 60))
	p.expectExited(old.ends, 9)
	fresh := p.start("new", "sleep 1000")
	p.expectJoined(fresh)
	// Since 2.0 containerd need not have asked for the shim, so that nothing names it.
	if pid, err := theNode.ShimPid(node.CRINamespace, fresh); err == nil && pid != p.shimPid() {
		p.t.Errorf("the new container has a shim of its own, %d", pid)
	}
	p.expectServed(fresh)
	expectEqual(p.t, "shared PID namespace",
		namespace(p.t, p.containerPid(fresh), "pid") == namespace(p.t, p.containerPid(old.stays), "pid"),
		p.Config.Linux.SecurityContext.NamespaceOptions.Pid == runtime.NamespaceMode_POD)
	must(p.t, theNode.StopContainer(p.ctx, old.stays, 0))
	p.expectExited(old.stays, 137)
	p.remove()
}

func (c *container) expectOldServed() {
	c.t.Helper()
	expectEqual(c.t, "status", c.status(), "RUNNING")
	out := c.ctrCode(3, "task", "exec", "--exec-id", "e", c.id, "sh", "-c", "echo from exec; exit 3")
	expectEqual(c.t, "output", out, "from exec\n")
	c.ctr("task", "metrics", c.id)
	c.ctr("task", "kill", "--signal", "SIGKILL", c.id)
	c.expectStatus("STOPPED")
	c.remove(137)
}
