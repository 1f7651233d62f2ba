package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// askFor asks the shim of a pod's container to execute a program, as -upgrade does. So programs that cannot
// ask by themselves can be tried.
func (p *pod) askFor(ctx context.Context, id, program string) error {
	p.t.Helper()
	conn, err := net.Dial("unix", shimSocket(p.t, node.CRINamespace, id))
	must(p.t, err)
	client := ttrpc.NewClient(conn)
	defer client.Close()
	var is types.RuntimeVersion
	return client.Call(ctx, "containerd.shim.pause.v1.Program", "Upgrade", &sandboxapi.CreateSandboxRequest{SandboxID: id, BundlePath: program}, &is)
}

// otherArchitecture is a program of this one's source for another kind of processor.
func otherArchitecture(t *testing.T) string {
	t.Helper()
	arch := "arm64"
	if goruntime.GOARCH == arch {
		arch = "amd64"
	}
	path := filepath.Join(t.TempDir(), "containerd-shim-pause-v2")
	cmd := exec.CommandContext(testContext(t), "go", "build", "-trimpath", "-o", path, "./cmd/containerd-shim-pause-v2")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOARCH="+arch, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := exec.CommandContext(testContext(t), path, "-v").Run(); err == nil {
		t.Skipf("this machine executes programs for %s", arch)
	}
	return path
}

// The new program has to open files before it has any way back.
func TestUpgradeNearTheLimitOfOpenFiles(t *testing.T) {
	for _, handler := range []string{"pause", sharedSandboxHandler} {
		t.Run(handler, func(t *testing.T) {
			p := runPod(t, handler, nil)
			id := p.start("c", "exec sleep 1000")
			shim, err := p.ShimPid()
			must(t, err)
			var was unix.Rlimit
			must(t, unix.Prlimit(shim, unix.RLIMIT_NOFILE, nil, &was))
			files, err := node.OpenFiles(shim)
			must(t, err)
			near := unix.Rlimit{Cur: uint64(total(files)) + 100, Max: was.Max}
			must(t, unix.Prlimit(shim, unix.RLIMIT_NOFILE, &near, nil))
			own, err := theNode.LookPath("containerd-shim-pause-v2")
			must(t, err)
			out, err := upgrade(p.ctx, own)
			if err == nil || !strings.Contains(out, "RLIMIT_NOFILE") {
				t.Errorf("error %v, want a refusal for the limit of open files:\n%s", err, out)
			}
			must(t, unix.Prlimit(shim, unix.RLIMIT_NOFILE, &was, nil))
			expectEqual(t, "output of an exec", strings.TrimSpace(p.exec(id, "echo hello")), "hello")
			mustUpgrade(t, shim)
		})
	}
}

