package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// upgrade has the shims of the node, or those that further arguments name, go on with a
// program, and returns what is printed about them.
func upgrade(ctx context.Context, program string, args ...string) (string, error) {
	args = append([]string{"-upgrade", "-address", theNode.Socket()}, args...)
	out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
	return string(out), err
}

// programs are two files with the program under test, so that each upgrade leads to another one.
var programs = sync.OnceValues(func() (paths [2]string, err error) {
	source, err := theNode.LookPath("containerd-shim-pause-v2")
	if err != nil {
		return paths, err
	}
	for i := range paths {
		paths[i] = filepath.Join(theNode.Dir, fmt.Sprintf("program%d", i), filepath.Base(source))
		if err := errors.Join(os.MkdirAll(filepath.Dir(paths[i]), 0o755), copyProgram(source, paths[i])); err != nil {
			return paths, err
		}
	}
	return paths, nil
})

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// program is what a process executes.
func programOf(t *testing.T, pid int) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	must(t, err)
	return path
}

// mustUpgrade has all shims of the node go on with a program that they do not execute yet, and
// expects that the given ones do.
func mustUpgrade(t *testing.T, shims ...int) {
	t.Helper()
	both, err := programs()
	must(t, err)
	next := both[0]
	if programOf(t, shims[0]) == next {
		next = both[1]
	}
	out, err := upgrade(testContext(t), next)
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, theNode.LogTail(60))
	}
	for _, shim := range shims {
		expectEqual(t, fmt.Sprintf("program of shim %d", shim), programOf(t, shim), next)
	}
}

// expectConnected expects that containerd has not lost a shim since its log had so many bytes.
func expectConnected(t *testing.T, since int, ids ...string) {
	t.Helper()
	for line := range strings.Lines(readFile(t, theNode.LogFile())[since:]) {
		for _, id := range ids {
			if strings.Contains(line, id) && (strings.Contains(line, "disconnected") || strings.Contains(line, "ttrpc: closed")) {
				t.Errorf("containerd has lost a shim: %s", line)
			}
		}
	}
}

// shim is the pid of the container's shim.
func (c *container) shimPid() int {
	c.t.Helper()
	pid, err := theNode.ShimPid(theNode.ID, c.ID())
	must(c.t, err)
	return pid
}

// shimPid is the pid of the pod's shim.
func (p *pod) shimPid() int {
	p.t.Helper()
	pid, err := p.ShimPid()
	must(p.t, err)
	return pid
}

func TestUpgradeInPlace(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		since := len(readFile(t, theNode.LogFile()))
		p := runPod(t, handler, mode{pid: modePod}.apply)
		id := p.start("c", "while [ ! -e /stop ]; do sleep 0.01; done; exit 7")
		shim := p.shimPid()
		for range 3 {
			mustUpgrade(t, shim)
			expectEqual(t, "pid of the shim", p.shimPid(), shim)
			expectEqual(t, "output of an exec", p.exec(id, "echo hello"), "hello")
		}
		id2 := p.start("d", "exec sleep 1000")
		for _, kind := range []string{"net", "ipc", "uts", "pid"} {
			expectEqual(t, kind+" of the new container", namespace(t, p.containerPid(id2), kind), namespace(t, p.containerPid(id), kind))
		}
		p.exec(id, "touch /stop")
		p.expectExited(id, 7)
		must(t, theNode.StopContainer(p.ctx, id2, 1))
		p.expectExited(id2, 143) // not PID 1, so that TERM ends it
		expectConnected(t, since, p.ID)
	})
}

// Shims that the flags do not name go on as they are.
func TestUpgradeOfOneShim(t *testing.T) {
	withPause(t, func(t *testing.T) {
		both, err := programs()
		must(t, err)
		one, other := runPod(t, "pause", node.HostNetwork), runPod(t, "pause", node.HostNetwork)
		before := programOf(t, other.shimPid())
		for _, args := range [][]string{{"-id", one.ID}, {"-id", one.ID, "-namespace", node.CRINamespace}} {
			out, err := upgrade(one.ctx, both[0], args...)
			must(t, err)
			if strings.Count(out, "\n") != 2 || !strings.Contains(out, one.ID) || !strings.Contains(out, "upgraded to") {
				t.Errorf("output: %s", out)
			}
			expectEqual(t, "program", programOf(t, one.shimPid()), both[0])
			expectEqual(t, "program of the other", programOf(t, other.shimPid()), before)
		}
		for _, args := range [][]string{{"-id", "no-such-pod"}, {"-id", one.ID, "-namespace", "another"}} {
			out, err := upgrade(one.ctx, both[0], args...)
			if err == nil || !strings.Contains(out, "there is no such shim") {
				t.Errorf("error %v, output: %s", err, out)
			}
		}
	})
}

// A package manager replaces the program, or removes it, while shims execute it.
func TestUpgradeAfterTheProgramIsRemoved(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		source, err := theNode.LookPath("containerd-shim-pause-v2")
		must(t, err)
		path := filepath.Join(t.TempDir(), filepath.Base(source))
		must(t, copyProgram(source, path))
		p := runPod(t, handler, nil)
		id := p.start("c", "exec sleep 1000")
		out, err := upgrade(p.ctx, path)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		must(t, os.Remove(path))
		expectEqual(t, "program", programOf(t, p.shimPid()), path+" (deleted)")
		expectEqual(t, "exec", p.exec(id, "echo lives"), "lives")
		p.expectExited(p.start("next", "exit 4"), 4)
		must(t, copyProgram(source, path))
		out, err = upgrade(p.ctx, path)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		expectEqual(t, "program", programOf(t, p.shimPid()), path)
		expectEqual(t, "exec", p.exec(id, "echo lives"), "lives")
	})
}

// How long a shim does not answer is logged; it does not decide.
func TestPauseOfAnUpgrade(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.start("c", "exec sleep 1000")
		shim := p.shimPid()
		task, done, err := theNode.Shim(node.CRINamespace, id)
		must(t, err)
		defer done()
		ctx := namespaces.WithNamespace(p.ctx, node.CRINamespace)
		stop, stopped := make(chan struct{}), make(chan error, 1)
		var longest, sum time.Duration
		count := 0
		go func() {
			for {
				select {
				case <-stop:
					stopped <- nil
					return
				default:
				}
				begin := time.Now()
				if _, err := task.State(ctx, &taskv3.StateRequest{ID: id}); err != nil {
					stopped <- err
					return
				}
				took := time.Since(begin)
				longest, sum, count = max(longest, took), sum+took, count+1
			}
		}()
		for range 20 {
			mustUpgrade(t, shim)
		}
		close(stop)
		must(t, <-stopped)
		t.Logf("%d answers during 20 upgrades, %s at the mean, %s at most", count, sum/time.Duration(max(count, 1)), longest)
		expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
	})
}
