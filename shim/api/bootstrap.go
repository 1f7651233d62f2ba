package api

import (
	"google.golang.org/protobuf/types/known/anypb"
)

// BootstrapParams is containerd.runtime.bootstrap.v1.BootstrapParams.
type BootstrapParams struct {
	InstanceID             string       `protobuf:"bytes,1"`
	Namespace              string       `protobuf:"bytes,2"`
	LogLevel               LogLevel     `protobuf:"varint,3"`
	ContainerdVersion      string       `protobuf:"bytes,4"`
	ContainerdTtrpcAddress string       `protobuf:"bytes,5"`
	ContainerdGrpcAddress  string       `protobuf:"bytes,6"`
	ContainerdBinary       string       `protobuf:"bytes,7"`
	Extensions             []*Extension `protobuf:"bytes,8"`
	SocketDir              *string      `protobuf:"bytes,9"`
}

// BootstrapResult is containerd.runtime.bootstrap.v1.BootstrapResult.
type BootstrapResult struct {
	Version      int32             `protobuf:"varint,1"`
	Address      string            `protobuf:"bytes,2"`
	Protocol     string            `protobuf:"bytes,3"`
	Capabilities []int32           `protobuf:"varint,4"`
	Metadata     map[string]string `protobuf:"bytes,5"`
	Extensions   []*Extension      `protobuf:"bytes,6"`
}

// Extension is containerd.runtime.bootstrap.v1.Extension.
type Extension struct {
	Value *anypb.Any `protobuf:"bytes,1"`
}

// LogLevel is containerd.runtime.bootstrap.v1.LogLevel.
type LogLevel int32

// LogLevelDebug and lower levels are those of a containerd that logs for debugging.
const LogLevelDebug LogLevel = -4