// A program that cannot take over is refused before the shim has given anything up.
func TestProgramsThatCannotTakeOver(t *testing.T) {
	own, err := theNode.LookPath("containerd-shim-pause-v2")
	must(t, err)
	file := func(mode os.FileMode, data []byte) string {
		path := filepath.Join(t.TempDir(), "containerd-shim-pause-v2")
		must(t, os.WriteFile(path, data, mode))
		return path
	}
	whole, err := os.ReadFile(own)
	must(t, err)
	cases := []struct{ name, program, reason string }{
		{"not there", filepath.Join(t.TempDir(), "absent"), "no such file"},
		{"a directory", t.TempDir(), "permission denied"},
		{"not executable", file(0o644, whole), "permission denied"},
		{"no program", file(0o755, []byte("what is this\n")), "exec format error"},
		{"empty", file(0o755, nil), "exec format error"},
		{"cut off", file(0o755, whole[:len(whole)/2]), "cannot take over"},
		{"fails at once", file(0o755, []byte("#!/bin/sh\necho cannot do it >&2; exit 3\n")), "cannot do it"},
		{"succeeds at once", file(0o755, []byte("#!/bin/sh\nexit 0\n")), "cannot take over"},
		{"says anything", file(0o755, []byte("#!/bin/sh\ncat\nexit 0\n")), "cannot take over"},
		{"is killed", file(0o755, []byte("#!/bin/sh\nkill -9 $$\n")), "killed"},
		{"prints without end", file(0o755, []byte("#!/bin/sh\nhead -c 10000000 /dev/zero | tr '\\0' x >&2; exit 1\n")), "cannot take over"},
		{"without a path", "containerd-shim-pause-v2", "not an absolute path"},
		{"of another architecture", otherArchitecture(t), "exec format error"},
	}
	if stock, err := theNode.LookPath("containerd-shim-runc-v2"); err == nil {
		cases = append(cases, struct{ name, program, reason string }{"the stock shim", stock, "cannot take over"})
	}
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.start("c", "until [ -e /stop ]; do sleep 0.1; done; exit 6")
		shim := p.shimPid()
		before := programOf(t, shim)
		for _, tc := range cases {
			err := p.askFor(p.ctx, id, tc.program)
			switch {
			case err == nil:
				t.Errorf("%s: no error", tc.name)
			case !strings.Contains(err.Error(), tc.reason) || !strings.Contains(err.Error(), "goes on with version"):
				t.Errorf("%s: the error does not say %q: %v", tc.name, tc.reason, err)
			case len(err.Error()) > 8192:
				t.Errorf("%s: the error has %d bytes", tc.name, len(err.Error()))
			default:
				t.Logf("%s: %v", tc.name, err)
			}
			expectEqual(t, "program after "+tc.name, programOf(t, shim), before)
			expectEqual(t, "exec after "+tc.name, p.exec(id, "echo lives"), "lives")
		}
		p.expectExited(p.start("next", "exit 4"), 4)
		mustUpgrade(t, shim)
		p.exec(id, "echo lives")
		touchStop(t, p.containerPid(id))
		p.expectExited(id, 6)
	})
}

// A state that a program does not know is refused by it.
func TestStatesOfUnknownFormatAreRefused(t *testing.T) {
	own, err := theNode.LookPath("containerd-shim-pause-v2")
	must(t, err)
	for state, reason := range map[string]string{
		"":                                     "cannot decode",
		"{}":                                   "format 0",
		`{"format":1000,"version":"v9"}`:       "format 1000, of version v9",
		`{"format":1,"something":"new"}`:       "something",
		`{"format":1,"version":"v9","tasks":1`: "cannot decode",
	} {
		cmd := exec.CommandContext(testContext(t), own, "-check-state")
		cmd.Stdin = strings.NewReader(state)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(string(out), reason) {
			t.Errorf("%s: got %v, %q, want exit status 1 and %q", state, err, out, reason)
		}
	}
}

// The table says which shims were not upgraded, and why; so does the exit status.
func TestUpgradeWhileARequestHangs(t *testing.T) {
	for _, handler := range []string{"pause-hanging", "pause-sandbox-hanging", "pause-shared-hanging", "pause-shared-sandbox-hanging"} {
		t.Run(handler, func(t *testing.T) {
			t.Cleanup(func() { checkLeftovers(t, handler) })
			p, other := runPod(t, handler, nil), runPod(t, "pause", nil)
			c := p.start("c", "exec sleep 1000")
			d := other.start("d", "exec sleep 1000")
			hanging.hold(t)
			id, err := p.CreateContainer(p.ctx, "late", []string{"sh", "-c", "exit 8"}, nil)
			must(t, err)
			late := start(t, "StartContainer", func() error { return theNode.StartContainer(p.ctx, id) })
			eventually(t, "create hangs", func() bool { return hanging.held() > 0 })

			both, err := programs()
			must(t, err)
			next := both[0]
			if programOf(t, other.shimPid()) == next {
				next = both[1]
			}
			before := programOf(t, p.shimPid())
			upgraded := make(chan error, 1)
			var out string
			go func() {
				var err error
				out, err = upgrade(p.ctx, next)
				upgraded <- err
			}()
			// All else goes on meanwhile.
			b := newBackground(t)
			b.repeat("exec", func() error {
				r, err := theNode.Exec(p.ctx, c, "true")
				if err == nil && r.ExitCode != 0 {
					err = fmt.Errorf("exit code %d", r.ExitCode)
				}
				return err
			})
			b.repeat("stats", func() error {
				_, err := theNode.CRI().ContainerStats(p.ctx, &runtime.ContainerStatsRequest{ContainerId: c})
				return err
			})
			err = <-upgraded
			b.end()
			b.expectCalled("exec", "stats")
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("got %v, want exit status 1", err)
			}
			t.Logf("%s", out)
			lines := strings.Split(out, "\n")
			refused := slices.IndexFunc(lines, func(l string) bool {
				return strings.Contains(l, fmt.Sprint(p.shimPid())) && strings.Contains(l, "not upgraded: ") && strings.Contains(l, "under way for too long")
			})
			if refused < 0 || !strings.Contains(out, "1 of 2 shims have not been upgraded") {
				t.Errorf("output: %s", out)
			}
			expectEqual(t, "program of the shim", programOf(t, p.shimPid()), before)
			expectEqual(t, "program of the other shim", programOf(t, other.shimPid()), next)
			late.expectStuck()
			expectEqual(t, "exec", p.exec(c, "echo lives"), "lives")
			hanging.letGo(t)
			must(t, late.wait())
			p.expectExited(id, 8)
			mustUpgrade(t, p.shimPid(), other.shimPid())
			expectEqual(t, "exec", p.exec(c, "echo lives"), "lives")
			expectEqual(t, "exec in the other", other.exec(d, "echo lives"), "lives")
		})
	}
}

