package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// waysToGiveUp are what makes containerd give a shim up when it starts again.
var waysToGiveUp = map[string]func(pid int, socket string) error{
	"its socket is gone": func(_ int, socket string) error { return os.Remove(socket) },
	"it does not answer": func(pid int, _ string) error { return unix.Kill(pid, unix.SIGSTOP) },
}

// containerd calls `delete` for a shim that it cannot reach, and then says that all of the
// pod has been removed. The stock shim lives on.
func TestShimThatContainerdHasGivenUpEnds(t *testing.T) {
	if !slices.Contains(shims, "pause") {
		t.Skip("PAUSE_TEST_SHIMS is without the shim that this is about")
	}
	for way, giveUp := range waysToGiveUp {
		for _, handler := range []string{"pause", sandboxHandler} {
			t.Run(way+"/"+handler, func(t *testing.T) {
				t.Cleanup(func() { checkLeftovers(t, handler) })
				p := runPod(t, handler, nil)
				id := p.start("c", "sleep 1000")
				pid, err := p.ShimPid()
				must(t, err)
				init := p.containerPid(id)
				own := podNamespaces(t, pid)

				giveUpShim(t, pid, shimSocket(t, node.CRINamespace, id), giveUp)
				must(t, theNode.Restart(p.ctx))
				p.expectNotReady()
				p.expectExited(id, exitOfKilledShim)
				p.removeInTheEnd()
				expectEnded(t, pid, init)
				expectNoMember(t, own)
			})
		}
		t.Run(way+"/task", func(t *testing.T) {
			t.Cleanup(func() { checkLeftovers(t, "pause") })
			c := newContainer(t, "pause", sh("sleep 1000"))
			c.run(c.detached(false))
			pid, err := theNode.ShimPid(theNode.ID, c.ID())
			must(t, err)

			giveUpShim(t, pid, shimSocket(t, theNode.ID, c.ID()), giveUp)
			must(t, theNode.Restart(c.ctx))
			expectEnded(t, pid, int(c.task.Pid()))
			again, err := theNode.Client().LoadContainer(c.ctx, c.ID())
			must(t, err)
			c.Container = again
		})
	}
}

// giveUpShim kills containerd and lets it find a shim that it cannot reach.
func giveUpShim(t *testing.T, pid int, socket string, giveUp func(pid int, socket string) error) {
	t.Helper()
	shim, err := os.FindProcess(pid)
	must(t, err)
	t.Cleanup(func() {
		shim.Kill() // only a test that has failed leaves it
		shim.Release()
	})
	must(t, theNode.Kill())
	must(t, giveUp(pid, socket))
}

func expectEnded(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		eventually(t, fmt.Sprintf("process %d has ended", pid), func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
	}
}

// podNamespaces are those of a shim that are its pod's own.
func podNamespaces(t *testing.T, pid int) (own []string) {
	t.Helper()
	for _, kind := range []string{"net", "ipc", "uts"} {
		if ns := namespace(t, pid, kind); ns != namespace(t, "self", kind) {
			own = append(own, ns)
		}
	}
	if len(own) == 0 {
		t.Fatal("the pod has no namespace of its own")
	}
	return own
}

// expectNoMember checks that no process holds one of the namespaces.
func expectNoMember(t *testing.T, namespaces []string) {
	t.Helper()
	for _, process := range node.Processes() {
		for _, kind := range []string{"net", "ipc", "uts"} {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", process.Pid, kind))
			if err == nil && slices.Contains(namespaces, link) {
				t.Errorf("%s is held by %s", link, process)
			}
		}
	}
}

// containerd may give up one container of a pod that it keeps. The end of the pod is that
// of the shim all the same.
func TestContainerThatContainerdHasGivenUpEndsWithItsPod(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		lost, kept := p.start("lost", "exec sleep 1000"), p.start("kept", "exec sleep 1000")
		shim, err := p.ShimPid()
		must(t, err)
		init := p.containerPid(lost)
		must(t, theNode.Kill())
		must(t, os.Remove(filepath.Join(theNode.Bundle(node.CRINamespace, lost), "bootstrap.json")))
		must(t, theNode.Restart(p.ctx))
		p.expectExited(lost, exitOfKilledShim)
		expectEnded(t, init)
		expectEqual(t, "exec", p.exec(kept, "echo goes on"), "goes on")
		must(t, p.Stop(p.ctx))
		must(t, p.Remove(p.ctx))
		if !isShared(handler) {
			expectEnded(t, shim)
		}
	})
}
