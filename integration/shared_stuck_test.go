package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/process/proctest"
)

// What is stuck in one pod of a shim must not hold up the others: all that these do has to be
// done while it is still stuck. How long that takes does not matter.

// later is a call that is not expected to return yet.
type later struct {
	t    *testing.T
	what string
	done chan error
}

func start(t *testing.T, what string, f func() error) *later {
	t.Helper()
	l := &later{t: t, what: what, done: make(chan error, 1)}
	go func() { l.done <- f() }()
	return l
}

// expectStuck fails the test if the call has returned.
func (l *later) expectStuck() {
	l.t.Helper()
	select {
	case err := <-l.done:
		l.t.Fatalf("%s is not stuck any more: %v", l.what, err)
	default:
	}
}

// wait waits until the call has returned, and returns its error.
func (l *later) wait() error {
	l.t.Helper()
	select {
	case err := <-l.done:
		return err
	case <-l.t.Context().Done():
		return l.t.Context().Err()
	}
}

// whileStuck runs what others do while calls are stuck: before, which stuck must say at some
// time, and after.
func whileStuck(t *testing.T, stuck func() bool, calls []*later, others func()) {
	t.Helper()
	eventually(t, calls[0].what+" is stuck", stuck)
	for _, l := range calls {
		l.expectStuck()
	}
	others()
	if !stuck() {
		t.Fatalf("%s has not been stuck for so long", calls[0].what)
	}
	for _, l := range calls {
		l.expectStuck()
	}
}

// hangsBelow says whether a shim, or a process that it has started, waits for a file system.
func hangsBelow(t *testing.T, shim int, f *proctest.ServedFile) func() bool {
	t.Helper()
	return func() bool {
		return slices.ContainsFunc(f.Callers(), func(tid int) bool {
			for pid := tid; pid > 1; {
				if pid == shim || isThread(shim, pid) {
					return true
				}
				status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
				if err != nil {
					return false // it has ended
				}
				_, after, _ := strings.Cut(string(status), "\nPPid:")
				if _, err := fmt.Sscan(after, &pid); err != nil {
					t.Fatal(err)
				}
			}
			return false
		})
	}
}

// isThread says whether a process has a thread.
func isThread(pid, tid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, tid))
	return err == nil
}

// expectUndisturbed expects that pods, and new ones, do all that a pod does, and one goes.
func expectUndisturbed(t *testing.T, handler string, shim int, pods ...*tenant) {
	t.Helper()
	expectLogged(t, shim) // see others.expectUndisturbed
	expectLives(t, pods...)
	expectWorks(t, pods...)
	next := newTenant(t, handler, node.HostNetwork)
	expectEqual(t, "shim of the next pod", next.shim, shim)
	expectWorks(t, next)
	next.remove()
	expectLives(t, pods...)
}

// mounted has a file or directory mounted as /volume into a container.
func mounted(path string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{HostPath: path, ContainerPath: "/volume"}}
	}
}

// The OCI runtime hangs when it looks at what it is to mount.
func TestVolumeThatHangsInCreateHoldsUpNoOtherPod(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := tenants(t, handler, 2)
		stuck, other := pods[0], pods[1]
		volume := proctest.ServeFile(t, "its text")
		id, err := stuck.CreateContainer(stuck.ctx, "stuck", []string{"sleep", "1000"}, mounted(volume.Path))
		must(t, err)
		volume.Hang()
		started := start(t, "the start of the container", func() error { return theNode.StartContainer(stuck.ctx, id) })
		whileStuck(t, hangsBelow(t, stuck.shim, volume), []*later{started}, func() {
			expectUndisturbed(t, handler, stuck.shim, other)
			expectLives(t, stuck) // its other container, too
		})
		volume.Resume()
		must(t, started.wait())
		expectEqual(t, "text of the volume", stuck.exec(id, "cat /volume"), "its text")
		expectLives(t, pods...)
		stuck.remove()
		other.remove()
		expectEnded(t, stuck.shim)
	})
}

