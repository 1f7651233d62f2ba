package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// On cgroup v1 a frozen process does not die of a SIGKILL. The stock shim thaws no more than
// a container's own cgroup.

// Docker in a container pauses one of its own: a cgroup below that of the container is
// frozen, with a process of the container in it.
func TestKillOfContainerWithFrozenCgroupBelow(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.start("c", "sleep 1001 & exec sleep 1000")
		pid := childOf(t, p.containerPid(id))
		below := filepath.Join(cgroupDir(t, pid, "freezer"), "below")
		must(t, os.Mkdir(below, 0o755))
		t.Cleanup(func() { thawBelow(t, below) })
		freeze(t, below, pid)
		must(t, theNode.StopContainer(p.ctx, id, 0))
		p.expectExited(id, 137)
	})
}

// The init of a PID namespace ends only after all processes in it, those of a paused
// container among them.
func TestPodWithFrozenContainerIsKilled(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, mode{pid: modePod}.apply)
		paused, other := p.start("paused", "exec sleep 1000"), p.start("other", "exec sleep 1000")
		p.pause(paused)
		p.killSandbox()
		p.expectExited(paused, 137)
		p.expectExited(other, 137)
		p.expectNotReady()
	})
}

// So does the target of a container, such as one for debugging.
func TestTargetOfFrozenContainerIsKilled(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		m := mode{pid: modeContainer}
		p := runPod(t, handler, m.apply)
		target := p.start("target", "exec sleep 1000")
		debugger := p.startAs("debugger", "exec sleep 1000", targeting(m, target))
		p.pause(debugger)
		must(t, theNode.StopContainer(p.ctx, target, 0))
		p.expectExited(target, 137)
		p.expectExited(debugger, 137)
	})
}

// A container that is in the host's PID namespace does not die with others, and stays paused.
func TestKillThawsNoOtherContainer(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, mode{pid: modeNode}.apply)
		paused, other := p.start("paused", "exec sleep 1000"), p.start("other", "exec sleep 1000")
		p.pause(paused)
		must(t, theNode.StopContainer(p.ctx, other, 0))
		p.expectExited(other, 137)
		if !frozen(t, uint32(p.containerPid(paused))) {
			t.Error("the other container is thawed")
		}
	})
}

// pause pauses a container, which CRI cannot.
func (p *pod) pause(id string) {
	p.t.Helper()
	ctx := namespaces.WithNamespace(p.ctx, node.CRINamespace)
	c, err := theNode.Client().LoadContainer(ctx, id)
	must(p.t, err)
	task, err := c.Task(ctx, nil)
	must(p.t, err)
	must(p.t, task.Pause(ctx))
	status, err := task.Status(ctx)
	must(p.t, err)
	expectEqual(p.t, "status", status.Status, containerd.Paused)
}

// killSandbox ends the sandbox without ending its containers first, as CRI would.
func (p *pod) killSandbox() {
	p.t.Helper()
	if !isSandboxAPI(p.Handler) {
		ctx, task := p.sandboxTask()
		must(p.t, task.Kill(ctx, unix.SIGKILL))
		return
	}
	ctx := namespaces.WithNamespace(p.ctx, node.CRINamespace)
	sandbox, err := theNode.Client().LoadSandbox(ctx, p.ID)
	must(p.t, err)
	must(p.t, sandbox.Stop(ctx))
}

// childOf waits for the first child of a process.
func childOf(t *testing.T, parent int) (pid int) {
	t.Helper()
	eventually(t, fmt.Sprintf("process %d has a child", parent), func() bool {
		for _, p := range node.Processes() {
			if p.Parent == parent {
				pid = p.Pid
			}
		}
		return pid != 0
	})
	return pid
}

// freeze freezes a cgroup with a process in it.
func freeze(t *testing.T, dir string, pid int) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, pid), 0))
	file, value := "freezer.state", "FROZEN"
	if onV2() {
		file, value = "cgroup.freeze", "1"
	}
	must(t, os.WriteFile(filepath.Join(dir, file), []byte(value), 0))
	eventually(t, dir+" is frozen", func() bool { return frozen(t, uint32(pid)) })
}

// thawBelow lets go what a failed test has left frozen.
func thawBelow(t *testing.T, dir string) {
	t.Helper()
	err := os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
}
