package task

import (
	"containerd-shim-pause-v2/process"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
)

// Event topics (containerd's runtime v2 documentation, "Events").
const (
	topicCreate      = "/tasks/create"
	topicStart       = "/tasks/start"
	topicExit        = "/tasks/exit"
	topicDelete      = "/tasks/delete"
	topicExecAdded   = "/tasks/exec-added"
	topicExecStarted = "/tasks/exec-started"
	topicPaused      = "/tasks/paused"
	topicResumed     = "/tasks/resumed"
	topicOOM         = "/tasks/oom"
)

// Publisher publishes events to containerd in the order of the calls, without blocking
// the caller.
type Publisher interface {
	Publish(topic string, event proto.Message)
	// PublishOnce drops the event if one with the same topic and key waits for containerd,
	// which is away.
	PublishOnce(topic, key string, event proto.Message)
}

// Events publishes what happens to tasks.
type Events struct{ publisher Publisher }

var _ process.Events = (*Events)(nil)

// NewEvents returns Events that publish through p.
func NewEvents(p Publisher) *Events { return &Events{p} }

// Started implements [process.Events].
func (e *Events) Started(taskID, execID string, pid int) {
	if execID == "" {
		e.publisher.Publish(topicStart, &eventsapi.TaskStart{ContainerID: taskID, Pid: uint32(pid)})
		return
	}
	e.publisher.Publish(topicExecStarted, &eventsapi.TaskExecStarted{ContainerID: taskID, ExecID: execID, Pid: uint32(pid)})
}

// Exited implements [process.Events].
func (e *Events) Exited(taskID, execID string, pid int, exit process.Exit) {
	id := execID
	if id == "" {
		id = taskID
	}
	e.publisher.Publish(topicExit, &eventsapi.TaskExit{
		ContainerID: taskID,
		ID:          id,
		Pid:         uint32(pid),
		ExitStatus:  exit.Status,
		ExitedAt:    timestamp(exit),
	})
}

// OOM implements [process.Events]. While containerd is down, a container can be killed
// any number of times: only one of these events is kept, so that they do not pile up.
func (e *Events) OOM(taskID string) {
	e.publisher.PublishOnce(topicOOM, taskID, &eventsapi.TaskOOM{ContainerID: taskID})
}

func (e *Events) created(r *taskapi.CreateTaskRequest, pid uint32) {
	e.publisher.Publish(topicCreate, &eventsapi.TaskCreate{
		ContainerID: r.ID,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO: &eventsapi.TaskIO{
			Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal,
		},
		Checkpoint: r.Checkpoint,
		Pid:        pid,
	})
}

func (e *Events) deleted(id string, st process.Status) {
	e.publisher.Publish(topicDelete, &eventsapi.TaskDelete{
		ContainerID: id,
		Pid:         uint32(st.Pid),
		ExitStatus:  st.Exit.Status,
		ExitedAt:    timestamp(st.Exit),
	})
}

func (e *Events) execAdded(id, execID string) {
	e.publisher.Publish(topicExecAdded, &eventsapi.TaskExecAdded{ContainerID: id, ExecID: execID})
}

func (e *Events) paused(id string) {
	e.publisher.Publish(topicPaused, &eventsapi.TaskPaused{ContainerID: id})
}

func (e *Events) resumed(id string) {
	e.publisher.Publish(topicResumed, &eventsapi.TaskResumed{ContainerID: id})
}
