package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hookKinds are those that a sandbox has, in the order in which they run.
var hookKinds = []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}

// setHooks lets a container have hooks of one kind.
func setHooks(kind string, list ...specs.Hook) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		if s.Hooks == nil {
			s.Hooks = &specs.Hooks{}
		}
		switch kind {
		case "prestart":
			s.Hooks.Prestart = list //nolint:staticcheck // deprecated, but in use
		case "createRuntime":
			s.Hooks.CreateRuntime = list
		case "createContainer":
			s.Hooks.CreateContainer = list
		case "poststart":
			s.Hooks.Poststart = list
		case "poststop":
			s.Hooks.Poststop = list
		default:
			return fmt.Errorf("no such kind: %s", kind)
		}
		return nil
	}
}

// hookScript notes that it has run, as what, and what it was given. Its first
// two arguments are the directory of the notes and the hook's name; the rest is
// what it does then. The environment is read from /proc since the shell adds to it.
const hookScript = `#!/bin/sh
dir=$1 name=$2
echo "$name" >>"$dir/order"
tr '\0' '\n' </proc/self/environ >"$dir/$name.env"
printf '%s\n' "$@" >"$dir/$name.args"
for kind in net ipc uts; do readlink /proc/self/ns/$kind; done >"$dir/$name.namespaces"
cat >"$dir/$name.state"
eval "$3"
`

// hookLog is what hooks have noted.
type hookLog struct {
	t      *testing.T
	dir    string
	script string
}

func newHookLog(t *testing.T) *hookLog {
	t.Helper()
	return &hookLog{t: t, dir: t.TempDir(), script: script(t, hookScript)}
}

const hookPath = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

// hook is one that notes and then runs a script.
func (l *hookLog) hook(name, script string) specs.Hook {
	return specs.Hook{Path: l.script, Args: []string{"hook", l.dir, name, script}, Env: []string{hookPath, "KIND=" + name, "SPACE=a  b "}}
}

// quiet are hooks of all kinds, but for the given one, that only note.
func (l *hookLog) quiet(except ...string) (opts []oci.SpecOpts) {
	for _, kind := range hookKinds {
		if !slices.Contains(except, kind) {
			opts = append(opts, setHooks(kind, l.hook(kind, "")))
		}
	}
	return opts
}

// read returns what a hook has noted.
func (l *hookLog) read(file string) string {
	l.t.Helper()
	b, err := os.ReadFile(filepath.Join(l.dir, file))
	must(l.t, err)
	return string(b)
}

// order is which hooks have run.
func (l *hookLog) order() string {
	b, err := os.ReadFile(filepath.Join(l.dir, "order"))
	if !os.IsNotExist(err) {
		must(l.t, err)
	}
	return strings.Join(strings.Fields(string(b)), " ")
}

func (l *hookLog) state(name string) (s specs.State) {
	l.t.Helper()
	must(l.t, json.Unmarshal([]byte(l.read(name+".state")), &s))
	return s
}

func TestEachHookOfSandboxRunsOnce(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		p := podByHand(t, shim, l.quiet()...)
		p.sandbox.create(cio.NullIO)
		// runc 1.1 runs poststart hooks when the container has been created.
		created := "prestart createRuntime createContainer"
		if shim == "runc" {
			created += " poststart"
		}
		expectEqual(t, "hooks of create", l.order(), created)
		must(t, p.sandbox.task.Start(p.sandbox.ctx))
		expectEqual(t, "hooks of start", l.order(), "prestart createRuntime createContainer poststart")
		must(t, p.sandbox.task.Kill(p.sandbox.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, p.sandbox.exited), 137)
		expectEqual(t, "hooks before delete", l.order(), "prestart createRuntime createContainer poststart")
		_, err := p.sandbox.task.Delete(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "hooks of all", l.order(), strings.Join(hookKinds, " "))
		p.sandbox.remove()
		expectEqual(t, "hooks in the end", l.order(), strings.Join(hookKinds, " "))
	})
}

// The hooks of a container are the OCI runtime's, whoever starts the container.
func TestEachHookOfContainerRunsOnce(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		cfg := sh("exec sleep 1000")
		cfg.spec = l.quiet()
		c := startContainer(t, shim, cfg)
		expectEqual(t, "hooks of start", l.order(), "prestart createRuntime createContainer poststart")
		must(t, c.task.Kill(c.ctx, unix.SIGKILL))
		c.wait()
		c.remove()
		expectEqual(t, "hooks of all", l.order(), strings.Join(hookKinds, " "))
	})
}

