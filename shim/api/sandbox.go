package api

import (
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// CreateSandboxRequest is containerd.runtime.sandbox.v1.CreateSandboxRequest.
type CreateSandboxRequest struct {
	SandboxID   string            `protobuf:"bytes,1"`
	BundlePath  string            `protobuf:"bytes,2"`
	Rootfs      []*Mount          `protobuf:"bytes,3"`
	Options     *anypb.Any        `protobuf:"bytes,4"`
	NetnsPath   string            `protobuf:"bytes,5"`
	Annotations map[string]string `protobuf:"bytes,6"`
}

// CreateSandboxResponse is containerd.runtime.sandbox.v1.CreateSandboxResponse.
type CreateSandboxResponse struct{}

// StartSandboxRequest is containerd.runtime.sandbox.v1.StartSandboxRequest.
type StartSandboxRequest struct {
	SandboxID string `protobuf:"bytes,1"`
}

// StartSandboxResponse is containerd.runtime.sandbox.v1.StartSandboxResponse.
type StartSandboxResponse struct {
	Pid       uint32                 `protobuf:"varint,1"`
	CreatedAt *timestamppb.Timestamp `protobuf:"bytes,2"`
	Spec      *anypb.Any             `protobuf:"bytes,3"`
}

// PlatformRequest is containerd.runtime.sandbox.v1.PlatformRequest.
type PlatformRequest struct {
	SandboxID string `protobuf:"bytes,1"`
}

// PlatformResponse is containerd.runtime.sandbox.v1.PlatformResponse.
type PlatformResponse struct {
	Platform *Platform `protobuf:"bytes,1"`
}

// StopSandboxRequest is containerd.runtime.sandbox.v1.StopSandboxRequest.
type StopSandboxRequest struct {
	SandboxID   string `protobuf:"bytes,1"`
	TimeoutSecs uint32 `protobuf:"varint,2"`
}

// StopSandboxResponse is containerd.runtime.sandbox.v1.StopSandboxResponse.
type StopSandboxResponse struct{}

// WaitSandboxRequest is containerd.runtime.sandbox.v1.WaitSandboxRequest.
type WaitSandboxRequest struct {
	SandboxID string `protobuf:"bytes,1"`
}

// WaitSandboxResponse is containerd.runtime.sandbox.v1.WaitSandboxResponse.
type WaitSandboxResponse struct {
	ExitStatus uint32                 `protobuf:"varint,1"`
	ExitedAt   *timestamppb.Timestamp `protobuf:"bytes,2"`
}

// SandboxStatusRequest is containerd.runtime.sandbox.v1.SandboxStatusRequest.
type SandboxStatusRequest struct {
	SandboxID string `protobuf:"bytes,1"`
	Verbose   bool   `protobuf:"varint,2"`
}

// SandboxStatusResponse is containerd.runtime.sandbox.v1.SandboxStatusResponse.
type SandboxStatusResponse struct {
	SandboxID string                 `protobuf:"bytes,1"`
	Pid       uint32                 `protobuf:"varint,2"`
	State     string                 `protobuf:"bytes,3"`
	Info      map[string]string      `protobuf:"bytes,4"`
	CreatedAt *timestamppb.Timestamp `protobuf:"bytes,5"`
	ExitedAt  *timestamppb.Timestamp `protobuf:"bytes,6"`
	Extra     *anypb.Any             `protobuf:"bytes,7"`
}

// PingRequest is containerd.runtime.sandbox.v1.PingRequest.
type PingRequest struct {
	SandboxID string `protobuf:"bytes,1"`
}

// PingResponse is containerd.runtime.sandbox.v1.PingResponse.
type PingResponse struct{}

// ShutdownSandboxRequest is containerd.runtime.sandbox.v1.ShutdownSandboxRequest.
type ShutdownSandboxRequest struct {
	SandboxID string `protobuf:"bytes,1"`
}

// ShutdownSandboxResponse is containerd.runtime.sandbox.v1.ShutdownSandboxResponse.
type ShutdownSandboxResponse struct{}

// SandboxMetricsRequest is containerd.runtime.sandbox.v1.SandboxMetricsRequest.
type SandboxMetricsRequest struct {
	SandboxID string `protobuf:"bytes,1"`
}

// SandboxMetricsResponse is containerd.runtime.sandbox.v1.SandboxMetricsResponse.
type SandboxMetricsResponse struct {
	Metrics *Metric `protobuf:"bytes,1"`
}

// UpdateSandboxRequest is containerd.runtime.sandbox.v1.UpdateSandboxRequest, but for
// containerd's own record of the sandbox.
type UpdateSandboxRequest struct {
	SandboxID   string            `protobuf:"bytes,1"`
	Resources   *anypb.Any        `protobuf:"bytes,2"`
	Annotations map[string]string `protobuf:"bytes,3"`
	Fields      []string          `protobuf:"bytes,5"`
}

// UpdateSandboxResponse is containerd.runtime.sandbox.v1.UpdateSandboxResponse.
type UpdateSandboxResponse struct{}
