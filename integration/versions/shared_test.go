package versions

import (
	"testing"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/nodetest"
)

// testManyPods runs the tests of pods that share a shim.
func testManyPods(t *testing.T, handler string) {
	runCases(t, []testCase{
		{"pods share a shim", testPodsShareShim},
		{"shim of two pods is killed", testShimOfTwoKilled},
		{"containerd is killed under two pods", testContainerdKilledUnderTwo},
	}, handler)
}

// runTwoPods runs two pods of one shim, each with a container.
func runTwoPods(t *testing.T, handler string) (pods [2]*pod, containers [2]string) {
	t.Helper()
	for i := range pods {
		pods[i] = runPod(t, handler, nil)
		containers[i] = pods[i].start("c", "sleep 1000")
	}
	expectEqual(t, "shim of the second pod", pods[1].shimPid(), pods[0].shimPid())
	return pods, containers
}

// The shim stays when the pod for which it was started is removed.
func testPodsShareShim(t *testing.T, handler string) {
	pods, containers := runTwoPods(t, handler)
	first, second, shim := pods[0], pods[1], pods[0].shimPid()
	for i, p := range pods {
		p.expectJoined(containers[i])
		p.expectServed(containers[i])
		expectSandboxIn(t, p.sandboxPid(), shim, handler)
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		if namespace(t, first.sandboxPid(), kind) == namespace(t, second.sandboxPid(), kind) {
			t.Errorf("the pods have the same %s namespace", kind)
		}
	}
	first.remove()
	second.expectServed(containers[1])
	second.expectJoined(second.start("new", "sleep 1000"))
	expectEqual(t, "shim after the removal of its first pod", second.shimPid(), shim)
	third := runPod(t, handler, nil)
	expectEqual(t, "shim of a third pod", third.shimPid(), shim)
	third.remove()
	second.remove()
	eventually(t, "the shim has ended", func() bool { return unix.Kill(shim, 0) == unix.ESRCH })
}

// The bound is in the options of the handler. How they get to a shim is not the same in all
// releases.
func testOnePodAShim(t *testing.T, handler string) {
	first, second := runPod(t, handler, nil), runPod(t, handler, nil)
	if first.shimPid() == second.shimPid() {
		t.Error("the pods share a shim")
	}
	id := second.start("c", "sleep 1000")
	second.expectServed(id)
	first.remove()
	second.remove()
}

// containerd learns of the end of each pod, and has each cleaned up.
func testShimOfTwoKilled(t *testing.T, handler string) {
	pods, containers := runTwoPods(t, handler)
	var inits [2]int
	for i, p := range pods {
		inits[i] = p.containerPid(containers[i])
	}
	must(t, unix.Kill(pods[0].shimPid(), unix.SIGKILL))
	for i, p := range pods {
		p.expectNotReady()
		eventually(t, "init has ended", func() bool { return unix.Kill(inits[i], 0) == unix.ESRCH })
		p.expectEnded(containers[i])
	}
	for _, p := range pods {
		p.removeInTheEnd()
	}
}

// A containerd that has started again finds both pods in the one shim, and a new pod joins
// them.
func testContainerdKilledUnderTwo(t *testing.T, handler string) {
	needsRestart(t, handler)
	pods, containers := runTwoPods(t, handler)
	shim := pods[0].shimPid()
	must(t, theNode.Kill())
	must(t, theNode.Restart(pods[0].ctx))
	for i, p := range pods {
		p.expectServed(containers[i])
		p.expectJoined(p.start("new", "sleep 1000"))
	}
	third := runPod(t, handler, nil)
	third.expectServed(third.start("c", "sleep 1000"))
	expectEqual(t, "shim of a new pod", third.shimPid(), shim)
	for _, p := range append(pods[:], third) {
		p.remove()
	}
}

// testNewPodInOldShim runs a pod by the new daemon in a shim that the old one has started.
func testNewPodInOldShim(t *testing.T, old map[string]*oldPod) {
	t.Run("new pod in old shim/pause-shared", func(t *testing.T) {
		defer nodetest.ShowLog(t, theNode)
		p := runPod(t, sharedShim, sharedPid)
		expectEqual(t, "shim", p.shimPid(), old["podsandbox/pause-shared"].in(t).shimPid())
		id := p.start("c", "sleep 1000")
		p.expectJoined(id)
		p.expectServed(id)
		must(t, theNode.StopContainer(p.ctx, id, 0))
		p.expectExited(id, 137)
		p.remove()
	})
}
