package integration

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// sandboxTask is the sandbox of a pod as a client of the Task API sees it: as
// the task of its pause container, whether there is such a container or not.
func (p *pod) sandboxTask() (context.Context, containerd.Task) {
	p.t.Helper()
	ctx := namespaces.WithNamespace(p.ctx, node.CRINamespace)
	c, err := theNode.Client().LoadContainer(ctx, p.ID)
	must(p.t, err)
	task, err := c.Task(ctx, nil)
	must(p.t, err)
	return ctx, task
}

func TestSandboxTaskByCtr(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		pid := fmt.Sprint(p.sandboxPid())
		list, err := theNode.Ctr(p.ctx, node.CRINamespace, "task", "ls")
		must(t, err)
		expectLine(t, list, p.ID, pid, "RUNNING")
		processes, err := theNode.Ctr(p.ctx, node.CRINamespace, "task", "ps", p.ID)
		must(t, err)
		expectLine(t, processes, pid)
		_, err = theNode.Ctr(p.ctx, node.CRINamespace, "task", "metrics", p.ID)
		must(t, err)
	})
}

// expectLine checks that the output of a tool has a line with these words.
func expectLine(t *testing.T, output string, words ...string) {
	t.Helper()
	for line := range strings.Lines(output) {
		if fields := strings.Fields(line); len(fields) >= len(words) {
			match := true
			for i, w := range words {
				match = match && fields[i] == w
			}
			if match {
				return
			}
		}
	}
	t.Errorf("no line %q in:\n%s", words, output)
}

func TestSandboxTaskEndsBySignal(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for signal, code := range map[syscall.Signal]uint32{syscall.SIGTERM: 0, syscall.SIGINT: 0, syscall.SIGKILL: 137} {
			p := runPod(t, shim, nil)
			ctx, task := p.sandboxTask()
			exited, err := task.Wait(ctx)
			must(t, err)
			awaitHandlers(t, p.sandboxPid())
			must(t, task.Kill(ctx, signal))
			expectEqual(t, "exit code after "+signal.String(), exitCode(t, exited), code)
			p.expectNotReady()
		}
	})
}

// awaitHandlers waits until the program of a sandbox handles SIGTERM. The stock shim's
// is still to be executed when the container has been started, and the kernel keeps
// signals that it has no handler for from the init of a PID namespace.
func awaitHandlers(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "the sandbox handles SIGTERM", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		must(t, err)
		_, caught, _ := strings.Cut(string(status), "\nSigCgt:\t")
		mask, err := strconv.ParseUint(caught[:16], 16, 64)
		must(t, err)
		return !strings.HasPrefix(string(status), "Name:\trunc") && mask&(1<<(syscall.SIGTERM-1)) != 0
	})
}

func TestSandboxTaskIgnoresOtherSignals(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		ctx, task := p.sandboxTask()
		for _, signal := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGCHLD} {
			must(t, task.Kill(ctx, signal))
		}
		status, err := task.Status(ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
	})
}

func TestSandboxTaskIsPausedAndUpdated(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		ctx, task := p.sandboxTask()
		must(t, task.Pause(ctx))
		status, err := task.Status(ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Paused)
		must(t, task.Resume(ctx))
		shares := uint64(512)
		must(t, task.Update(ctx, containerd.WithResources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}})))
		status, err = task.Status(ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
	})
}

func TestContainersSurviveTheirSandbox(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "sleep 1000")
		ctx, task := p.sandboxTask()
		must(t, task.Kill(ctx, syscall.SIGKILL))
		p.expectNotReady()
		expectEqual(t, "state of the container", p.container(id).State, runtime.ContainerState_CONTAINER_RUNNING)
		p.exec(id, "true")
		must(t, p.Stop(p.ctx))
		must(t, p.Remove(p.ctx))
		forgiveSocket(t, shim)
	})
}

func TestExecAndCheckpointOfSandboxAreRefused(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := runPod(t, "pause", nil)
		ctx, task := p.sandboxTask()
		if _, err := task.Exec(ctx, "e1", &specs.Process{Args: []string{"true"}, Cwd: "/"}, cio.NullIO); err == nil {
			t.Error("exec: no error")
		}
		if _, err := task.Checkpoint(ctx, containerd.WithCheckpointImagePath(t.TempDir())); err == nil {
			t.Error("checkpoint: no error")
		}
		status, err := task.Status(ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
	})
}

// The pod's own processes are the shim and what the containers run; the shim's
// main thread is in the pod's namespaces, its other threads are in the host's.
func TestPodHasNoPauseProcess(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := runPod(t, "pause", nil)
		shim, err := p.ShimPid()
		must(t, err)
		expectEqual(t, "sandbox's pid", p.sandboxPid(), shim)
		children := map[int]bool{
			p.containerPid(p.start("a", "exec sleep 1000")): true,
			p.containerPid(p.start("b", "exec sleep 1000")): true,
		}
		for _, process := range node.Processes() {
			if process.Parent == shim && !children[process.Pid] {
				t.Errorf("the shim has the child %s", process)
			}
		}
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", shim))
		must(t, err)
		for _, task := range tasks {
			if task.Name() == fmt.Sprint(shim) {
				continue
			}
			for _, kind := range []string{"net", "ipc", "uts", "mnt", "pid"} {
				thread := fmt.Sprintf("%d/task/%s", shim, task.Name())
				expectEqual(t, kind+" of thread "+thread, namespace(t, thread, kind), namespace(t, "self", kind))
			}
		}
	})
}

// The kernel frees the namespaces with the sandbox, though the shim lives on
// with a container that is not in the network of the pod.
func TestNamespacesAreReleasedWithSandbox(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := runPod(t, "pause", nil)
		p.start("c", "sleep 1000")
		shim, err := p.ShimPid()
		must(t, err)
		ctx, task := p.sandboxTask()
		must(t, task.Kill(ctx, syscall.SIGKILL))
		p.expectNotReady()
		for _, kind := range []string{"net", "ipc", "uts"} {
			eventually(t, kind+" is the host's again", func() bool {
				return namespace(t, shim, kind) == namespace(t, "self", kind)
			})
		}
	})
}
