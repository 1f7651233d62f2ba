// Package task serves the RPCs of a shim: containerd's Task API, versions 2 and 3, and
// the Sandbox API. It decodes requests, publishes events, and is the only place where
// errors become gRPC statuses; package process does everything else.
package task

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"containerd-shim-pause-v2/process"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Service is the Task service and the Sandbox service of one shim process. Its supervisor
// keeps the tasks.
type Service struct {
	supervisor *process.Supervisor
	events     *Events
	decode     DecodeOptions
	options    *HandlerOptions // for sandboxes, whose requests carry none
	host       Host
}

// Host is what the service knows of the shim process, and tells it.
type Host struct {
	Runtime string // runtime type
	ID      string // of the container or sandbox that the process was started for
	// Shared says that the process serves pods that have nothing to do with each other.
	Shared bool
	// Expects says whether the process keeps room for a sandbox or container, because
	// it was started for it, and since when.
	Expects func(id string) (since time.Time, ok bool)
	// Forget gives the room back for one that will not be created.
	Forget func(id string)
	// Removed gives the room back for one of which nothing is left, if there was any.
	Removed func(id, bundle string, st process.Status)
	// Shutdown ends the process; one that is shared only if it keeps room for nothing.
	Shutdown func()
}

// NewService returns a service for the tasks of the supervisor, which must report to the
// same events. o are the runtime options that the shim was started with. The service asks
// the host to shut down when it is asked to, and has neither task nor sandbox.
func NewService(supervisor *process.Supervisor, events *Events, decode DecodeOptions, o *HandlerOptions, host Host) *Service {
	return &Service{supervisor: supervisor, events: events, decode: decode, options: o, host: host}
}

var empty = &emptypb.Empty{}

// Create implements [taskapi.TTRPCTaskService].
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	opts, err := s.decode(r.Options)
	if err != nil {
		return nil, fmt.Errorf("cannot create task %s: %w: %w", r.ID, err, errdefs.ErrInvalidArgument)
	}
	t, err := s.supervisor.Create(ctx, process.CreateRequest{
		ID:     r.ID,
		Bundle: r.Bundle,
		Rootfs: rootfsMounts(r),
		Stdio: process.Stdio{
			Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		},
		Checkpoint:       r.Checkpoint,
		ParentCheckpoint: r.ParentCheckpoint,
		Options:          opts.process(),
	})
	if err != nil {
		return nil, err
	}
	pid := uint32(initOf(t).Status().Pid)
	s.events.created(r, pid)
	t.Watch()
	return &taskapi.CreateTaskResponse{Pid: pid}, nil
}

// task returns a task of the Task API.
func (s *Service) task(id string) (*process.Task, error) {
	t, err := s.supervisor.Task(id)
	if err == nil && t.Pod != nil {
		err = fmt.Errorf("%s is a sandbox, not a task: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// initOf returns the init of a task.
func initOf(t *process.Task) *process.Process {
	p, err := t.Process("")
	if err != nil {
		panic(err) // a task has an init as long as it exists
	}
	return p
}

func (s *Service) process(id, execID string) (*process.Process, error) {
	t, err := s.task(id)
	if err != nil {
		return nil, err
	}
	return t.Process(execID)
}

// Start implements [taskapi.TTRPCTaskService].
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	pid, err := p.Start(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: uint32(pid)}, nil
}

// Delete implements [taskapi.TTRPCTaskService].
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	st, err := t.Delete(ctx, r.ExecID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		s.removeForgotten(ctx, r.ID)
		s.host.Removed(t.ID, t.Bundle, st)
		s.events.deleted(r.ID, st)
	}
	return &taskapi.DeleteResponse{
		Pid:        uint32(st.Pid),
		ExitStatus: st.Exit.Status,
		ExitedAt:   timestamp(st.Exit),
	}, nil
}

// Exec implements [taskapi.TTRPCTaskService].
func (s *Service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	sio := process.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}
	if err := t.Exec(r.ExecID, sio, r.Spec.GetValue()); err != nil {
		return nil, err
	}
	s.events.execAdded(r.ID, r.ExecID)
	return empty, nil
}

// ResizePty implements [taskapi.TTRPCTaskService].
func (s *Service) ResizePty(_ context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return empty, p.Resize(uint16(r.Width), uint16(r.Height))
}

// CloseIO implements [taskapi.TTRPCTaskService].
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	p.CloseStdin()
	return empty, nil
}

// State implements [taskapi.TTRPCTaskService].
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	p, err := t.Process(r.ExecID)
	if err != nil {
		return nil, err
	}
	st, sio := p.Status(), p.Stdio()
	id := r.ID
	if r.ExecID != "" {
		id = r.ExecID
	}
	return &taskapi.StateResponse{
		ID:         id,
		Bundle:     t.Bundle,
		Pid:        uint32(st.Pid),
		Status:     statusOf(st.State),
		Stdin:      sio.Stdin,
		Stdout:     sio.Stdout,
		Stderr:     sio.Stderr,
		Terminal:   sio.Terminal,
		ExitStatus: st.Exit.Status,
		ExitedAt:   timestamp(st.Exit),
	}, nil
}

