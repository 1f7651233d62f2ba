package api

import (
	"reflect"
	"strings"
	"testing"

	eventsapi "github.com/containerd/containerd/api/events"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	forwardapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/proto"
)

// messages are all of this package, each with what it is to containerd.
var messages = map[any]proto.Message{
	&CreateTaskRequest{}:     &taskapi.CreateTaskRequest{},
	&CreateTaskResponse{}:    &taskapi.CreateTaskResponse{},
	&StartRequest{}:          &taskapi.StartRequest{},
	&StartResponse{}:         &taskapi.StartResponse{},
	&DeleteRequest{}:         &taskapi.DeleteRequest{},
	&DeleteResponse{}:        &taskapi.DeleteResponse{},
	&ExecProcessRequest{}:    &taskapi.ExecProcessRequest{},
	&ResizePtyRequest{}:      &taskapi.ResizePtyRequest{},
	&CloseIORequest{}:        &taskapi.CloseIORequest{},
	&StateRequest{}:          &taskapi.StateRequest{},
	&StateResponse{}:         &taskapi.StateResponse{},
	&PauseRequest{}:          &taskapi.PauseRequest{},
	&ResumeRequest{}:         &taskapi.ResumeRequest{},
	&KillRequest{}:           &taskapi.KillRequest{},
	&PidsRequest{}:           &taskapi.PidsRequest{},
	&PidsResponse{}:          &taskapi.PidsResponse{},
	&CheckpointTaskRequest{}: &taskapi.CheckpointTaskRequest{},
	&UpdateTaskRequest{}:     &taskapi.UpdateTaskRequest{},
	&WaitRequest{}:           &taskapi.WaitRequest{},
	&WaitResponse{}:          &taskapi.WaitResponse{},
	&StatsRequest{}:          &taskapi.StatsRequest{},
	&StatsResponse{}:         &taskapi.StatsResponse{},
	&ConnectRequest{}:        &taskapi.ConnectRequest{},
	&ConnectResponse{}:       &taskapi.ConnectResponse{},
	&ShutdownRequest{}:       &taskapi.ShutdownRequest{},
	&ProcessInfo{}:           &tasktypes.ProcessInfo{},

	&CreateSandboxRequest{}:    &sandboxapi.CreateSandboxRequest{},
	&CreateSandboxResponse{}:   &sandboxapi.CreateSandboxResponse{},
	&StartSandboxRequest{}:     &sandboxapi.StartSandboxRequest{},
	&StartSandboxResponse{}:    &sandboxapi.StartSandboxResponse{},
	&PlatformRequest{}:         &sandboxapi.PlatformRequest{},
	&PlatformResponse{}:        &sandboxapi.PlatformResponse{},
	&StopSandboxRequest{}:      &sandboxapi.StopSandboxRequest{},
	&StopSandboxResponse{}:     &sandboxapi.StopSandboxResponse{},
	&WaitSandboxRequest{}:      &sandboxapi.WaitSandboxRequest{},
	&WaitSandboxResponse{}:     &sandboxapi.WaitSandboxResponse{},
	&SandboxStatusRequest{}:    &sandboxapi.SandboxStatusRequest{},
	&SandboxStatusResponse{}:   &sandboxapi.SandboxStatusResponse{},
	&PingRequest{}:             &sandboxapi.PingRequest{},
	&PingResponse{}:            &sandboxapi.PingResponse{},
	&ShutdownSandboxRequest{}:  &sandboxapi.ShutdownSandboxRequest{},
	&ShutdownSandboxResponse{}: &sandboxapi.ShutdownSandboxResponse{},
	&SandboxMetricsRequest{}:   &sandboxapi.SandboxMetricsRequest{},
	&SandboxMetricsResponse{}:  &sandboxapi.SandboxMetricsResponse{},
	&UpdateSandboxRequest{}:    &sandboxapi.UpdateSandboxRequest{},
	&UpdateSandboxResponse{}:   &sandboxapi.UpdateSandboxResponse{},

	&Mount{}:          &types.Mount{},
	&Platform{}:       &types.Platform{},
	&Metric{}:         &types.Metric{},
	&Envelope{}:       &types.Envelope{},
	&RuntimeInfo{}:    &types.RuntimeInfo{},
	&RuntimeVersion{}: &types.RuntimeVersion{},

	&TaskCreate{}:      &eventsapi.TaskCreate{},
	&TaskStart{}:       &eventsapi.TaskStart{},
	&TaskDelete{}:      &eventsapi.TaskDelete{},
	&TaskIO{}:          &eventsapi.TaskIO{},
	&TaskExit{}:        &eventsapi.TaskExit{},
	&TaskOOM{}:         &eventsapi.TaskOOM{},
	&TaskExecAdded{}:   &eventsapi.TaskExecAdded{},
	&TaskExecStarted{}: &eventsapi.TaskExecStarted{},
	&TaskPaused{}:      &eventsapi.TaskPaused{},
	&TaskResumed{}:     &eventsapi.TaskResumed{},
	&ForwardRequest{}:  &forwardapi.ForwardRequest{},

	&Options{}:           &options.Options{},
	&CheckpointOptions{}: &options.CheckpointOptions{},
	&ProcessDetails{}:    &options.ProcessDetails{},
	&GenericOptions{}:    &runtimeoptions.Options{},

	&BootstrapParams{}: &bootapi.BootstrapParams{},
	&BootstrapResult{}: &bootapi.BootstrapResult{},
	&Extension{}:       &bootapi.Extension{},
}

