package task

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/cgroups/v3/cgroup1/stats"
	statsv2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	eventsapi "github.com/containerd/containerd/api/events"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestLifeOfAContainer(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	r := n.containerRequest("c", forever)
	r.Rootfs = []*types.Mount{{Type: "tmpfs", Source: "tmpfs"}}
	r.Terminal = false
	pid := n.make(r)
	state := result[*taskapi.StateResponse](t)(n.State(ctx, &taskapi.StateRequest{ID: "c"}))
	if state.ID != "c" || state.Bundle != r.Bundle || state.Pid != pid || state.Status != tasktypes.Status_CREATED || state.ExitedAt != nil {
		t.Errorf("state is %v", state)
	}
	if start := result[*taskapi.StartResponse](t)(n.Start(ctx, &taskapi.StartRequest{ID: "c"})); start.Pid != pid {
		t.Errorf("start: %v", start)
	}
	_, err := n.Pause(ctx, &taskapi.PauseRequest{ID: "c"})
	proctest.Must(t, err)
	state = result[*taskapi.StateResponse](t)(n.State(ctx, &taskapi.StateRequest{ID: "c"}))
	if state.Status != tasktypes.Status_PAUSED {
		t.Errorf("state is %v", state)
	}
	_, err = n.Resume(ctx, &taskapi.ResumeRequest{ID: "c"})
	proctest.Must(t, err)

	_, err = n.Exec(ctx, n.execRequest("c", "e", forever))
	proctest.Must(t, err)
	exec := result[*taskapi.StartResponse](t)(n.Start(ctx, &taskapi.StartRequest{ID: "c", ExecID: "e"}))
	state = result[*taskapi.StateResponse](t)(n.State(ctx, &taskapi.StateRequest{ID: "c", ExecID: "e"}))
	if state.ID != "e" || state.Pid != exec.Pid || state.Status != tasktypes.Status_RUNNING {
		t.Errorf("state of the exec is %v", state)
	}
	pids := result[*taskapi.PidsResponse](t)(n.Pids(ctx, &taskapi.PidsRequest{ID: "c"}))
	if len(pids.Processes) != 2 {
		t.Errorf("pids are %v", pids)
	}
	for _, p := range pids.Processes {
		switch p.Pid {
		case pid:
			if p.Info != nil {
				t.Errorf("the init has info %v", p.Info)
			}
		case exec.Pid:
			var details options.ProcessDetails
			proctest.Must(t, typeurl.UnmarshalTo(p.Info, &details))
			if details.ExecID != "e" {
				t.Errorf("the exec has info %v", &details)
			}
		default:
			t.Errorf("pid %d is unknown", p.Pid)
		}
	}

	_, err = n.Kill(ctx, &taskapi.KillRequest{ID: "c", ExecID: "e", Signal: 15})
	proctest.Must(t, err)
	wait := result[*taskapi.WaitResponse](t)(n.Wait(ctx, &taskapi.WaitRequest{ID: "c", ExecID: "e"}))
	if wait.ExitStatus != 143 || wait.ExitedAt == nil {
		t.Errorf("wait: %v", wait)
	}
	del := result[*taskapi.DeleteResponse](t)(n.Delete(ctx, &taskapi.DeleteRequest{ID: "c", ExecID: "e"}))
	if del.ExitStatus != 143 || del.Pid != exec.Pid || !del.ExitedAt.AsTime().Equal(wait.ExitedAt.AsTime()) {
		t.Errorf("delete: %v", del)
	}
	n.wantRemoved()
	_, err = n.Kill(ctx, &taskapi.KillRequest{ID: "c", Signal: 9})
	proctest.Must(t, err)
	wait = result[*taskapi.WaitResponse](t)(n.Wait(ctx, &taskapi.WaitRequest{ID: "c"}))
	if wait.ExitStatus != 137 {
		t.Errorf("wait: %v", wait)
	}
	state = result[*taskapi.StateResponse](t)(n.State(ctx, &taskapi.StateRequest{ID: "c"}))
	if state.Status != tasktypes.Status_STOPPED || state.ExitStatus != 137 || state.ExitedAt == nil {
		t.Errorf("state is %v", state)
	}
	del = result[*taskapi.DeleteResponse](t)(n.Delete(ctx, &taskapi.DeleteRequest{ID: "c"}))
	if del.ExitStatus != 137 || del.Pid != pid || del.ExitedAt == nil {
		t.Errorf("delete: %v", del)
	}
	n.wantRemoved(fmt.Sprintf("%s %d 137", r.Bundle, pid))

	want := []string{
		"/tasks/create c",
		"/tasks/start c",
		"/tasks/paused c",
		"/tasks/resumed c",
		"/tasks/exec-added c e",
		"/tasks/exec-started c e",
		"/tasks/exit c e 143",
		"/tasks/exit c c 137",
		"/tasks/delete c",
	}
	if got := n.events.all(); !slices.Equal(got, want) {
		t.Fatalf("events are %q, want %q", got, want)
	}
	created := event[*eventsapi.TaskCreate](t, n.events, 0)
	if created.Pid != pid || created.Bundle != r.Bundle || len(created.Rootfs) != 1 || created.IO == nil {
		t.Errorf("create is %v", created)
	}
	if e := event[*eventsapi.TaskStart](t, n.events, 1); e.Pid != pid {
		t.Errorf("start is %v", e)
	}
	if e := event[*eventsapi.TaskExecStarted](t, n.events, 5); e.Pid != exec.Pid {
		t.Errorf("exec-started is %v", e)
	}
	if e := event[*eventsapi.TaskExit](t, n.events, 6); e.Pid != exec.Pid || e.ExitedAt == nil {
		t.Errorf("exit is %v", e)
	}
	if e := event[*eventsapi.TaskDelete](t, n.events, 8); e.Pid != pid || e.ExitStatus != 137 || e.ExitedAt == nil {
		t.Errorf("delete is %v", e)
	}
}

