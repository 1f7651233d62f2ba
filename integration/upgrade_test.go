package integration

import (
	"context"
	"os/exec"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// upgrade has shims of the node go on with a program, and returns what they have done.
func upgrade(ctx context.Context, t *testing.T, program string, args ...string) (string, error) {
	t.Helper()
	args = append([]string{"-upgrade", "-address", theNode.Socket()}, args...)
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

// ownProgram is the shim under test.
func ownProgram(t *testing.T) string {
	t.Helper()
	path, err := theNode.LookPath("containerd-shim-pause-v2")
	must(t, err)
	return path
}

func TestUpgradeInPlace(t *testing.T) {
	for _, handler := range []string{"pause", sandboxHandler, sharedShim, sharedSandboxHandler} {
		t.Run(handler, func(t *testing.T) {
			p := runPod(t, handler, func(c *runtime.PodSandboxConfig) {
				c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{Pid: runtime.NamespaceMode_POD}
			})
			id := p.start("c", "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 7")
			shim, err := p.ShimPid()
			must(t, err)
			for i := range 3 {
				out, err := upgrade(p.ctx, t, ownProgram(t))
				if err != nil {
					t.Fatalf("upgrade %d: %v\n%s\n%s", i, err, out, theNode.LogTail(60))
				}
				t.Logf("%s", out)
				now, err := p.ShimPid()
				must(t, err)
				expectEqual(t, "pid of the shim", now, shim)
				expectEqual(t, "output of an exec", strings.TrimSpace(p.exec(id, "echo hello")), "hello")
			}
			id2 := p.start("d", "exec sleep 1000")
			expectEqual(t, "whether the new container is in the pod's namespaces", p.exec(id2, "readlink /proc/self/ns/net"), p.exec(id, "readlink /proc/self/ns/net"))
			p.exec(id, "touch /stop")
			p.expectExited(id, 7)
			must(t, theNode.StopContainer(p.ctx, id2, 1))
			p.expectExited(id2, 143) // not PID 1, so that TERM ends it
		})
	}
}
