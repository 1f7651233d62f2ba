package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestLifeOfAContainer(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	ctx := proctest.Context(t)
	task := n.make(n.request("c", containerSpec(t, "c", "trap 'exit 7' TERM; while :; do sleep 0.01; done")))
	p := process(t, task, "")
	pid := p.Status().Pid
	if st := p.Status(); st.State != Created || st.Pid == 0 {
		t.Errorf("after create it is %+v", st)
	}
	started, err := p.Start(ctx)
	if err != nil || started != pid {
		t.Errorf("start: pid %d, error %v, want %d", started, err, pid)
	}
	_, err = p.Start(ctx)
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = task.Delete(ctx, "")
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	pids, err := task.Pids()
	if err != nil || !slices.Contains(pids, Info{Pid: pid}) {
		t.Errorf("pids are %v, error %v", pids, err)
	}
	if _, err := task.Stats(); err != nil {
		t.Error(err)
	}
	// The trap may not be set yet: then the signal ends it in another way.
	proctest.Eventually(t, "the shell has set the trap", func() bool { return catches(pid, unix.SIGTERM) })
	proctest.Must(t, task.Kill("", unix.SIGTERM, false))
	if status := exitOf(t, p); status != 7 {
		t.Errorf("exit status %d, want 7", status)
	}
	proctest.WantKind(t, task.Kill("", unix.SIGTERM, false), errdefs.IsNotFound, "not found")
	st, err := task.Delete(ctx, "")
	if err != nil || st.Exit.Status != 7 || st.Pid != pid {
		t.Errorf("delete: %+v, error %v", st, err)
	}
	_, err = task.Delete(ctx, "")
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	if got, want := n.events.all(), []string{"started c", "exited 7 c"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
	if got, want := n.told("calls"), "create c\nstart c\ndelete c"; got != want {
		t.Errorf("calls are %q, want %q", got, want)
	}
	n.knowsNothing()
}

// catches says whether a process has a handler for a signal (proc(5), SigCgt).
func catches(pid int, sig unix.Signal) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		var mask uint64
		if _, err := fmt.Sscanf(line, "SigCgt: %x", &mask); err == nil {
			return mask&(1<<(sig-1)) != 0
		}
	}
	return false
}

func TestExitStatusOfAContainer(t *testing.T) {
	n := newNode(t)
	for command, want := range map[string]uint32{
		"exit 0": 0, "exit 255": 255, "kill -9 $$": 137, "kill -HUP $$": 129,
	} {
		task := n.container("c", command)
		if status := exitOf(t, task.init); status != want {
			t.Errorf("%s: exit status %d, want %d", command, status, want)
		}
		// The exit is recorded before it is reported.
		st, err := readExit(task.Bundle)
		if err != nil || st.Exit.Status != want || st.Pid != task.init.Status().Pid {
			t.Errorf("%s: recorded is %+v, error %v", command, st, err)
		}
		_, err = task.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
	}
}

func TestStartIsToldBeforeTheEnd(t *testing.T) {
	n := newNode(t)
	n.tell("slow-start", "")
	for range 5 {
		task := n.container("c", "exit 3")
		exitOf(t, task.init)
		_, err := task.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
	}
	want := slices.Repeat([]string{"started c", "exited 3 c"}, 5)
	if got := n.events.all(); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestDeleteOfACreatedContainer(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	task := n.make(n.request("c", containerSpec(t, "c", forever)))
	st, err := task.Delete(proctest.Context(t), "")
	if err != nil || st.Exit.Status != 137 {
		t.Errorf("got %+v and error %v", st, err)
	}
	if status := exitOf(t, task.init); status != 137 {
		t.Errorf("exit status %d", status)
	}
	if got, want := n.events.all(), []string{"exited 137 c"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
	n.knowsNothing()
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name, file string
		want       string
	}{
		{"at once", "fail-create", "no more bananas"},
		{"late", "late-create", "no more bananas"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			n.tell(tc.file, "no more bananas")
			r := n.request("c", containerSpec(t, "c", forever))
			r.Stdio = stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t), Stderr: proctest.Mkfifo(t)}
			stdout, stderr := proctest.ReadFifo(t, r.Stdio.Stdout), proctest.ReadFifo(t, r.Stdio.Stderr)
			r.Rootfs = []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}
			task, err := n.Create(proctest.Context(t), r)
			if task != nil || err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "task c") {
				t.Errorf("got %v and error %v, want %q", task, err, tc.want)
			}
			stdout.All()
			stderr.All()
			n.knowsNothing()
			if mounted, err := mountinfo.Mounted(filepath.Join(r.Bundle, "rootfs")); mounted || err != nil {
				t.Errorf("the root file system is mounted: %t, error %v", mounted, err)
			}
			if left := cgroupsLeft(); len(left) > 0 {
				t.Errorf("cgroups are left: %v", left)
			}
			if got := n.events.all(); len(got) > 0 {
				t.Errorf("events are %q", got)
			}

			n.untell(tc.file)
			r.Stdio = stdio.Config{}
			n.make(r) // the id is free
		})
	}
}