// inDirectory has a container work in the directory that it mounts.
func inDirectory(path string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		mounted(path)(c)
		c.WorkingDir = "/volume"
	}
}

// A process that waits for a file system is in an uninterruptible sleep: SIGKILL does not end it.
func TestContainerThatCannotBeKilledHoldsUpNoOtherPod(t *testing.T) {
	for what, end := range map[string]func(p *tenant, id string) error{
		"the stop of the container":    func(p *tenant, id string) error { return theNode.StopContainer(p.ctx, id, 0) },
		"the removal of the container": func(p *tenant, id string) error { return theNode.RemoveContainer(p.ctx, id) },
		"the stop of the pod":          func(p *tenant, _ string) error { return p.Stop(p.ctx) },
		"the removal of the pod":       func(p *tenant, _ string) error { return p.Remove(p.ctx) },
	} {
		t.Run(what, func(t *testing.T) {
			eachSharedHandler(t, func(t *testing.T, handler string) {
				pods := tenants(t, handler, 2)
				stuck, other := pods[0], pods[1]
				dir := proctest.ServeDir(t)
				id, err := stuck.CreateContainer(stuck.ctx, "stuck", []string{"sh", "-c", "while [ -d . ]; do sleep 0.05; done"}, inDirectory(dir.Path))
				must(t, err)
				must(t, theNode.StartContainer(stuck.ctx, id))
				pid := stuck.containerPid(id)
				dir.Hang()
				eventually(t, "the container's init is stuck", func() bool { return slices.Contains(dir.Callers(), pid) })
				ended := start(t, what, func() error { return end(stuck, id) })
				killed := func() bool { return hasPending(t, pid, unix.SIGKILL) && isUninterruptible(t, pid) }
				whileStuck(t, killed, []*later{ended}, func() {
					expectUndisturbed(t, handler, other.shim, other)
				})
				dir.Resume()
				must(t, ended.wait())
				expectEnded(t, pid)
				if what == "the stop of the container" {
					stuck.expectExited(id, 137)
					expectLives(t, stuck)
				}
				expectLives(t, other)
				stuck.remove()
				other.remove()
				expectEnded(t, other.shim)
			})
		})
	}
}

// isUninterruptible says whether a process is in an uninterruptible sleep.
func isUninterruptible(t *testing.T, pid int) bool {
	t.Helper()
	return strings.HasPrefix(statusField(t, pid, "State"), "D")
}

// hasPending says whether a signal to a process waits to be taken.
func hasPending(t *testing.T, pid int, sig unix.Signal) bool {
	t.Helper()
	for _, field := range []string{"SigPnd", "ShdPnd"} {
		var set uint64
		if _, err := fmt.Sscanf(statusField(t, pid, field), "%x", &set); err != nil {
			t.Fatalf("%s of process %d: %v", field, pid, err)
		}
		if set>>(sig-1)&1 == 1 {
			return true
		}
	}
	return false
}

// statusField is a field of /proc/<pid>/status.
func statusField(t *testing.T, pid int, name string) string {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", pid))) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("process %d has no %s", pid, name)
	return ""
}

// The OCI runtime's own process is in the container when it executes the program.
func TestExecThatHangsHoldsUpNoOtherPod(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := tenants(t, handler, 2)
		stuck, other := pods[0], pods[1]
		program := proctest.ServeFile(t, "#!/bin/sh\nexit 5\n")
		id, err := stuck.CreateContainer(stuck.ctx, "stuck", []string{"sleep", "1000"}, mounted(program.Path))
		must(t, err)
		must(t, theNode.StartContainer(stuck.ctx, id))
		program.Hang()
		executed := start(t, "the exec", func() error {
			r, err := theNode.Exec(stuck.ctx, id, "/volume")
			if err == nil && r.ExitCode != 5 {
				err = fmt.Errorf("exit code %d", r.ExitCode)
			}
			return err
		})
		whileStuck(t, hangsBelow(t, stuck.shim, program), []*later{executed}, func() {
			expectUndisturbed(t, handler, stuck.shim, other)
			expectLives(t, stuck)
		})
		program.Resume()
		must(t, executed.wait())
		expectLives(t, pods...)
	})
}

