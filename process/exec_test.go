package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// execute adds a process to a container and starts it.
func execute(t *testing.T, task *Task, id, command string, sio stdio.Config) *Process {
	t.Helper()
	proctest.Must(t, task.Exec(id, sio, execSpec(t, command)))
	p := process(t, task, id)
	_, err := p.Start(proctest.Context(t))
	proctest.Must(t, err)
	return p
}

func TestLifeOfAnExec(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	ctx := proctest.Context(t)
	task := n.container("c", forever)
	proctest.Must(t, task.Exec("e", stdio.Config{}, execSpec(t, "exec sleep 100000")))
	p := process(t, task, "e")
	if st := p.Status(); st != (Status{}) || p.ID() != "e" {
		t.Errorf("it is %+v", st)
	}
	proctest.WantKind(t, task.Kill("e", unix.SIGKILL, false), errdefs.IsFailedPrecondition, "a failed precondition")
	pid, err := p.Start(ctx)
	if err != nil || pid == 0 || p.Status() != (Status{State: Running, Pid: pid}) {
		t.Errorf("start: pid %d, error %v, %+v", pid, err, p.Status())
	}
	if pids, err := task.Pids(); err != nil || !slices.Contains(pids, Info{Pid: pid, ExecID: "e"}) || len(pids) != 2 {
		t.Errorf("pids are %v, error %v", pids, err)
	}
	_, err = task.Delete(ctx, "e")
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	proctest.Must(t, task.Kill("e", unix.SIGTERM, false))
	if status := exitOf(t, p); status != 143 {
		t.Errorf("exit status %d", status)
	}
	proctest.WantKind(t, task.Kill("e", unix.SIGTERM, false), errdefs.IsNotFound, "not found")
	st, err := task.Delete(ctx, "e")
	if err != nil || st.Exit.Status != 143 || st.Pid != pid {
		t.Errorf("delete: %+v, error %v", st, err)
	}
	_, err = task.Process("e")
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = task.Delete(ctx, "e")
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	if task.init.Status().State != Running {
		t.Error("the init does not run any more")
	}
	left, err := filepath.Glob(filepath.Join(task.Bundle, "exec-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
	execute(t, task, "e", "exit 0", stdio.Config{}) // the id is free
}

func TestIDsOfExecs(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	for _, id := range []string{"", "/", "a/b", "../x", "..", "a/../b", "/a"} {
		proctest.WantKind(t, task.Exec(id, stdio.Config{}, execSpec(t, "exit 0")), errdefs.IsInvalidArgument, "an invalid argument for "+id)
	}
	proctest.Must(t, task.Exec("a", stdio.Config{}, execSpec(t, "exit 0")))
	proctest.WantKind(t, task.Exec("a", stdio.Config{}, execSpec(t, "exit 0")), errdefs.IsAlreadyExists, "already exists")
	proctest.Must(t, task.Exec("a.b", stdio.Config{}, execSpec(t, "exit 0")))
	proctest.Must(t, task.Exec("..x", stdio.Config{}, execSpec(t, "exit 0")))
}

// While an exec starts, others come and go whose ids could be the names of its files.
func TestFilesOfExecsAreTheirOwn(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	proctest.Must(t, task.Exec("x.log", stdio.Config{}, execSpec(t, "exit 4")))
	x := process(t, task, "x.log")
	arrived := n.gate("exec")
	done := make(chan error, 1)
	go func() {
		_, err := x.Start(proctest.Context(t))
		done <- err
	}()
	open := arrived()
	long := strings.Repeat("l", 255) // NAME_MAX
	for _, id := range []string{"x", "x.pid", "x.json", "x.log.json", ".x", long} {
		if status := exitOf(t, execute(t, task, id, "exit 3", stdio.Config{})); status != 3 {
			t.Errorf("exec %s: exit status %d", id, status)
		}
	}
	open()
	proctest.Must(t, <-done)
	if status := exitOf(t, x); status != 4 {
		t.Errorf("exit status %d", status)
	}
	if left, err := filepath.Glob(filepath.Join(task.Bundle, "exec-*")); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

func TestExecThatEndsBeforeStartReturns(t *testing.T) {
	n := newNode(t)
	n.tell("slow-exec", "")
	task := n.container("c", forever)
	p := execute(t, task, "e", "exit 5", stdio.Config{})
	if status := exitOf(t, p); status != 5 {
		t.Errorf("exit status %d", status)
	}
	if got, want := n.events.all(), []string{"started c", "started c e", "exited 5 c e"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

// The OCI runtime brings an exec's process into a container that shares a PID namespace after the
// container's init has ended and its leftovers have been killed.
func TestExecThatComesAfterTheEndOfItsContainer(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	path := filepath.Join(n.control, "gate-enter")
	proctest.Must(t, unix.Mkfifo(path, 0o600))
	proctest.Must(t, task.Exec("e", Stdio{}, execSpec(t, forever)))
	started := make(chan struct{})
	go func() {
		defer close(started)
		_, _ = process(t, task, "e").Start(proctest.Context(t)) // it may be given up
	}()
	gate, err := os.OpenFile(path, os.O_WRONLY, 0) // when the OCI runtime is there
	proctest.Must(t, err)
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	proctest.Eventually(t, "the leftovers are killed", func() bool { return task.hasEnded() && !n.hasSharers() })
	gate.Close()
	<-started
	exitOf(t, task.init)
	if pids, err := task.Pids(); err != nil || len(pids) != 1 || pids[0].Pid != task.init.Status().Pid {
		t.Errorf("in the container are %v, %v", pids, err)
	}
}

func TestExecThatFails(t *testing.T) {
	for _, file := range []string{"fail-exec", "late-exec"} {
		t.Run(file, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			task := n.container("c", forever)
			n.tell(file, "no more bananas")
			sio := stdio.Config{Stdout: proctest.Mkfifo(t)}
			stdout := proctest.ReadFifo(t, sio.Stdout)
			proctest.Must(t, task.Exec("e", sio, execSpec(t, "exit 6")))
			p := process(t, task, "e")
			if _, err := p.Start(proctest.Context(t)); err == nil || !strings.Contains(err.Error(), "bananas") {
				t.Errorf("got %v", err)
			}
			stdout.All()
			if st := p.Status(); st.State != Created || st.Pid != 0 {
				t.Errorf("it is %+v", st)
			}
			left, err := filepath.Glob(filepath.Join(task.Bundle, "exec-*"))
			if err != nil || len(left) > 0 {
				t.Errorf("files are left: %v", left)
			}
			if _, err := task.Delete(proctest.Context(t), "e"); err != nil {
				t.Error(err)
			}
			if got, want := n.events.all(), []string{"started c"}; !slices.Equal(got, want) {
				t.Errorf("events are %q, want %q", got, want)
			}
			// The init's exit does not wait for execs that never started.
			proctest.Must(t, task.Kill("", unix.SIGKILL, false))
			exitOf(t, task.init)
		})
	}
}

func TestExecAfterTheEndOfTheInit(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	proctest.Must(t, task.Exec("early", stdio.Config{}, execSpec(t, "exit 0")))
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	proctest.WantKind(t, task.Exec("late", stdio.Config{}, execSpec(t, "exit 0")), errdefs.IsFailedPrecondition, "a failed precondition")
	_, err := process(t, task, "early").Start(proctest.Context(t))
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	if calls := n.told("calls"); strings.Contains(calls, "exec") {
		t.Errorf("calls are %q", calls)
	}
	_, err = task.Delete(proctest.Context(t), "early")
	proctest.Must(t, err)
}

func TestEndsOfExecsAreToldBeforeTheInits(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	for i := range 5 {
		execute(t, task, fmt.Sprintf("e%d", i), forever, stdio.Config{})
	}
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	events := n.events.all()
	if len(events) != 12 || events[11] != "exited 137 c" {
		t.Errorf("events are %q", events)
	}
	for i := range 5 {
		if want := fmt.Sprintf("exited 137 c e%d", i); !slices.Contains(events, want) {
			t.Errorf("events are %q, want %q", events, want)
		}
	}
}

// The exit of an exec that is being started when the init ends is reported, too, and before the init's.
func TestEndOfTheInitWhileAnExecStarts(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	proctest.Must(t, task.Exec("e", stdio.Config{}, execSpec(t, "exit 0")))
	arrived := n.gate("exec")
	done := make(chan error)
	go func() {
		_, err := process(t, task, "e").Start(proctest.Context(t))
		done <- err
	}()
	open := arrived()
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	proctest.Eventually(t, "the init is reaped", func() bool { return proctest.ProcessState(task.init.Status().Pid) == "" })
	if st := task.init.Status(); st.State != Running {
		t.Errorf("the init is %s", st.State)
	}
	open()
	if err := <-done; err == nil {
		t.Error("the exec was started")
	}
	exitOf(t, task.init)
	if got, want := n.events.all(), []string{"started c", "exited 137 c"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

// Neither an OCI runtime that hangs nor a client that never reads may delay the container's exit
// for ever.
func TestExecThatHangsWhenItsContainerEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(*node) stdio.Config
		err     string
	}{
		"in the OCI runtime": {func(n *node) stdio.Config { n.tell("hang-exec", ""); return stdio.Config{} }, "runtime.sh was killed"},
		"for a reader":       {func(*node) stdio.Config { return stdio.Config{Stdout: proctest.Mkfifo(t)} }, "nobody reads"},
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			task := n.container("c", forever)
			sio := tc.prepare(n)
			proctest.Must(t, task.Exec("e", sio, execSpec(t, "exit 0")))
			p := process(t, task, "e")
			task.body.(*container).patience = 50 * time.Millisecond
			done := make(chan error, 1)
			go func() {
				_, err := p.Start(proctest.Context(t))
				done <- err
			}()
			proctest.Eventually(t, "it is being started", func() bool {
				left, err := filepath.Glob(filepath.Join(task.Bundle, "exec-*"))
				return err == nil && len(left) == 1 && (sio.Stdout != "" || strings.Contains(n.told("calls"), "exec c"))
			})
			proctest.Must(t, task.Kill("", unix.SIGKILL, false))
			exitOf(t, task.init)
			err := <-done
			proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
			if err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got error %v", err)
			}
			if got, want := n.events.all(), []string{"started c", "exited 137 c"}; !slices.Equal(got, want) {
				t.Errorf("events are %q, want %q", got, want)
			}
		})
	}
}

func TestUpdateThatHangsWhenItsContainerEnds(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	task := n.container("c", forever)
	task.body.(*container).patience = 50 * time.Millisecond
	n.tell("hang-update", "")
	done := make(chan error, 1)
	go func() { done <- task.Update(proctest.Context(t), &specs.LinuxResources{}) }()
	proctest.Eventually(t, "the OCI runtime is at work", func() bool { return strings.Contains(n.told("calls"), "update c") })
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	proctest.WantKind(t, <-done, errdefs.IsFailedPrecondition, "a failed precondition")
}

func TestManyExecsAtTheSameTime(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	task := n.container("c", forever)
	const count = 100
	var wg sync.WaitGroup
	for i := range count {
		id := fmt.Sprintf("e%d", i)
		spec := execSpec(t, fmt.Sprintf("exit %d", i))
		wg.Go(func() {
			if err := task.Exec(id, stdio.Config{}, spec); err != nil {
				t.Error(err)
				return
			}
			p, err := task.Process(id)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := p.Start(proctest.Context(t)); err != nil {
				t.Error(err)
				return
			}
			exit, err := p.Wait(proctest.Context(t))
			if err != nil || exit.Status != uint32(i) {
				t.Errorf("%s: exit %+v, error %v", id, exit, err)
			}
			if _, err := task.Delete(proctest.Context(t), id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	events := n.events.all()
	if len(events) != 1+2*count {
		t.Errorf("%d events", len(events))
	}
	for i := range count {
		started := slices.Index(events, fmt.Sprintf("started c e%d", i))
		exited := slices.Index(events, fmt.Sprintf("exited %d c e%d", i, i))
		if started < 0 || exited < started {
			t.Errorf("e%d: started is event %d, exited %d", i, started, exited)
		}
	}
	if left, err := filepath.Glob(filepath.Join(task.Bundle, "exec-*")); err != nil || len(left) > 0 {
		t.Errorf("files are left: %v", left)
	}
}

func TestDuplicateExecsAtTheSameTime(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	errs := make(chan error)
	for range 8 {
		spec := execSpec(t, "exit 0")
		go func() { errs <- task.Exec("e", stdio.Config{}, spec) }()
	}
	added := 0
	for range 8 {
		if err := <-errs; err == nil {
			added++
		} else if !errdefs.IsAlreadyExists(err) {
			t.Error(err)
		}
	}
	if added != 1 {
		t.Errorf("it was added %d times", added)
	}
}

// Clients need not delete the execs of a task that they delete.
func TestDeleteOfATaskWithExecs(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	task := n.container("c", forever)
	sio := stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t), Stderr: proctest.Mkfifo(t)}
	stdout, stderr := proctest.ReadFifo(t, sio.Stdout), proctest.ReadFifo(t, sio.Stderr)
	execute(t, task, "e", "echo out; echo err >&2; exec cat", sio)
	proctest.Must(t, task.Exec("never-started", stdio.Config{}, execSpec(t, "exit 0")))
	neverStarted := process(t, task, "never-started")
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	_, err := task.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	exitOf(t, neverStarted) // calls of Wait return
	_, err = neverStarted.Start(proctest.Context(t))
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = neverStarted.Delete(proctest.Context(t))
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	if out, err := stdout.All(), stderr.All(); (out != "out\n" && out != "") || (err != "err\n" && err != "") {
		t.Errorf("output is %q and %q", out, err)
	}
}

func TestSpecOfAnExecReachesTheRuntime(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	file := filepath.Join(t.TempDir(), "ran")
	p := execute(t, task, "e", "touch "+file, stdio.Config{})
	exitOf(t, p)
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}