func TestCreateWithoutARuntime(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Options.BinaryName = "/nonexistent/runtime"
	if _, err := n.Create(proctest.Context(t), r); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/runtime") {
		t.Errorf("got %v, want an error that names the runtime", err)
	}
}

func TestCreateThatIsGivenUp(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	n.tell("hang-create", "")
	ctx, cancel := context.WithCancel(proctest.Context(t))
	done := make(chan error)
	r := n.request("c", containerSpec(t, "c", forever))
	go func() {
		_, err := n.Create(ctx, r)
		done <- err
	}()
	proctest.Eventually(t, "the OCI runtime is called", func() bool { return n.told("calls") != "" })
	cancel()
	if err := <-done; err == nil {
		t.Error("create has not failed")
	}
	n.knowsNothing()
}

func TestStartThatFails(t *testing.T) {
	n := newNode(t)
	task := n.make(n.request("c", containerSpec(t, "c", "exit 4")))
	n.tell("fail-start", "no more bananas")
	_, err := task.init.Start(proctest.Context(t))
	if err == nil || !strings.Contains(err.Error(), "no more bananas") {
		t.Errorf("got %v", err)
	}
	if st := task.init.Status(); st.State != Created {
		t.Errorf("it is %s", st.State)
	}
	n.untell("fail-start")
	_, err = task.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	if status := exitOf(t, task.init); status != 4 {
		t.Errorf("exit status %d", status)
	}
}

func TestStartOfAContainerThatWasKilled(t *testing.T) {
	n := newNode(t)
	task := n.make(n.request("c", containerSpec(t, "c", forever)))
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	if status := exitOf(t, task.init); status != 137 {
		t.Errorf("exit status %d", status)
	}
	_, err := task.init.Start(proctest.Context(t))
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
}

func TestDeleteThatFailsCanBeTriedAgain(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	task := n.container("c", "exit 0")
	exitOf(t, task.init)
	n.tell("fail-delete", "no more bananas")
	for range 2 {
		_, err := task.Delete(proctest.Context(t), "")
		if err == nil || !strings.Contains(err.Error(), "no more bananas") {
			t.Errorf("got %v", err)
		}
	}
	n.untell("fail-delete")
	_, err := task.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	n.knowsNothing()
}

func TestRootFileSystem(t *testing.T) {
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", "exit 0"))
	r.Rootfs = []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}
	task := n.make(r)
	rootfs := filepath.Join(r.Bundle, "rootfs")
	if mounted, err := mountinfo.Mounted(rootfs); !mounted || err != nil {
		t.Errorf("it is mounted: %t, error %v", mounted, err)
	}
	_, err := task.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	if mounted, err := mountinfo.Mounted(rootfs); mounted || err != nil {
		t.Errorf("it is mounted: %t, error %v", mounted, err)
	}

	r = n.request("d", containerSpec(t, "d", "exit 0"))
	r.Rootfs = []mount.Mount{{Type: "nosuchfs", Source: "none"}}
	if _, err := n.Create(proctest.Context(t), r); err == nil {
		t.Error("an unknown file system was mounted")
	}
	n.knowsNothing()
}

func TestContainersWithSimilarIDs(t *testing.T) {
	n := newNode(t)
	n.make(n.request("web-1", containerSpec(t, "web-1", forever)))
	n.make(n.request("web", containerSpec(t, "web", forever)))
}

func TestContainerThatTheRuntimeHas(t *testing.T) {
	n := newNode(t)
	first := n.make(n.request("c", containerSpec(t, "c", forever)))
	_, err := n.Create(proctest.Context(t), n.request("c", containerSpec(t, "c", forever)))
	proctest.WantKind(t, err, errdefs.IsAlreadyExists, "already exists")
	if st := first.init.Status(); st.State != Created || proctest.ProcessState(st.Pid) == "" {
		t.Error("the first one is gone")
	}
}

func TestProcessesThatTheInitLeaves(t *testing.T) {
	n := newNode(t)
	pidFile := filepath.Join(t.TempDir(), "pid")
	task := n.container("c", "sleep 100000 & echo $! >"+pidFile+"; exit 0")
	exitOf(t, task.init)
	text, err := os.ReadFile(pidFile)
	proctest.Must(t, err)
	var pid int
	_, err = fmt.Sscan(string(text), &pid)
	proctest.Must(t, err)
	proctest.Eventually(t, "it is killed and reaped", func() bool { return proctest.ProcessState(pid) == "" })
}