func TestHooksOfSandboxGetTheState(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		annotations := map[string]string{"an.example/annotation": "its \"value\""}
		p := podByHand(t, shim, append(l.quiet(), oci.WithAnnotations(annotations))...)
		p.run()
		pid, bundle := p.pid(), theNode.Bundle(theNode.ID, p.sandbox.ID())
		p.sandbox.remove()
		annotations["io.kubernetes.cri.container-type"] = "sandbox"
		annotations["io.kubernetes.cri.sandbox-id"] = p.sandbox.ID()
		for _, kind := range hookKinds {
			want := specs.State{ID: p.sandbox.ID(), Pid: pid, Status: hookStatus(shim, kind), Bundle: bundle}
			switch {
			case kind == "poststop":
				want.Pid = 0
			case kind == "createContainer" && shim == "runc":
				want.Pid = 1 // as the container's init sees itself
			}
			got := l.state(kind)
			expectEqual(t, "id for "+kind, got.ID, want.ID)
			expectEqual(t, "pid for "+kind, got.Pid, want.Pid)
			expectEqual(t, "status for "+kind, got.Status, want.Status)
			expectEqual(t, "bundle for "+kind, got.Bundle, want.Bundle)
			for key, value := range annotations {
				expectEqual(t, key+" for "+kind, got.Annotations[key], value)
			}
			if got.Version == "" {
				t.Errorf("no version for %s", kind)
			}
		}
	})
}

// hookStatus is the status that hooks of a kind are told.
func hookStatus(shim, kind string) specs.ContainerState {
	switch {
	case kind == "poststop":
		return specs.StateStopped
	case kind == "poststart" && shim == "runc":
		return specs.StateCreated // since runc 1.1 runs them that early
	case kind == "poststart":
		return specs.StateRunning
	}
	return specs.StateCreating
}

func TestHooksOfSandboxGetArgumentsAndEnvironment(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		var opts []oci.SpecOpts
		for _, kind := range hookKinds {
			h := l.hook(kind, "")
			h.Args = append(h.Args, "two  words", `$(quoted) "'`, "")
			opts = append(opts, setHooks(kind, h))
		}
		p := podByHand(t, shim, opts...)
		p.run()
		p.sandbox.remove()
		for _, kind := range hookKinds {
			expectEqual(t, "arguments", l.read(kind+".args"), l.dir+"\n"+kind+"\n\ntwo  words\n$(quoted) \"'\n\n")
			expectEqual(t, "environment", l.read(kind+".env"), hookPath+"\nKIND="+kind+"\nSPACE=a  b \n")
		}
	})
}

// runc gives hooks that have no environment its own.
func TestHooksOfSandboxWithoutEnvironmentGetNone(t *testing.T) {
	withPause(t, func(t *testing.T) {
		l := newHookLog(t)
		h := l.hook("createRuntime", "")
		h.Env = nil
		p := podByHand(t, "pause", setHooks("createRuntime", h))
		p.run()
		expectEqual(t, "environment", l.read("createRuntime.env"), "")
	})
}

func TestHooksOfSandboxRunInTheirNamespaces(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) { checkHookNamespaces(t, shim) })
}

// With the stock shim there is a process, which needs a root file system of its own
// IDs.
func TestHooksOfSandboxWithUserNamespaceRunInTheirNamespaces(t *testing.T) {
	withPause(t, func(t *testing.T) { checkHookNamespaces(t, "pause", withUserNamespace()) })
}

func checkHookNamespaces(t *testing.T, shim string, opts ...oci.SpecOpts) {
	t.Helper()
	l := newHookLog(t)
	p := podByHand(t, shim, append(l.quiet(), opts...)...)
	p.run()
	pod, host := namespacesOf(t, p.pid()), namespacesOf(t, "self")
	p.sandbox.remove()
	for _, kind := range hookKinds {
		want := host
		if kind == "createContainer" {
			want = pod
		}
		expectEqual(t, "namespaces of "+kind, l.read(kind+".namespaces"), want)
	}
}

// namespacesOf are those that hookScript notes.
func namespacesOf(t *testing.T, pid any) (lines string) {
	t.Helper()
	for _, kind := range []string{"net", "ipc", "uts"} {
		lines += namespace(t, pid, kind) + "\n"
	}
	return lines
}