func TestLifeOfASandbox(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	if pid := n.make(n.sandboxRequest("pod")); pid != threadID {
		t.Errorf("pid is %d, want %d", pid, threadID)
	}
	_, err := n.Create(ctx, n.sandboxRequest("second"))
	wantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	start := result[*taskapi.StartResponse](t)(n.Start(ctx, &taskapi.StartRequest{ID: "pod"}))
	if start.Pid != threadID {
		t.Errorf("start: %v", start)
	}
	pids := result[*taskapi.PidsResponse](t)(n.Pids(ctx, &taskapi.PidsRequest{ID: "pod"}))
	if len(pids.Processes) != 1 || pids.Processes[0].Pid != threadID {
		t.Errorf("pids are %v", pids)
	}
	connect := result[*taskapi.ConnectResponse](t)(n.Connect(ctx, &taskapi.ConnectRequest{ID: "pod"}))
	if connect.ShimPid != uint32(os.Getpid()) || connect.TaskPid != threadID {
		t.Errorf("connect: %v", connect)
	}
	metrics, err := typeurl.UnmarshalAny(result[*taskapi.StatsResponse](t)(n.Stats(ctx, &taskapi.StatsRequest{ID: "pod"})).Stats)
	proctest.Must(t, err)
	switch metrics.(type) {
	case *stats.Metrics, *statsv2.Metrics:
	default:
		t.Errorf("metrics are a %T", metrics)
	}
	resources := &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(`{"cpu":{"shares":512}}`)}
	_, err = n.Update(ctx, &taskapi.UpdateTaskRequest{ID: "pod", Resources: resources})
	proctest.Must(t, err)

	_, err = n.Exec(ctx, n.execRequest("pod", "e", "exit 0"))
	wantKind(t, err, errdefs.IsNotImplemented, "not implemented")
	_, err = n.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: "pod"})
	wantKind(t, err, errdefs.IsNotImplemented, "not implemented")
	_, err = n.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: "pod", Width: 80, Height: 25})
	proctest.Must(t, err)
	_, err = n.CloseIO(ctx, &taskapi.CloseIORequest{ID: "pod", Stdin: true})
	proctest.Must(t, err)

	_, err = n.Kill(ctx, &taskapi.KillRequest{ID: "pod", Signal: 15})
	proctest.Must(t, err)
	if wait := result[*taskapi.WaitResponse](t)(n.Wait(ctx, &taskapi.WaitRequest{ID: "pod"})); wait.ExitStatus != 0 || wait.ExitedAt == nil {
		t.Errorf("wait: %v", wait)
	}
	_, err = n.Kill(ctx, &taskapi.KillRequest{ID: "pod", Signal: 9})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = n.Delete(ctx, &taskapi.DeleteRequest{ID: "pod"})
	proctest.Must(t, err)
	want := []string{"/tasks/create pod", "/tasks/start pod", "/tasks/exit pod pod 0", "/tasks/delete pod"}
	if got := n.events.all(); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
	n.make(n.sandboxRequest("second"))
}