func TestKillOfAll(t *testing.T) {
	n := newNode(t)
	ready := filepath.Join(t.TempDir(), "ready")
	task := n.container("c", "sleep 100000 & trap 'exit 9' USR1; : >"+ready+"; wait; wait")
	proctest.Eventually(t, "it is ready", func() bool { _, err := os.Stat(ready); return err == nil })
	pids, err := task.Pids()
	proctest.Must(t, err)
	if len(pids) != 2 {
		t.Errorf("pids are %v", pids)
	}
	proctest.Must(t, task.Kill("", unix.SIGUSR1, true))
	if status := exitOf(t, task.init); status != 9 {
		t.Errorf("exit status %d", status)
	}
	for _, p := range pids {
		proctest.Eventually(t, "it is reaped", func() bool { return proctest.ProcessState(p.Pid) == "" })
	}
}

func TestPause(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	task := n.container("c", forever)
	proctest.WantKind(t, task.Resume(ctx), errdefs.IsFailedPrecondition, "a failed precondition")
	proctest.Must(t, task.Pause(ctx))
	if frozen, err := task.cgroup.Frozen(); !frozen || err != nil {
		t.Errorf("frozen: %t, error %v", frozen, err)
	}
	proctest.WantKind(t, task.Exec("e", stdio.Config{}, execSpec(t, "exit 0")), errdefs.IsFailedPrecondition, "a failed precondition")
	proctest.Must(t, task.Resume(ctx))
	if frozen, err := task.cgroup.Frozen(); frozen || err != nil {
		t.Errorf("frozen: %t, error %v", frozen, err)
	}
	proctest.Must(t, task.Pause(ctx))
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	if status := exitOf(t, task.init); status != 137 {
		t.Errorf("exit status %d", status)
	}
	proctest.WantKind(t, task.Pause(ctx), errdefs.IsFailedPrecondition, "a failed precondition")
}

func TestUpdateAndCheckpoint(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	task := n.container("c", forever)
	limit := int64(12345678)
	proctest.Must(t, task.Update(ctx, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}))
	if got := n.told("resources"); !strings.Contains(got, "12345678") {
		t.Errorf("the OCI runtime was told %s", got)
	}
	images := filepath.Join(t.TempDir(), "of", "c", "images")
	proctest.Must(t, task.Checkpoint(ctx, oci.CheckpointOptions{Path: images}))
	if _, err := os.Stat(images); err != nil {
		t.Error(err)
	}
	n.tell("fail-update", "no more bananas")
	n.tell("fail-checkpoint", "no more oranges")
	if err := task.Update(ctx, &specs.LinuxResources{}); err == nil || !strings.Contains(err.Error(), "bananas") {
		t.Errorf("got %v", err)
	}
	if err := task.Checkpoint(ctx, oci.CheckpointOptions{Path: images}); err == nil || !strings.Contains(err.Error(), "oranges") {
		t.Errorf("got %v", err)
	}
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	proctest.WantKind(t, task.Update(ctx, &specs.LinuxResources{}), errdefs.IsFailedPrecondition, "a failed precondition")
	proctest.WantKind(t, task.Checkpoint(ctx, oci.CheckpointOptions{}), errdefs.IsFailedPrecondition, "a failed precondition")
}

func TestRestoredContainer(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	ctx := proctest.Context(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Checkpoint = t.TempDir()
	task := n.make(r)
	if st := task.init.Status(); st != (Status{}) {
		t.Errorf("after create it is %+v", st)
	}
	proctest.WantKind(t, task.Kill("", unix.SIGKILL, false), errdefs.IsFailedPrecondition, "a failed precondition")

	n.tell("fail-restore", "no more bananas")
	if _, err := task.init.Start(ctx); err == nil || !strings.Contains(err.Error(), "bananas") {
		t.Errorf("got %v", err)
	}
	n.untell("fail-restore")

	// All methods may be called in any state.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, ask := range []func(){
		func() { _, _ = task.Stats() },
		func() { _, _ = task.Pids() },
		func() { _ = task.Kill("", unix.SIGCONT, true) },
		func() { task.init.CloseStdin() },
		func() { _ = task.Pause(ctx); _ = task.Resume(ctx) },
	} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					ask()
				}
			}
		})
	}
	pid, err := task.init.Start(ctx)
	close(stop)
	wg.Wait()
	if err != nil || pid == 0 {
		t.Fatalf("start: pid %d, error %v", pid, err)
	}
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	if status := exitOf(t, task.init); status != 137 {
		t.Errorf("exit status %d", status)
	}
}