// expectNoTask expects that a create has failed for a reason, and that nothing
// is left on the node.
func expectNoTask(t *testing.T, c *container, reason string) {
	t.Helper()
	_, err := c.NewTask(c.ctx, cio.NullIO)
	if err == nil {
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), reason) {
		t.Errorf("error without %q: %v", reason, err)
	}
	if _, err := c.Task(c.ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("the task is left: %v", err)
	}
	if left := theNode.Leftovers(c.ctx, neighboursHave(t)...); len(left) > 0 {
		t.Errorf("left:\n  %s", strings.Join(left, "\n  "))
	}
}

func TestFailingHookFailsTheCreate(t *testing.T) {
	for i, kind := range hookKinds[:3] {
		t.Run(kind, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				l := newHookLog(t)
				bad := setHooks(kind, l.hook("good", ""), l.hook("bad", "echo its own words >&2; exit 3"), l.hook("after", ""))
				p := podByHand(t, shim, append(l.quiet(kind), bad)...)
				expectNoTask(t, p.sandbox, "its own words")
				want := append(slices.Clone(hookKinds[:i]), "good", "bad", "poststop")
				expectEqual(t, "hooks", l.order(), strings.Join(want, " "))
			})
		})
	}
}

func TestHookThatDoesNotEndFailsTheCreate(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		slow, timeout := l.hook("slow", "exec sleep 1000"), 1
		slow.Timeout = &timeout
		p := podByHand(t, shim, append(l.quiet("createRuntime"), setHooks("createRuntime", slow))...)
		expectNoTask(t, p.sandbox, "timeout of 1")
		expectEqual(t, "hooks", l.order(), "prestart slow poststop")
	})
}

func TestHookThatIsAbsentFailsTheCreate(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		p := podByHand(t, shim, setHooks("createRuntime", specs.Hook{Path: "/no/such/hook"}))
		expectNoTask(t, p.sandbox, "/no/such/hook")
	})
}

// runc finds out only when their turn comes.
func TestHooksThatCannotRunAreRefusedBeforeAnyRuns(t *testing.T) {
	withPause(t, func(t *testing.T) {
		l := newHookLog(t)
		past := l.hook("past", "")
		timeout := -1
		past.Timeout = &timeout
		for reason, bad := range map[string]specs.Hook{
			`"bin/hook" is not absolute`: {Path: "bin/hook"},
			"timeout":                    past,
		} {
			p := podByHand(t, "pause", append(l.quiet("poststop"), setHooks("poststop", bad))...)
			expectNoTask(t, p.sandbox, reason)
			expectEqual(t, "hooks", l.order(), "")
		}
	})
}

// runc 1.1 runs poststart hooks at create already.
func TestFailingPoststartHookFailsTheStart(t *testing.T) {
	withPause(t, func(t *testing.T) {
		l := newHookLog(t)
		bad := setHooks("poststart", l.hook("bad", "echo its own words; exit 4"), l.hook("after", ""))
		p := podByHand(t, "pause", append(l.quiet("poststart"), bad)...)
		p.sandbox.create(cio.NullIO)
		err := p.sandbox.task.Start(p.sandbox.ctx)
		if err == nil || !strings.Contains(err.Error(), "its own words") {
			t.Errorf("error: %v", err)
		}
		expectEqual(t, "exit code", exitCode(t, p.sandbox.exited), 137)
		status, err := p.sandbox.task.Status(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Stopped)
		_, err = p.sandbox.task.Delete(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "hooks", l.order(), "prestart createRuntime createContainer bad poststop")
	})
}

// The remaining hooks are to run all the same ("Lifecycle" in runtime.md of the
// runtime specification), but not in runc 1.1.
func TestFailingPoststopHookIsNoObstacle(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		last := "bad after"
		if shim == "runc" {
			last = "bad"
		}
		l := newHookLog(t)
		bad := setHooks("poststop", l.hook("bad", "exit 5"), l.hook("after", ""))
		p := podByHand(t, shim, append(l.quiet("poststop"), bad)...)
		p.run()
		must(t, p.sandbox.task.Kill(p.sandbox.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, p.sandbox.exited), 137)
		_, err := p.sandbox.task.Delete(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "hooks", l.order(), "prestart createRuntime createContainer poststart "+last)
	})
}

