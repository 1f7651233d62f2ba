package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/integration/node"
)

// The files below are shell scripts that stand for an OCI runtime: they record
// how they are called, fail where told to, and otherwise call the real one.

// script writes an executable file.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	must(t, os.WriteFile(path, []byte(text), 0o755))
	return path
}

// fakeRuntime is an OCI runtime whose verb fails as long as a file is there.
type fakeRuntime struct {
	t      *testing.T
	path   string
	calls  string // the file with all calls
	broken string // the file that lets the verb fail
}

func newFakeRuntime(t *testing.T, verb string) *fakeRuntime {
	t.Helper()
	dir := t.TempDir()
	f := &fakeRuntime{t: t, path: filepath.Join(dir, "runtime"), calls: filepath.Join(dir, "calls"), broken: filepath.Join(dir, "broken")}
	must(t, os.WriteFile(f.path, fmt.Appendf(nil, `#!/bin/sh
echo "$*" >>%[1]s
for a; do
	if [ "$a" = "%[2]s" ] && [ -e %[3]s ]; then
		echo "this runtime is broken" >&2
		exit 1
	fi
done
exec %[4]s "$@"
`, f.calls, verb, f.broken, ociRuntime), 0o755))
	must(t, os.WriteFile(f.broken, nil, 0o644))
	return f
}

func (f *fakeRuntime) repair() { must(f.t, os.Remove(f.broken)) }

// called returns the calls of a verb, each with all its arguments.
func (f *fakeRuntime) called(verb string) (calls []string) {
	f.t.Helper()
	for line := range strings.Lines(readFile(f.t, f.calls)) {
		if strings.Contains(" "+strings.TrimSpace(line)+" ", " "+verb+" ") {
			calls = append(calls, strings.TrimSpace(line))
		}
	}
	return calls
}

func (f *fakeRuntime) config(script string) config {
	cfg := sh(script)
	cfg.options = func(o *options.Options) { o.BinaryName = f.path }
	return cfg
}

// brokenHandlers are CRI handlers with an OCI runtime that is not there.
func brokenHandlers() []node.Handler {
	return []node.Handler{
		{Name: "runc-broken", Type: node.StockType, OCIRuntime: "/no/such/runtime"},
		{Name: "pause-broken", Type: node.PauseType, OCIRuntime: "/no/such/runtime"},
		{Name: "pause-shared-broken", Type: node.SharedType, OCIRuntime: "/no/such/runtime"},
	}
}

func TestBinaryNameIsUsed(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		f := newFakeRuntime(t, "none")
		c := startContainer(t, shim, f.config("exit 2"))
		expectEqual(t, "exit code", c.wait(), 2)
		c.remove()
		for _, verb := range []string{"create", "start", "delete"} {
			if len(f.called(verb)) == 0 {
				t.Errorf("%s was not called", verb)
			}
		}
	})
}

func TestRuntimeOptions(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for _, tc := range []struct {
			argument string
			set      func(*options.Options)
		}{
			{"--no-new-keyring", func(o *options.Options) { o.NoNewKeyring = true }},
			{"--no-pivot", func(o *options.Options) { o.NoPivotRoot = true }},
			{"--root " + theNode.RuntimeRoot() + "/other/" + theNode.ID, func(o *options.Options) { o.Root += "/other" }},
		} {
			f := newFakeRuntime(t, "none")
			cfg := f.config("exit 2")
			cfg.options = func(o *options.Options) {
				o.BinaryName = f.path
				tc.set(o)
			}
			c := startContainer(t, shim, cfg)
			expectEqual(t, "exit code", c.wait(), 2)
			c.remove()
			calls := f.called("create")
			if len(calls) != 1 || !strings.Contains(calls[0], tc.argument) {
				t.Errorf("calls without %s: %q", tc.argument, calls)
			}
		}
		must(t, os.RemoveAll(theNode.RuntimeRoot()+"/other"))
	})
}

func TestShimCgroup(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		// Not a parent of others: cgroup v2 lets no process into one.
		name := "/" + theNode.ID + "-shims"
		made, err := cgroups.Create(name, false, nil)
		must(t, err)
		atEnd(t, made.Remove)
		cfg := sh("sleep 1000")
		cfg.options = func(o *options.Options) { o.ShimCgroup = name }
		c := startContainer(t, shim, cfg)
		pid, err := theNode.ShimPid(theNode.ID, c.ID())
		must(t, err)
		if got := readFile(t, fmt.Sprintf("/proc/%d/cgroup", pid)); !strings.Contains(got, ":"+name+"\n") {
			t.Errorf("cgroups of the shim:\n%s", got)
		}
	})
}