// An OCI runtime may fail after it has created the container.
func TestRestoreThatFailsLateLeavesNothing(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Checkpoint = t.TempDir()
	task := n.make(r)
	n.tell("late-restore", "no more bananas")
	if _, err := task.init.Start(proctest.Context(t)); err == nil || !strings.Contains(err.Error(), "bananas") {
		t.Errorf("got %v", err)
	}
	_, err := task.Delete(proctest.Context(t), "")
	if err != nil {
		t.Error(err)
		_, _ = cleanUp(t, r.Bundle, "c")
	}
	n.knowsNothing()
}

func TestDeleteOfAContainerThatWasNeverRestored(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Checkpoint = t.TempDir()
	task := n.make(r)
	done := make(chan error, 1)
	go func() {
		_, err := task.init.Wait(proctest.Context(t))
		done <- err
	}()
	_, err := task.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	proctest.Must(t, <-done)
}

func TestWaitEndsWithItsContext(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := task.init.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestTasksAtTheSameTime(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	var wg sync.WaitGroup
	for i := range 8 {
		id := fmt.Sprintf("c%d", i)
		r := n.request(id, containerSpec(t, id, fmt.Sprintf("exit %d", i)))
		wg.Go(func() {
			ctx := proctest.Context(t)
			task, err := n.Create(ctx, r)
			if err != nil {
				t.Error(err)
				return
			}
			task.Watch()
			if _, err := task.init.Start(ctx); err != nil {
				t.Error(err)
			}
			exit, err := task.init.Wait(ctx)
			if err != nil || exit.Status != uint32(i) {
				t.Errorf("%s: exit %+v, error %v", id, exit, err)
			}
			if _, err := task.Delete(ctx, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.knowsNothing()
}

func TestVerbsAtTheSameTime(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	task := n.make(n.request("c", containerSpec(t, "c", forever)))
	var wg sync.WaitGroup
	var mu sync.Mutex
	started := 0
	for range 4 {
		wg.Go(func() {
			if _, err := task.init.Start(ctx); err == nil {
				mu.Lock()
				started++
				mu.Unlock()
			} else if !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
		})
		wg.Go(func() {
			_ = task.Pause(ctx)
			_ = task.Resume(ctx)
			_ = task.Kill("", unix.SIGCONT, true)
			_, _ = task.Pids()
			_, _ = task.Stats()
			task.init.Status()
		})
	}
	wg.Wait()
	if started != 1 {
		t.Errorf("it was started %d times", started)
	}
	deleted := 0
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	for range 4 {
		wg.Go(func() {
			if _, err := task.Delete(ctx, ""); err == nil {
				mu.Lock()
				deleted++
				mu.Unlock()
			} else if !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if deleted != 1 {
		t.Errorf("it was deleted %d times", deleted)
	}
}

// Create changes the spec to lead to the pod's namespaces. After the container has been
// deleted, the same bundle must serve for another create, in the next pod.
func TestSpecIsRestoredForAnotherCreate(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	r := n.request("member", member(t, specs.NetworkNamespace, ""))
	before, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
	proctest.Must(t, err)
	for _, fails := range []bool{true, false} {
		pod := n.pod(sandboxSpec())
		if fails {
			n.tell("fail-create", "no")
			if c := n.await(n.creating(r)); c.err == nil {
				t.Error("create has not failed")
			}
			n.untell("fail-create")
		} else {
			task := n.make(r)
			if got, want := n.told("net"), fmt.Sprint(proctest.Inode(t, proctest.ThreadNS(podTID, "net"))); got != want {
				t.Errorf("the container is in network namespace %s, want the pod's %s", got, want)
			}
			_, err = task.Delete(ctx, "")
			proctest.Must(t, err)
		}
		after, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
		proctest.Must(t, err)
		if string(after) != string(before) {
			t.Errorf("the spec is left as %s, it was %s", after, before)
		}
		proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
		exitOf(t, pod.init)
		_, err = pod.Delete(ctx, "")
		proctest.Must(t, err)
	}
}

// A container is removed completely even if the OCI runtime does not know it any more.
func TestContainerThatTheRuntimeHasForgotten(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	dirs := cgroupsLeft()
	if len(dirs) == 0 {
		t.Fatal("the container has no cgroup")
	}
	proctest.Must(t, os.RemoveAll(filepath.Join(n.options.Root, "test", "c")))
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	_, err := task.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFeaturesOfTheRuntime(t *testing.T) {
	n := newNode(t)
	defer reaper.Hold()()
	f, err := oci.Features(proctest.Context(t), n.options.BinaryName)
	if err != nil || f.OCIVersionMin != "1.0.0" {
		t.Errorf("got %+v and error %v", f, err)
	}
	if _, err := oci.Features(proctest.Context(t), "/nonexistent/runtime"); err == nil || !strings.Contains(err.Error(), "/nonexistent/runtime") {
		t.Errorf("got %v, want an error that names the runtime", err)
	}
}
