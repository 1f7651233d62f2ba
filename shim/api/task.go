// Package api has the messages of containerd's Task and Sandbox services, of its
// events and of what it gives to and takes from a shim's commands, as structs for
// package wire.
//
// They are those of github.com/containerd/containerd/api, whose documentation is
// theirs, too, and whose generated code they spare the shim: what that and its imports
// set up when a program starts takes 0.36 MB, for good. The tests compare every field
// with it.
package api

import (
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// CreateTaskRequest is containerd.task.v3.CreateTaskRequest.
type CreateTaskRequest struct {
	ID               string     `protobuf:"bytes,1"`
	Bundle           string     `protobuf:"bytes,2"`
	Rootfs           []*Mount   `protobuf:"bytes,3"`
	Terminal         bool       `protobuf:"varint,4"`
	Stdin            string     `protobuf:"bytes,5"`
	Stdout           string     `protobuf:"bytes,6"`
	Stderr           string     `protobuf:"bytes,7"`
	Checkpoint       string     `protobuf:"bytes,8"`
	ParentCheckpoint string     `protobuf:"bytes,9"`
	Options          *anypb.Any `protobuf:"bytes,10"`
}

// CreateTaskResponse is containerd.task.v3.CreateTaskResponse.
type CreateTaskResponse struct {
	Pid uint32 `protobuf:"varint,1"`
}

// StartRequest is containerd.task.v3.StartRequest.
type StartRequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
}

// StartResponse is containerd.task.v3.StartResponse.
type StartResponse struct {
	Pid uint32 `protobuf:"varint,1"`
}

// DeleteRequest is containerd.task.v3.DeleteRequest.
type DeleteRequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
}

// DeleteResponse is containerd.task.v3.DeleteResponse.
type DeleteResponse struct {
	Pid        uint32                 `protobuf:"varint,1"`
	ExitStatus uint32                 `protobuf:"varint,2"`
	ExitedAt   *timestamppb.Timestamp `protobuf:"bytes,3"`
}

// ExecProcessRequest is containerd.task.v3.ExecProcessRequest.
type ExecProcessRequest struct {
	ID       string     `protobuf:"bytes,1"`
	ExecID   string     `protobuf:"bytes,2"`
	Terminal bool       `protobuf:"varint,3"`
	Stdin    string     `protobuf:"bytes,4"`
	Stdout   string     `protobuf:"bytes,5"`
	Stderr   string     `protobuf:"bytes,6"`
	Spec     *anypb.Any `protobuf:"bytes,7"`
}

// ResizePtyRequest is containerd.task.v3.ResizePtyRequest.
type ResizePtyRequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
	Width  uint32 `protobuf:"varint,3"`
	Height uint32 `protobuf:"varint,4"`
}

// CloseIORequest is containerd.task.v3.CloseIORequest.
type CloseIORequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
	Stdin  bool   `protobuf:"varint,3"`
}

// StateRequest is containerd.task.v3.StateRequest.
type StateRequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
}

// StateResponse is containerd.task.v3.StateResponse.
type StateResponse struct {
	ID         string                 `protobuf:"bytes,1"`
	Bundle     string                 `protobuf:"bytes,2"`
	Pid        uint32                 `protobuf:"varint,3"`
	Status     Status                 `protobuf:"varint,4"`
	Stdin      string                 `protobuf:"bytes,5"`
	Stdout     string                 `protobuf:"bytes,6"`
	Stderr     string                 `protobuf:"bytes,7"`
	Terminal   bool                   `protobuf:"varint,8"`
	ExitStatus uint32                 `protobuf:"varint,9"`
	ExitedAt   *timestamppb.Timestamp `protobuf:"bytes,10"`
	ExecID     string                 `protobuf:"bytes,11"`
}

// PauseRequest is containerd.task.v3.PauseRequest.
type PauseRequest struct {
	ID string `protobuf:"bytes,1"`
}

// ResumeRequest is containerd.task.v3.ResumeRequest.
type ResumeRequest struct {
	ID string `protobuf:"bytes,1"`
}

// KillRequest is containerd.task.v3.KillRequest.
type KillRequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
	Signal uint32 `protobuf:"varint,3"`
	All    bool   `protobuf:"varint,4"`
}

// PidsRequest is containerd.task.v3.PidsRequest.
type PidsRequest struct {
	ID string `protobuf:"bytes,1"`
}

// PidsResponse is containerd.task.v3.PidsResponse.
type PidsResponse struct {
	Processes []*ProcessInfo `protobuf:"bytes,1"`
}

// CheckpointTaskRequest is containerd.task.v3.CheckpointTaskRequest.
type CheckpointTaskRequest struct {
	ID      string     `protobuf:"bytes,1"`
	Path    string     `protobuf:"bytes,2"`
	Options *anypb.Any `protobuf:"bytes,3"`
}

// UpdateTaskRequest is containerd.task.v3.UpdateTaskRequest.
type UpdateTaskRequest struct {
	ID          string            `protobuf:"bytes,1"`
	Resources   *anypb.Any        `protobuf:"bytes,2"`
	Annotations map[string]string `protobuf:"bytes,3"`
}

// WaitRequest is containerd.task.v3.WaitRequest.
type WaitRequest struct {
	ID     string `protobuf:"bytes,1"`
	ExecID string `protobuf:"bytes,2"`
}

// WaitResponse is containerd.task.v3.WaitResponse.
type WaitResponse struct {
	ExitStatus uint32                 `protobuf:"varint,1"`
	ExitedAt   *timestamppb.Timestamp `protobuf:"bytes,2"`
}

// StatsRequest is containerd.task.v3.StatsRequest.
type StatsRequest struct {
	ID string `protobuf:"bytes,1"`
}

// StatsResponse is containerd.task.v3.StatsResponse.
type StatsResponse struct {
	Stats *anypb.Any `protobuf:"bytes,1"`
}

// ConnectRequest is containerd.task.v3.ConnectRequest.
type ConnectRequest struct {
	ID string `protobuf:"bytes,1"`
}

// ConnectResponse is containerd.task.v3.ConnectResponse.
type ConnectResponse struct {
	ShimPid uint32 `protobuf:"varint,1"`
	TaskPid uint32 `protobuf:"varint,2"`
	Version string `protobuf:"bytes,3"`
}

// ShutdownRequest is containerd.task.v3.ShutdownRequest.
type ShutdownRequest struct {
	ID  string `protobuf:"bytes,1"`
	Now bool   `protobuf:"varint,2"`
}

// ProcessInfo is containerd.v1.types.ProcessInfo.
type ProcessInfo struct {
	Pid  uint32     `protobuf:"varint,1"`
	Info *anypb.Any `protobuf:"bytes,2"`
}

// Status is containerd.v1.types.Status.
type Status int32

// The states of a process.
const (
	StatusUnknown Status = iota
	StatusCreated
	StatusRunning
	StatusStopped
	StatusPaused
	StatusPausing
)
