package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// hanging is an OCI runtime that hangs in create while a file is there. While another file is
// there, it waits in create for the end of that.
var hanging hangingRuntime

type hangingRuntime struct{ path, hangs, arrived, waits, passes string }

// hold has creates wait.
func (h *hangingRuntime) hold(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile(h.waits, nil, 0o600))
	t.Cleanup(func() {
		left, _ := filepath.Glob(h.waits + "*") // the pattern is well-formed
		for _, path := range append(left, h.passes) {
			os.Remove(path)
		}
	})
}

// letGo has the creates that wait go on.
func (h *hangingRuntime) letGo(t *testing.T) {
	t.Helper()
	must(t, os.Remove(h.waits))
}

// pass lets other creates pass those that wait while f runs.
func (h *hangingRuntime) pass(t *testing.T, f func()) {
	t.Helper()
	must(t, os.WriteFile(h.passes, nil, 0o600))
	f()
	must(t, os.Remove(h.passes))
}

// held is how many creates wait.
func (h *hangingRuntime) held() int {
	files, _ := filepath.Glob(h.waits + ".*") // the pattern is well-formed
	return len(files)
}

// hangingHandlers are CRI handlers with that runtime, which is made in dir.
func hangingHandlers(dir string) ([]node.Handler, error) {
	hanging.path = filepath.Join(dir, "hanging-runtime")
	hanging.hangs, hanging.arrived = hanging.path+".hangs", hanging.path+".arrived"
	hanging.waits, hanging.passes = hanging.path+".waits", hanging.path+".passes"
	script := fmt.Appendf(nil, `#!/bin/sh
for a; do
	if [ "$a" = create ] && [ -e %[1]s ]; then
		: >%[2]s
		exec sleep 100000
	fi
	if [ "$a" = create ] && [ -e %[4]s ] && ! [ -e %[5]s ]; then
		: >%[4]s.$$
		while [ -e %[4]s ]; do sleep 0.05; done
		rm %[4]s.$$
	fi
done
exec %[3]s "$@"
`, hanging.hangs, hanging.arrived, ociRuntime, hanging.waits, hanging.passes)
	return []node.Handler{
		{Name: "pause-hanging", Type: node.PauseType, OCIRuntime: hanging.path},
		{Name: "pause-sandbox-hanging", Type: node.PauseType, OCIRuntime: hanging.path, Sandboxer: "shim"},
		{Name: "pause-shared-hanging", Type: node.SharedType, OCIRuntime: hanging.path},
		{Name: "pause-shared-sandbox-hanging", Type: node.SharedType, OCIRuntime: hanging.path, Sandboxer: "shim"},
	}, os.WriteFile(hanging.path, script, 0o755)
}

// A create can hang for as long as the OCI runtime does. The pod ends all the same.
func TestPodIsStoppedWhileACreateHangs(t *testing.T) {
	for name, stop := range map[string]func(p *pod){
		"by CRI": func(p *pod) { must(t, p.Stop(p.ctx)) },
		"by SIGTERM to the shim": func(p *pod) {
			pid, err := p.ShimPid()
			must(t, err)
			must(t, unix.Kill(pid, unix.SIGTERM))
			eventually(t, "shim has ended", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
		},
	} {
		for _, handler := range []string{"pause-hanging", "pause-sandbox-hanging"} {
			t.Run(name+", "+handler, func(t *testing.T) {
				withPause(t, func(t *testing.T) {
					must(t, os.WriteFile(hanging.hangs, nil, 0o600))
					t.Cleanup(func() {
						os.Remove(hanging.hangs)
						os.Remove(hanging.arrived)
					})
					p := runPod(t, handler, nil)
					id, err := p.CreateContainer(p.ctx, "c", []string{"sleep", "1000"}, nil)
					must(t, err)
					started := make(chan error, 1)
					go func() { started <- theNode.StartContainer(p.ctx, id) }()
					eventually(t, "create hangs", func() bool {
						_, err := os.Stat(hanging.arrived)
						return err == nil
					})
					stop(p)
					if err := <-started; err == nil {
						t.Error("the container has started")
					}
					p.expectNotReady()
					if state := p.container(id).State; state == runtime.ContainerState_CONTAINER_RUNNING {
						t.Error("the container is running")
					}
					p.removeInTheEnd()
				})
			})
		}
	}
}