// What CNI does by hooks: an interface in the pod's network namespace, that is
// there when the first container comes.
func TestHookMakesAnInterfaceOfThePod(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		l := newHookLog(t)
		script := `pid=$(sed 's/.*"pid":\([0-9]*\).*/\1/' "$dir/$name.state")
			nsenter -t $pid -n ip link add hook0 type veth peer name hook1`
		p := podByHand(t, shim, setHooks("createRuntime", l.hook("network", script)))
		p.run()
		cfg := sh("cd /sys/class/net; ls -d hook*")
		cfg.spec = []oci.SpecOpts{withPath(specs.NetworkNamespace, fmt.Sprintf("/proc/%d/ns/net", p.pid()))}
		c := p.member(cfg)
		c.run(c.streams(nil))
		expectEqual(t, "exit code", c.wait(), 0)
		expectEqual(t, "interfaces", c.out.String(), "hook0\nhook1\n")
		if _, err := os.Stat("/sys/class/net/hook0"); err == nil {
			t.Error("the interface is the host's")
		}
	})
}

// containerd cleans up after a shim that was killed, by the shim's delete call.
func TestPoststopHooksRunOnceIfTheShimIsKilled(t *testing.T) {
	for _, fate := range []string{"", "exit 6"} {
		t.Run("hook: "+fate, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				l := newHookLog(t)
				p := podByHand(t, shim, append(l.quiet("poststop"), setHooks("poststop", l.hook("poststop", fate)))...)
				events := subscribe(t, p.sandbox)
				p.run()
				pid, err := theNode.ShimPid(theNode.ID, p.sandbox.ID())
				must(t, err)
				p.sandbox.neighbourEndsWithShim()
				must(t, unix.Kill(pid, unix.SIGKILL))
				events.expectAll("create", "start", "exit", "delete")
				p.sandbox.remove()
				forgiveSocket(t, shim)
				expectEqual(t, "hooks", l.order(), strings.Join(hookKinds, " "))
				state := l.state("poststop")
				expectEqual(t, "pid", state.Pid, 0)
				expectEqual(t, "status", state.Status, specs.StateStopped)
			})
		})
	}
}

// The same if it is killed while a hook of the create runs. The hook itself is
// nobody's any more, but it is not run again.
func TestPoststopHooksRunOnceIfTheShimIsKilledInCreate(t *testing.T) {
	withPause(t, func(t *testing.T) {
		l := newHookLog(t)
		slow := setHooks("createRuntime", l.hook("slow", `echo $$ >"$dir/new"; mv "$dir/new" "$dir/pid"; exec sleep 1000`))
		p := podByHand(t, "pause", append(l.quiet("createRuntime"), slow)...)
		failed := make(chan error, 1)
		go func() {
			_, err := p.sandbox.NewTask(p.sandbox.ctx, cio.NullIO)
			failed <- err
		}()
		eventually(t, "the hook runs", func() bool { _, err := os.Stat(filepath.Join(l.dir, "pid")); return err == nil })
		shim, err := theNode.ShimPid(theNode.ID, p.sandbox.ID())
		must(t, err)
		must(t, unix.Kill(shim, unix.SIGKILL))
		if <-failed == nil {
			t.Error("no error")
		}
		hook, err := strconv.Atoi(strings.TrimSpace(l.read("pid")))
		must(t, err)
		must(t, unix.Kill(hook, unix.SIGKILL))
		eventually(t, "poststop hooks have run", func() bool { return strings.HasSuffix(l.order(), "poststop") })
		p.sandbox.remove()
		expectEqual(t, "hooks", l.order(), "prestart slow poststop")
	})
}

// A sandbox without a process has nothing that labels could apply to. runc
// refuses them where the kernel knows no labels.
func TestSandboxWithLabelsRuns(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause", withLabels)
		p.run()
		status, err := p.sandbox.task.Status(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
		c := p.member(config{args: []string{"sleep", "1000"}})
		c.run(cio.NullIO)
		expectEqual(t, "network of the container", namespace(t, c.task.Pid(), "net"), namespace(t, p.pid(), "net"))
	})
}

func withLabels(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
	s.Process.SelinuxLabel = "system_u:system_r:container_t:s0:c1,c2"
	s.Process.ApparmorProfile = "cri-containerd.apparmor.d"
	s.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
	return nil
}