func statusOf(s process.State) tasktypes.Status {
	switch s {
	case process.Created:
		return tasktypes.Status_CREATED
	case process.Running:
		return tasktypes.Status_RUNNING
	case process.Pausing:
		return tasktypes.Status_PAUSING
	case process.Paused:
		return tasktypes.Status_PAUSED
	case process.Stopped, process.Deleted:
		return tasktypes.Status_STOPPED
	}
	return tasktypes.Status_UNKNOWN
}

// Pause implements [taskapi.TTRPCTaskService].
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if err := t.Pause(ctx); err != nil {
		return nil, err
	}
	s.events.paused(r.ID)
	return empty, nil
}

// Resume implements [taskapi.TTRPCTaskService].
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if err := t.Resume(ctx); err != nil {
		return nil, err
	}
	s.events.resumed(r.ID)
	return empty, nil
}

// Kill implements [taskapi.TTRPCTaskService].
func (s *Service) Kill(_ context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	return empty, t.Kill(r.ExecID, unix.Signal(r.Signal), r.All)
}

// Pids implements [taskapi.TTRPCTaskService].
func (s *Service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	found, err := t.Pids()
	if err != nil {
		return nil, err
	}
	infos := make([]*tasktypes.ProcessInfo, len(found))
	for i, p := range found {
		infos[i] = &tasktypes.ProcessInfo{Pid: uint32(p.Pid)}
		if p.ExecID == "" {
			continue
		}
		if infos[i].Info, err = typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: p.ExecID}); err != nil {
			return nil, fmt.Errorf("cannot encode the details of exec %s: %w", p.ExecID, err)
		}
	}
	return &taskapi.PidsResponse{Processes: infos}, nil
}

// Checkpoint implements [taskapi.TTRPCTaskService].
func (s *Service) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	var o options.CheckpointOptions
	if r.Options != nil {
		if err := r.Options.UnmarshalTo(&o); err != nil {
			return nil, fmt.Errorf("cannot decode the checkpoint options of task %s: %w: %w", r.ID, err, errdefs.ErrInvalidArgument)
		}
	}
	return empty, t.Checkpoint(ctx, process.CheckpointOptions{
		Path:                r.Path,
		WorkPath:            o.WorkPath,
		ParentPath:          o.ParentPath,
		Exit:                o.Exit,
		OpenTCP:             o.OpenTcp,
		ExternalUnixSockets: o.ExternalUnixSockets,
		Terminal:            o.Terminal,
		FileLocks:           o.FileLocks,
		EmptyNamespaces:     o.EmptyNamespaces,
	})
}

// Update implements [taskapi.TTRPCTaskService].
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	var resources specs.LinuxResources
	if err := json.Unmarshal(r.Resources.GetValue(), &resources); err != nil {
		return nil, fmt.Errorf("cannot decode the resources for task %s: %w: %w", r.ID, err, errdefs.ErrInvalidArgument)
	}
	return empty, t.Update(ctx, &resources)
}

// Wait implements [taskapi.TTRPCTaskService].
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: exit.Status, ExitedAt: timestamp(exit)}, nil
}

// Stats implements [taskapi.TTRPCTaskService].
func (s *Service) Stats(_ context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	t, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	metrics, err := t.Stats()
	if err != nil {
		return nil, err
	}
	encoded, err := typeurl.MarshalAnyToProto(metrics)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the metrics of task %s: %w", r.ID, err)
	}
	return &taskapi.StatsResponse{Stats: encoded}, nil
}

// Connect also answers for tasks that do not exist: containerd asks for the shim's pid
// before it creates one.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if t, err := s.supervisor.Task(r.ID); err == nil {
		resp.TaskPid = uint32(initOf(t).Status().Pid)
	}
	return resp, nil
}

// Shutdown ends the shim unless it has a task or a sandbox: containerd calls it after
// every delete of a task, and after a create that has failed.
func (s *Service) Shutdown(_ context.Context, r *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if !s.supervisor.Has(r.ID) {
		s.host.Forget(r.ID)
	}
	s.Idle()
	return empty, nil
}

// Idle ends the shim if it has neither task nor sandbox.
func (s *Service) Idle() {
	if !s.supervisor.HasOthers("") {
		s.host.Shutdown()
	}
}

func rootfsMounts(r *taskapi.CreateTaskRequest) []mount.Mount {
	mounts := make([]mount.Mount, len(r.Rootfs))
	for i, m := range r.Rootfs {
		mounts[i] = mount.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options}
	}
	return mounts
}

// timestamp returns nil for a process that has not ended.
func timestamp(e process.Exit) *timestamppb.Timestamp {
	if e.At.IsZero() {
		return nil
	}
	return timestamppb.New(e.At)
}