// The messages of both generations are the same on the wire.
func TestBothGenerationsOfTheService(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	r := n.containerRequest("c", "exit 3")
	created, err := n.v2.Create(ctx, &taskv2.CreateTaskRequest{ID: "c", Bundle: r.Bundle, Options: r.Options})
	proctest.Must(t, err)
	t.Cleanup(func() { n.remove("c") })
	state := result[*taskapi.StateResponse](t)(n.State(ctx, &taskapi.StateRequest{ID: "c"}))
	if state.Pid != created.Pid {
		t.Errorf("v3's state is %v, v2 created pid %d", state, created.Pid)
	}
	_, err = n.v2.Start(ctx, &taskv2.StartRequest{ID: "c"})
	proctest.Must(t, err)
	wait, err := n.v2.Wait(ctx, &taskv2.WaitRequest{ID: "c"})
	if err != nil || wait.ExitStatus != 3 {
		t.Errorf("wait: %v, error %v", wait, err)
	}
	v2state, err := n.v2.State(ctx, &taskv2.StateRequest{ID: "c"})
	if err != nil || v2state.Bundle != r.Bundle || v2state.Status != tasktypes.Status_STOPPED || v2state.ExitStatus != 3 {
		t.Errorf("state: %v, error %v", v2state, err)
	}
	_, err = n.v2.State(ctx, &taskv2.StateRequest{ID: "unknown"})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	deleted, err := n.v2.Delete(ctx, &taskv2.DeleteRequest{ID: "c"})
	if err != nil || deleted.ExitStatus != 3 {
		t.Errorf("delete: %v, error %v", deleted, err)
	}
}

func TestUnknownTasksAndProcesses(t *testing.T) {
	n := newNode(t)
	n.container(forever)
	ctx := proctest.Context(t)
	processSpec := n.execRequest("x", "e", "exit 0").Spec
	for _, ids := range []struct{ id, exec string }{{"x", ""}, {"x", "e"}, {"c", "e"}} {
		id, exec := ids.id, ids.exec
		calls := map[string]func() error{
			"state":  func() error { _, err := n.State(ctx, &taskapi.StateRequest{ID: id, ExecID: exec}); return err },
			"start":  func() error { _, err := n.Start(ctx, &taskapi.StartRequest{ID: id, ExecID: exec}); return err },
			"delete": func() error { _, err := n.Delete(ctx, &taskapi.DeleteRequest{ID: id, ExecID: exec}); return err },
			"kill": func() error {
				_, err := n.Kill(ctx, &taskapi.KillRequest{ID: id, ExecID: exec, Signal: 9})
				return err
			},
			"wait":   func() error { _, err := n.Wait(ctx, &taskapi.WaitRequest{ID: id, ExecID: exec}); return err },
			"resize": func() error { _, err := n.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: id, ExecID: exec}); return err },
			"close":  func() error { _, err := n.CloseIO(ctx, &taskapi.CloseIORequest{ID: id, ExecID: exec}); return err },
		}
		if exec == "" {
			calls["pids"] = func() error { _, err := n.Pids(ctx, &taskapi.PidsRequest{ID: id}); return err }
			calls["pause"] = func() error { _, err := n.Pause(ctx, &taskapi.PauseRequest{ID: id}); return err }
			calls["resume"] = func() error { _, err := n.Resume(ctx, &taskapi.ResumeRequest{ID: id}); return err }
			calls["stats"] = func() error { _, err := n.Stats(ctx, &taskapi.StatsRequest{ID: id}); return err }
			calls["update"] = func() error { _, err := n.Update(ctx, &taskapi.UpdateTaskRequest{ID: id}); return err }
			calls["checkpoint"] = func() error { _, err := n.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: id}); return err }
			calls["exec"] = func() error {
				_, err := n.Exec(ctx, &taskapi.ExecProcessRequest{ID: id, ExecID: "e", Spec: processSpec})
				return err
			}
		}
		for verb, call := range calls {
			err := call()
			wantKind(t, err, errdefs.IsNotFound, verb+": not found")
			if err != nil && !strings.Contains(err.Error(), id) {
				t.Errorf("%s: %v does not name %s", verb, err, id)
			}
		}
	}
	connect := result[*taskapi.ConnectResponse](t)(n.Connect(ctx, &taskapi.ConnectRequest{ID: "x"}))
	if connect.ShimPid != uint32(os.Getpid()) || connect.TaskPid != 0 {
		t.Errorf("connect: %v", connect)
	}
}

