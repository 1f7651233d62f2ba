package integration

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// What waits in one pod of a shim must not make the others wait.

func TestOCIRuntimeThatHangsHoldsUpNoOtherPod(t *testing.T) {
	for _, handler := range []string{"pause-shared-hanging", "pause-shared-sandbox-hanging"} {
		withShared(t, handler, func(t *testing.T) {
			pods := tenants(t, handler, 3)
			expectEqual(t, "pods of each shim", sizes(pods), "[3]")
			hangs := pods[0]
			must(t, os.WriteFile(hanging.hangs, nil, 0o600))
			t.Cleanup(func() {
				os.Remove(hanging.hangs)
				os.Remove(hanging.arrived)
			})
			id, err := hangs.CreateContainer(hangs.ctx, "hangs", []string{"sleep", "1000"}, nil)
			must(t, err)
			started := make(chan error, 1)
			go func() { started <- theNode.StartContainer(hangs.ctx, id) }()
			eventually(t, "create hangs", func() bool {
				_, err := os.Stat(hanging.arrived)
				return err == nil
			})
			must(t, os.Remove(hanging.hangs)) // other creates do not

			expectLives(t, pods...)
			expectWorks(t, pods[1:]...)
			next := newTenant(t, handler, node.HostNetwork)
			expectEqual(t, "shim of the next", next.shim, hangs.shim)
			pods[1].remove()
			expectLives(t, hangs, pods[2], next)
			select {
			case err := <-started:
				t.Fatalf("the create has not hung for so long: %v", err)
			default:
			}
			must(t, hangs.Stop(hangs.ctx))
			if err := <-started; err == nil {
				t.Error("the container has started")
			}
			hangs.removeInTheEnd()
			expectLives(t, pods[2], next)
		})
	}
}

// slowClients are what becomes of the output of a container that prints without end.
var slowClients = map[string]func(c *container) cio.Creator{
	"it is read": func(*container) cio.Creator {
		return cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(theNode.FIFODir()))
	},
	"nobody reads it": func(c *container) cio.Creator { return c.detached(false) },
}

func TestOutputWithoutEndHoldsUpNoOtherContainer(t *testing.T) {
	for name, client := range slowClients {
		t.Run(name, func(t *testing.T) {
			withShared(t, "containers", func(t *testing.T) {
				quiet := startContainer(t, sharedShim, sh("sleep 1000"))
				loud := newContainer(t, sharedShim, sh("yes & yes >&2"))
				loud.run(client(loud))
				for range 5 {
					for i := range 4 {
						must(t, numberedExec(quiet, i))
					}
					c := startContainer(t, sharedShim, sh("echo short; exit 4"))
					expectEqual(t, "exit code", c.wait(), 4)
					expectEqual(t, "output", c.out.String(), "short\n")
					c.remove()
				}
				shims := make(map[int]bool)
				for _, c := range []*container{quiet, loud} {
					pid, err := theNode.ShimPid(theNode.ID, c.ID())
					must(t, err)
					shims[pid] = true
				}
				expectEqual(t, "number of shims", len(shims), 1)
				must(t, loud.task.Kill(loud.ctx, unix.SIGKILL))
				expectEqual(t, "exit code", exitCode(t, loud.exited), 137)
			})
		})
	}
}

// The orphans of a pod in the host's PID namespace are left to the shim.
func TestOrphansAreReapedWhileAnotherPodIsBusy(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		host := newTenant(t, handler, func(c *runtime.PodSandboxConfig) {
			node.HostNetwork(c)
			c.Linux.SecurityContext.NamespaceOptions.Pid = modeNode
		})
		busy := newTenant(t, handler, node.HostNetwork)
		expectEqual(t, "shim of both", busy.shim, host.shim)
		id := host.start("orphans", `i=0
			while [ $i -lt 300 ]; do (sleep 0.1 &); i=$((i+1)); done
			touch /all; exec sleep 100000`)
		execs := 0
		for r := func() *runtime.ExecSyncResponse { return mustExec(t, host, id, "ls", "/all") }; r().ExitCode != 0 || execs < 20; execs++ {
			code := int32(execs % 100)
			expectEqual(t, "exit code", mustExec(t, busy, busy.sleeper, "sh", "-c", fmt.Sprintf("(sleep 0.01 &); exit %d", code)).ExitCode, code)
		}
		want := map[int]bool{host.pid: true, busy.pid: true, host.containerPid(id): true}
		eventually(t, "the shim has no other children", func() bool {
			for _, p := range node.Processes() {
				if p.Parent == host.shim && !want[p.Pid] {
					return false
				}
			}
			return true
		})
		expectLives(t, host, busy)
	})
}

func mustExec(t *testing.T, p *tenant, id string, command ...string) *runtime.ExecSyncResponse {
	t.Helper()
	r, err := theNode.Exec(p.ctx, id, command...)
	must(t, err)
	return r
}

// Each process of many pods has its own exit code, though one process reaps them all.
func TestExitCodesOfManyPodsAtOnce(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		const n = 50
		pods := tenants(t, handler, 5)
		expectEqual(t, "pods of each shim", sizes(pods), "[5]")
		t.Run("containers", func(t *testing.T) {
			ids := make([]string, n)
			atOnce(t, n, func(i int) (err error) {
				p := pods[i%len(pods)]
				command := []string{"sh", "-c", fmt.Sprintf("exit %d", 100+i)}
				ids[i], err = p.CreateContainer(p.ctx, fmt.Sprintf("c%d", i), command, nil)
				if err == nil {
					err = theNode.StartContainer(p.ctx, ids[i])
				}
				return err
			})
			for i, id := range ids {
				pods[i%len(pods)].expectExited(id, int32(100+i))
			}
		})
		t.Run("execs", func(t *testing.T) {
			atOnce(t, n, func(i int) error {
				p := pods[i%len(pods)]
				r, err := theNode.Exec(p.ctx, p.sleeper, "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, 100+i))
				if err == nil && (r.ExitCode != int32(100+i) || string(r.Stdout) != fmt.Sprintf("%d\n", i)) {
					err = fmt.Errorf("exec %d: exit code %d, output %q", i, r.ExitCode, r.Stdout)
				}
				return err
			})
		})
		expectLives(t, pods...)
	})
}

// atOnce calls f for each number below n, all at the same time.
func atOnce(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	must(t, errors.Join(errs...))
}