// others are containers in a shared shim, beside one that is stuck.
type others struct {
	t    *testing.T
	shim int
	c    *container // that is there before
}

func newOthers(t *testing.T) *others {
	t.Helper()
	c := startContainer(t, sharedShim, sh("sleep 1000"))
	shim, err := theNode.ShimPid(theNode.ID, c.ID())
	must(t, err)
	return &others{t, shim, c}
}

// expectUndisturbed expects that the container lives, that others come and go beside it, and that
// all events of these arrive.
func (o *others) expectUndisturbed() {
	o.t.Helper()
	// For its stacks the shim stops all its threads for a moment, as garbage collection does.
	expectLogged(o.t, o.shim)
	for i := range 2 {
		must(o.t, numberedExec(o.c, i))
		c := newContainer(o.t, sharedShim, sh("read line; echo $line; exit 4"))
		events := subscribe(o.t, c)
		stdin, in := io.Pipe()
		c.run(c.streams(stdin))
		shim, err := theNode.ShimPid(theNode.ID, c.ID())
		must(o.t, err)
		expectEqual(o.t, "shim of the next container", shim, o.shim)
		c.exec("e", nil, nil, "true").mustFinish(0)
		_, err = in.Write([]byte("output\n"))
		must(o.t, err)
		expectEqual(o.t, "exit code", c.wait(), 4)
		in.Close()
		expectEqual(o.t, "output", c.out.String(), "output\n")
		c.remove()
		events.expect("delete")
		if got, want := strings.Join(without(events.get(), "exec-", "exit e"), " "), "create start exit delete"; got != want {
			o.t.Errorf("events: %s, want %s", got, want)
		}
	}
	// A pod does, too.
	p := podByHand(o.t, sharedShim)
	p.run()
	m := p.member(sh("exit 3"))
	m.run(m.streams(nil))
	expectEqual(o.t, "exit code", m.wait(), 3)
	m.remove()
	p.sandbox.remove()
}

// without leaves out the words that begin in a certain way.
func without(words []string, prefixes ...string) (rest []string) {
next:
	for _, w := range words {
		for _, p := range prefixes {
			if strings.HasPrefix(w, p) {
				continue next
			}
		}
		rest = append(rest, w)
	}
	return rest
}

// The shim mounts the root file system itself.
func TestRootfsThatHangsHoldsUpNoOtherContainer(t *testing.T) {
	withShared(t, "containers", func(t *testing.T) {
		others := newOthers(t)
		c := newContainer(t, sharedShim, sh("exit 6"))
		dir := proctest.ServeDir(t)
		overlay := mount.Mount{Type: "overlay", Source: "overlay", Target: "tmp", Options: []string{"lowerdir=" + t.TempDir() + ":" + dir.Path}}
		dir.Hang()
		ran := start(t, "the create", func() (err error) {
			c.task, err = c.NewTask(c.ctx, cio.NullIO, containerd.WithRootFS([]mount.Mount{overlay}))
			if err != nil {
				return err
			}
			if c.exited, err = c.task.Wait(c.ctx); err != nil {
				return err
			}
			return c.task.Start(c.ctx)
		})
		hangsInShim := func() bool {
			return slices.ContainsFunc(dir.Callers(), func(tid int) bool { return isThread(others.shim, tid) })
		}
		whileStuck(t, hangsInShim, []*later{ran}, others.expectUndisturbed)
		dir.Resume()
		must(t, ran.wait())
		expectEqual(t, "exit code", exitCode(t, c.exited), 6)
		c.remove()
		others.expectUndisturbed()
	})
}

// waits lets a hook wait until the test lets it go on.
const waits = `: >"$dir/waits"; while ! [ -e "$dir/go" ]; do sleep 0.05; done`