func TestKindsOfErrors(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	n.container(forever)
	_, err := n.Create(ctx, n.containerRequest("c", forever))
	wantKind(t, err, errdefs.IsAlreadyExists, "already exists")
	_, err = n.Start(ctx, &taskapi.StartRequest{ID: "c"})
	wantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = n.Delete(ctx, &taskapi.DeleteRequest{ID: "c"})
	wantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = n.Resume(ctx, &taskapi.ResumeRequest{ID: "c"})
	wantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = n.Kill(ctx, &taskapi.KillRequest{ID: "c", Signal: 65})
	wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
	_, err = n.Kill(ctx, &taskapi.KillRequest{ID: "c", Signal: 1<<32 - 1})
	wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")

	_, err = n.Exec(ctx, n.execRequest("c", "e", "exit 0"))
	proctest.Must(t, err)
	_, err = n.Exec(ctx, n.execRequest("c", "e", "exit 0"))
	wantKind(t, err, errdefs.IsAlreadyExists, "already exists")
	for _, id := range []string{"", "../x", "a/b"} {
		_, err = n.Exec(ctx, n.execRequest("c", id, "exit 0"))
		wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
	}
	for _, spec := range []*anypb.Any{nil, {}, {Value: []byte("{")}} {
		_, err = n.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c", ExecID: "f", Spec: spec})
		wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
		_, err = n.Update(ctx, &taskapi.UpdateTaskRequest{ID: "c", Resources: spec})
		wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
	}
	wrong, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: "x"})
	proctest.Must(t, err)
	_, err = n.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: "c", Options: wrong})
	wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")

	n.tell("fail-create", "no more bananas")
	_, err = n.Create(ctx, n.containerRequest("d", forever))
	if err == nil || !strings.Contains(err.Error(), "no more bananas") {
		t.Errorf("got %v", err)
	}
	want := []string{"/tasks/create c", "/tasks/start c", "/tasks/exec-added c e"}
	if got := n.events.all(); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestOptionsOfAWrongType(t *testing.T) {
	n := newNode(t)
	r := n.containerRequest("c", forever)
	wrong, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: "x"})
	proctest.Must(t, err)
	for _, opts := range []*anypb.Any{wrong, {TypeUrl: "no.such.Type", Value: []byte("x")}, {TypeUrl: r.Options.TypeUrl, Value: []byte("\xff")}} {
		r.Options = opts
		_, err = n.Create(proctest.Context(t), r)
		wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
	}
	n.make(n.containerRequest("c", forever)) // the id is free
}

