package api

import (
	"google.golang.org/protobuf/types/known/timestamppb"
)

// TaskCreate is containerd.events.TaskCreate.
type TaskCreate struct {
	ContainerID string   `protobuf:"bytes,1"`
	Bundle      string   `protobuf:"bytes,2"`
	Rootfs      []*Mount `protobuf:"bytes,3"`
	IO          *TaskIO  `protobuf:"bytes,4"`
	Checkpoint  string   `protobuf:"bytes,5"`
	Pid         uint32   `protobuf:"varint,6"`
}

// TaskStart is containerd.events.TaskStart.
type TaskStart struct {
	ContainerID string `protobuf:"bytes,1"`
	Pid         uint32 `protobuf:"varint,2"`
}

// TaskDelete is containerd.events.TaskDelete.
type TaskDelete struct {
	ContainerID string                 `protobuf:"bytes,1"`
	Pid         uint32                 `protobuf:"varint,2"`
	ExitStatus  uint32                 `protobuf:"varint,3"`
	ExitedAt    *timestamppb.Timestamp `protobuf:"bytes,4"`
	ID          string                 `protobuf:"bytes,5"`
}

// TaskIO is containerd.events.TaskIO.
type TaskIO struct {
	Stdin    string `protobuf:"bytes,1"`
	Stdout   string `protobuf:"bytes,2"`
	Stderr   string `protobuf:"bytes,3"`
	Terminal bool   `protobuf:"varint,4"`
}

// TaskExit is containerd.events.TaskExit.
type TaskExit struct {
	ContainerID string                 `protobuf:"bytes,1"`
	ID          string                 `protobuf:"bytes,2"`
	Pid         uint32                 `protobuf:"varint,3"`
	ExitStatus  uint32                 `protobuf:"varint,4"`
	ExitedAt    *timestamppb.Timestamp `protobuf:"bytes,5"`
}

// TaskOOM is containerd.events.TaskOOM.
type TaskOOM struct {
	ContainerID string `protobuf:"bytes,1"`
}

// TaskExecAdded is containerd.events.TaskExecAdded.
type TaskExecAdded struct {
	ContainerID string `protobuf:"bytes,1"`
	ExecID      string `protobuf:"bytes,2"`
}

// TaskExecStarted is containerd.events.TaskExecStarted.
type TaskExecStarted struct {
	ContainerID string `protobuf:"bytes,1"`
	ExecID      string `protobuf:"bytes,2"`
	Pid         uint32 `protobuf:"varint,3"`
}

// TaskPaused is containerd.events.TaskPaused.
type TaskPaused struct {
	ContainerID string `protobuf:"bytes,1"`
}

// TaskResumed is containerd.events.TaskResumed.
type TaskResumed struct {
	ContainerID string `protobuf:"bytes,1"`
}

// ForwardRequest is containerd.services.events.ttrpc.v1.ForwardRequest.
type ForwardRequest struct {
	Envelope *Envelope `protobuf:"bytes,1"`
}

// Event is a message that is told of by an event.
type Event interface {
	// FullName returns the name of the message, by which it is known in an Any.
	FullName() string
}

// FullName implements [Event].
func (*TaskCreate) FullName() string { return "containerd.events.TaskCreate" }

// FullName implements [Event].
func (*TaskStart) FullName() string { return "containerd.events.TaskStart" }

// FullName implements [Event].
func (*TaskDelete) FullName() string { return "containerd.events.TaskDelete" }

// FullName implements [Event].
func (*TaskExit) FullName() string { return "containerd.events.TaskExit" }

// FullName implements [Event].
func (*TaskOOM) FullName() string { return "containerd.events.TaskOOM" }

// FullName implements [Event].
func (*TaskExecAdded) FullName() string { return "containerd.events.TaskExecAdded" }

// FullName implements [Event].
func (*TaskExecStarted) FullName() string { return "containerd.events.TaskExecStarted" }

// FullName implements [Event].
func (*TaskPaused) FullName() string { return "containerd.events.TaskPaused" }

// FullName implements [Event].
func (*TaskResumed) FullName() string { return "containerd.events.TaskResumed" }