func TestIoGid(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("stat -L -c %g /proc/self/fd/1") // runc sets the user once more, but not the group
		cfg.options = func(o *options.Options) { o.IoGid = 5678 }
		c := startContainer(t, shim, cfg)
		c.wait()
		want := "5678\n"
		if filepath.Base(ociRuntime) == "crun" {
			want = "0\n" // it sets the container's own, after any shim
		}
		expectEqual(t, "group of stdout", c.out.String(), want)
	})
}

func TestRuntimeThatDoesNotExist(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("true")
		cfg.options = func(o *options.Options) { o.BinaryName = "/no/such/runtime" }
		c := newContainer(t, shim, cfg)
		_, err := c.NewTask(c.ctx, c.streams(nil))
		if err == nil || !strings.Contains(err.Error(), "/no/such/runtime") {
			t.Errorf("error does not name the runtime: %v", err)
		}
	})
}

func TestRuntimeFailsAtCreate(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		f := newFakeRuntime(t, "create")
		c := newContainer(t, shim, f.config("exit 2"))
		if _, err := c.NewTask(c.ctx, c.streams(nil)); err == nil {
			t.Fatal("no error")
		}
		// All is as before, so that it can be tried again.
		f.repair()
		c.run(c.streams(nil))
		expectEqual(t, "exit code", c.wait(), 2)
	})
}

func TestRuntimeFailsAtStart(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		f := newFakeRuntime(t, "start")
		c := newContainer(t, shim, f.config("exit 2"))
		c.create(c.streams(nil))
		if err := c.task.Start(c.ctx); err == nil {
			t.Fatal("no error")
		}
	})
}

func TestRuntimeFailsAtExec(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		f := newFakeRuntime(t, "exec")
		c := startContainer(t, shim, f.config("sleep 1000"))
		if _, err := c.tryExec("e1", nil, nil, "true"); err == nil {
			t.Error("no error")
		}
		f.repair()
		c.exec("e1", nil, nil, "true").mustFinish(0)
	})
}

func TestRuntimeFailsAtDelete(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		f := newFakeRuntime(t, "delete")
		c := startContainer(t, shim, f.config("exit 2"))
		expectEqual(t, "exit code", c.wait(), 2)
		if _, err := c.task.Delete(c.ctx); err == nil {
			t.Error("no error")
		}
		f.repair()
	})
}

func TestRuntimeOfPodDoesNotExist(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		ctx := testContext(t)
		pod, err := theNode.RunPod(ctx, shim+"-broken", nil)
		if err == nil {
			// A sandbox that needs no OCI runtime may well run without.
			atEnd(t, pod.Remove)
			id, failed := pod.CreateContainer(ctx, "c", []string{"true"}, nil)
			must(t, failed)
			if err = theNode.StartContainer(ctx, id); err == nil {
				t.Fatal("no error")
			}
		}
		if !strings.Contains(err.Error(), "/no/such/runtime") {
			t.Errorf("error does not name the runtime: %v", err)
		}
	})
}

func TestCheckpointAndRestore(t *testing.T) {
	if out, err := exec.Command("criu", "check").CombinedOutput(); err != nil {
		t.Skipf("criu cannot be used with this kernel: %s", out)
	}
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done")
		c := newContainer(t, shim, cfg)
		c.run(c.streams(nil))
		c.out.expect(t, "\n3\n")
		image := filepath.Join(theNode.Dir, "checkpoint", c.ID())
		_, err := c.task.Checkpoint(c.ctx, containerd.WithCheckpointImagePath(image), func(i *containerd.CheckpointTaskInfo) error {
			i.Options = &options.CheckpointOptions{Exit: true, ImagePath: image}
			return nil
		})
		must(t, err)
		c.wait()
		count := strings.Count(c.out.String(), "\n")
		_, err = c.task.Delete(c.ctx)
		must(t, err)
		c.run(c.streams(nil), containerd.WithRestoreImagePath(image))
		// It goes on from where it was.
		c.out.expect(t, fmt.Sprintf("\n%d\n", count+5))
		expectEqual(t, "first lines", strings.Count(c.out.String(), "\n1\n"), 0)
	})
}

// A checkpoint that fails does not harm the task.
func TestCheckpointThatFails(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		f := newFakeRuntime(t, "checkpoint")
		c := startContainer(t, shim, f.config("trap 'exit 4' TERM; echo up; while :; do sleep 0.1; done"))
		c.out.expect(t, "up")
		if _, err := c.task.Checkpoint(c.ctx, containerd.WithCheckpointImagePath(t.TempDir())); err == nil {
			t.Error("no error")
		}
		status, err := c.task.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
		must(t, c.task.Kill(c.ctx, syscall.SIGTERM))
		expectEqual(t, "exit code", c.wait(), 4)
	})
}