func TestOptionsReachTheRuntime(t *testing.T) {
	o := &options.Options{
		BinaryName: "b", Root: "r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IoUid: 1, IoGid: 2,
		CriuWorkPath: "w",
	}
	want := process.Options{
		BinaryName: "b", Root: "r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IoUID: 1, IoGID: 2,
		CriuWorkPath: "w", AlwaysCallRuntime: true,
	}
	if got := (&HandlerOptions{Runc: o, AlwaysCallRuntime: true}).process(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestCreatesOfOneIDAtTheSameTime(t *testing.T) {
	n := newNode(t)
	for range 3 {
		const count = 8
		errs := make(chan error, count)
		for range count {
			r := n.containerRequest("c", forever)
			go func() {
				_, err := n.Create(proctest.Context(t), r)
				errs <- err
			}()
		}
		made := 0
		for range count {
			if err := <-errs; err == nil {
				made++
			} else {
				wantKind(t, err, errdefs.IsAlreadyExists, "already exists")
			}
		}
		if made != 1 {
			t.Errorf("%d creates succeeded", made)
		}
		n.remove("c")
	}
}

func TestTaskThatIsBeingCreated(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	gate := filepath.Join(n.control, "gate-create")
	proctest.Must(t, unix.Mkfifo(gate, 0o600))
	r := n.containerRequest("c", forever)
	done := make(chan error)
	go func() {
		_, err := n.Create(ctx, r)
		done <- err
	}()
	open, err := os.OpenFile(gate, os.O_WRONLY, 0) // waits until the OCI runtime is there
	proctest.Must(t, err)
	proctest.Must(t, os.Remove(gate))

	_, err = n.State(ctx, &taskapi.StateRequest{ID: "c"})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = n.Delete(ctx, &taskapi.DeleteRequest{ID: "c"})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = n.Create(ctx, n.containerRequest("c", forever))
	wantKind(t, err, errdefs.IsAlreadyExists, "already exists")
	_, err = n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c"})
	proctest.Must(t, err)
	if len(n.shutdowns) > 0 {
		t.Error("the shim shuts down while it creates a task")
	}
	open.Close()
	proctest.Must(t, <-done)
	n.remove("c")
}

func TestCreateThatFailsIsForgotten(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	n.tell("fail-create", "no more bananas")
	_, err := n.Create(ctx, n.containerRequest("c", forever))
	if err == nil {
		t.Error("create has not failed")
	}
	_, err = n.State(ctx, &taskapi.StateRequest{ID: "c"})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	proctest.Must(t, os.Remove(filepath.Join(n.control, "fail-create")))
	n.make(n.containerRequest("c", forever))
}

func TestShutdownOnlyWithoutTasks(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	shutDown := func() {
		t.Helper()
		_, err := n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c", Now: true})
		proctest.Must(t, err)
	}
	n.make(n.sandboxRequest("pod"))
	n.container("exit 0")
	_, err := n.Wait(ctx, &taskapi.WaitRequest{ID: "c"})
	proctest.Must(t, err)
	shutDown()
	n.remove("c")
	shutDown()
	if len(n.shutdowns) > 0 {
		t.Error("the shim shuts down although it has tasks")
	}
	n.remove("pod")
	shutDown()
	if len(n.shutdowns) != 1 {
		t.Errorf("%d shutdowns", len(n.shutdowns))
	}
}

func TestExitThatComesAtOnceIsToldInOrder(t *testing.T) {
	n := newNode(t)
	n.tell("slow-start", "")
	n.tell("slow-exec", "")
	n.container("exit 4")
	wait := result[*taskapi.WaitResponse](t)(n.Wait(proctest.Context(t), &taskapi.WaitRequest{ID: "c"}))
	if wait.ExitStatus != 4 {
		t.Errorf("wait: %v", wait)
	}
	want := []string{"/tasks/create c", "/tasks/start c", "/tasks/exit c c 4"}
	if got := n.events.all(); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestDeleteOfACreatedTask(t *testing.T) {
	n := newNode(t)
	n.make(n.containerRequest("c", forever))
	del := result[*taskapi.DeleteResponse](t)(n.Delete(proctest.Context(t), &taskapi.DeleteRequest{ID: "c"}))
	if del.ExitStatus != 137 {
		t.Errorf("delete: %v", del)
	}
	want := []string{"/tasks/create c", "/tasks/exit c c 137", "/tasks/delete c"}
	if got := n.events.all(); !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestKillOfAllTellsEveryExit(t *testing.T) {
	n := newNode(t)
	ctx := proctest.Context(t)
	n.container(forever)
	for _, id := range []string{"e", "f"} {
		_, err := n.Exec(ctx, n.execRequest("c", id, forever))
		proctest.Must(t, err)
		_, err = n.Start(ctx, &taskapi.StartRequest{ID: "c", ExecID: id})
		proctest.Must(t, err)
	}
	_, err := n.Kill(ctx, &taskapi.KillRequest{ID: "c", Signal: 9, All: true})
	proctest.Must(t, err)
	_, err = n.Wait(ctx, &taskapi.WaitRequest{ID: "c"})
	proctest.Must(t, err)
	got := n.events.all()
	exits := got[len(got)-3:]
	slices.Sort(exits[:2])
	if want := []string{"/tasks/exit c e 137", "/tasks/exit c f 137", "/tasks/exit c c 137"}; !slices.Equal(exits, want) {
		t.Errorf("events are %q, want %q at the end", got, want)
	}
}

func TestOOMIsTold(t *testing.T) {
	r := &recorder{}
	NewEvents(r).OOM("c")
	if got, want := r.all(), []string{"/tasks/oom c"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}