// What happens while containerd is away is told when it is back, each event once.
func TestUpgradeWhileContainerdIsAway(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		stays := p.start("stays", "exec sleep 1000")
		before, after := p.start("before", "until [ -e /stop ]; do sleep 0.1; done; exit 8"), p.start("after", "until [ -e /stop ]; do sleep 0.1; done; exit 9")
		shim, first, second := p.shimPid(), p.containerPid(before), p.containerPid(after)
		must(t, theNode.Kill())
		touchStop(t, first)
		expectEnded(t, first)
		mustUpgrade(t, shim)
		touchStop(t, second)
		expectEnded(t, second)
		mustUpgrade(t, shim)
		since := len(readFile(t, theNode.LogFile()))
		must(t, theNode.Restart(p.ctx))
		p.expectExited(before, 8)
		p.expectExited(after, 9)
		expectEqual(t, "state of the pod", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
		expectEqual(t, "exec", p.exec(stays, "echo lives"), "lives")
		expectEqual(t, "shim", p.shimPid(), shim)
		mustUpgrade(t, shim)
		p.expectExited(p.start("next", "exit 4"), 4)
		expectConnected(t, since, p.ID)
	})
}

// containerd is there and does not take an event: nobody knows whether it has.
func TestUpgradeWhileContainerdIsStopped(t *testing.T) {
	eachPauseShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("exec sleep 1000"))
		events := subscribe(t, c)
		c.run(cio.NullIO)
		e := c.exec("e", nil, nil, "sh", "-c", "until [ -e /stop ]; do sleep 0.1; done; exit 5")
		before := programOf(t, c.shimPid())
		pid := int(e.Pid())
		daemon := theNode.DaemonPid()
		must(t, unix.Kill(daemon, unix.SIGSTOP))
		t.Cleanup(func() { must(t, unix.Kill(daemon, unix.SIGCONT)) })
		touchStop(t, int(c.task.Pid()))
		eventually(t, "exec has ended", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
		both, err := programs()
		must(t, err)
		next := both[0]
		if before == next {
			next = both[1]
		}
		out, err := upgrade(c.ctx, next) // there is no other shim
		t.Logf("%s", out)
		if err == nil || !strings.Contains(out, "containerd does not acknowledge an event") {
			t.Errorf("error %v, output: %s", err, out)
		}
		expectEqual(t, "program", programOf(t, c.shimPid()), before)
		must(t, unix.Kill(daemon, unix.SIGCONT))
		e.mustFinish(5)
		mustUpgrade(t, c.shimPid())
		must(t, c.task.Kill(c.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, c.exited), 137)
		c.remove()
		events.expectAll("create", "start", "exec-added e", "exec-started e", "exit e", "exit", "delete")
	})
}