// left are the fields that are left out.
var left = map[string]bool{"UpdateSandboxRequest.Sandbox": true}

func TestMessagesAreThoseOfContainerd(t *testing.T) {
	for ours, theirs := range messages {
		if event, ok := ours.(Event); ok && event.FullName() != string(theirs.ProtoReflect().Descriptor().FullName()) {
			t.Errorf("%T is %s", theirs, event.FullName())
		}
		compare(t, reflect.TypeOf(ours).Elem(), reflect.TypeOf(theirs).Elem())
	}
	for name, m := range map[string]proto.Message{
		OptionsName: &options.Options{}, CheckpointName: &options.CheckpointOptions{},
		ProcessDetailsName: &options.ProcessDetails{}, GenericOptionsName: &runtimeoptions.Options{},
	} {
		if got := m.ProtoReflect().Descriptor().FullName(); string(got) != name {
			t.Errorf("%T is %s, not %s", m, got, name)
		}
	}
}

func compare(t *testing.T, ours, theirs reflect.Type) {
	t.Helper()
	fields := 0
	for i := range theirs.NumField() {
		want := theirs.Field(i)
		tag, ok := want.Tag.Lookup("protobuf")
		if !ok || left[ours.Name()+"."+want.Name] {
			continue
		}
		fields++
		// Generated code has names such as IoUid.
		got, ok := ours.FieldByNameFunc(func(name string) bool { return strings.EqualFold(name, want.Name) })
		if !ok {
			t.Errorf("%s has no field %s", ours, want.Name)
			continue
		}
		if g := got.Tag.Get("protobuf"); !strings.HasPrefix(tag, g+",") || strings.Count(g, ",") != 1 {
			t.Errorf("%s of %s has the tag %q, want the start of %q", want.Name, ours, g, tag)
		}
		if j := got.Tag.Get("json"); j != "" && j != want.Tag.Get("json") {
			t.Errorf("%s of %s is %q in JSON, want %q", want.Name, ours, j, want.Tag.Get("json"))
		}
		if !sameType(got.Type, want.Type) {
			t.Errorf("%s of %s is a %s, want a %s", want.Name, ours, got.Type, want.Type)
		}
	}
	if fields != ours.NumField() {
		t.Errorf("%s has %d fields, want %d", ours, ours.NumField(), fields)
	}
}

// sameType says whether values of two types are encoded in the same way. The structs
// themselves are compared elsewhere; they have to be of the same name.
func sameType(a, b reflect.Type) bool {
	if a == b {
		return true
	}
	if a.Kind() != b.Kind() {
		return false
	}
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice:
		return sameType(a.Elem(), b.Elem())
	case reflect.Map:
		return sameType(a.Key(), b.Key()) && sameType(a.Elem(), b.Elem())
	case reflect.Struct:
		return a.Name() == b.Name()
	}
	return true
}

func TestValuesAreThoseOfContainerd(t *testing.T) {
	for got, want := range map[Status]tasktypes.Status{
		StatusUnknown: tasktypes.Status_UNKNOWN, StatusCreated: tasktypes.Status_CREATED, StatusRunning: tasktypes.Status_RUNNING,
		StatusStopped: tasktypes.Status_STOPPED, StatusPaused: tasktypes.Status_PAUSED, StatusPausing: tasktypes.Status_PAUSING,
	} {
		if int32(got) != int32(want) {
			t.Errorf("%s is %d", want, got)
		}
	}
	if int32(LogLevelDebug) != int32(bootapi.LogLevel_LOG_LEVEL_DEBUG) {
		t.Errorf("LOG_LEVEL_DEBUG is %d", LogLevelDebug)
	}
}