// live is the whole life of a container, or of a sandbox.
func (c *container) live(ctx context.Context) error {
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return err
	}
	exited, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err == nil {
		err = task.Kill(ctx, unix.SIGKILL)
	}
	if err != nil {
		return err
	}
	status := <-exited
	if code, _, err := status.Result(); err != nil || code != 137 {
		return fmt.Errorf("exit code %d: %w", code, err)
	}
	_, err = task.Delete(ctx)
	return err
}

func TestHookThatHangsHoldsUpNoOtherContainer(t *testing.T) {
	for _, kind := range hookKinds {
		t.Run(kind, func(t *testing.T) {
			for _, what := range []string{"container", "sandbox"} {
				withShared(t, what, func(t *testing.T) {
					others := newOthers(t)
					l := newHookLog(t)
					cfg := config{args: []string{"sleep", "1000"}, spec: append(l.quiet(kind), setHooks(kind, l.hook(kind, waits)))}
					if what == "sandbox" {
						cfg.spec = append(cfg.spec, asSandbox)
					}
					c := newContainer(t, sharedShim, cfg)
					lived := start(t, "the "+what, func() error { return c.live(c.ctx) })
					stuck := func() bool { _, err := os.Stat(filepath.Join(l.dir, "waits")); return err == nil }
					whileStuck(t, stuck, []*later{lived}, others.expectUndisturbed)
					must(t, os.WriteFile(filepath.Join(l.dir, "go"), nil, 0o600))
					must(t, lived.wait())
					expectEqual(t, "hooks", l.order(), strings.Join(hookKinds, " "))
					others.expectUndisturbed()
				})
			}
		})
	}
}

// A hook may be a file that hangs when it is executed.
func TestHookThatCannotBeReadHoldsUpNoOtherContainer(t *testing.T) {
	for _, kind := range hookKinds {
		t.Run(kind, func(t *testing.T) {
			for _, what := range []string{"container", "sandbox"} {
				withShared(t, what, func(t *testing.T) {
					others := newOthers(t)
					l := newHookLog(t)
					file := proctest.ServeFile(t, hookScript)
					hook := l.hook(kind, "")
					hook.Path = file.Path
					cfg := config{args: []string{"sleep", "1000"}, spec: append(l.quiet(kind), setHooks(kind, hook))}
					if what == "sandbox" {
						cfg.spec = append(cfg.spec, asSandbox)
					}
					c := newContainer(t, sharedShim, cfg)
					file.Hang()
					lived := start(t, "the "+what, func() error { return c.live(c.ctx) })
					whileStuck(t, hangsBelow(t, others.shim, file), []*later{lived}, others.expectUndisturbed)
					file.Resume()
					must(t, lived.wait())
					expectEqual(t, "hooks", l.order(), strings.Join(hookKinds, " "))
					others.expectUndisturbed()
				})
			}
		})
	}
}

// The same is true of a logging program.
func TestLoggerThatCannotBeReadHoldsUpNoOtherContainer(t *testing.T) {
	withShared(t, "containers", func(t *testing.T) {
		others := newOthers(t)
		out := filepath.Join(t.TempDir(), "log")
		file := proctest.ServeFile(t, "#!/bin/sh\nexec 5>&-\nexec /bin/cat <&3 >"+out+"\n")
		c := newContainer(t, sharedShim, sh("echo logged; exit 6"))
		creator := cio.BinaryIO(file.Path, nil)
		file.Hang()
		ran := start(t, "the create", func() (err error) {
			c.task, err = c.NewTask(c.ctx, creator)
			if err != nil {
				return err
			}
			if c.exited, err = c.task.Wait(c.ctx); err != nil {
				return err
			}
			return c.task.Start(c.ctx)
		})
		whileStuck(t, hangsBelow(t, others.shim, file), []*later{ran}, others.expectUndisturbed)
		file.Resume()
		must(t, ran.wait())
		expectEqual(t, "exit code", exitCode(t, c.exited), 6)
		eventually(t, "the output is in the log", func() bool { text, err := os.ReadFile(out); return err == nil && string(text) == "logged\n" })
		c.remove()
		others.expectUndisturbed()
	})
}
