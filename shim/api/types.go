package api

import (
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Mount is containerd.types.Mount.
type Mount struct {
	Type    string   `protobuf:"bytes,1"`
	Source  string   `protobuf:"bytes,2"`
	Target  string   `protobuf:"bytes,3"`
	Options []string `protobuf:"bytes,4"`
}

// Platform is containerd.types.Platform.
type Platform struct {
	OS           string   `protobuf:"bytes,1"`
	Architecture string   `protobuf:"bytes,2"`
	Variant      string   `protobuf:"bytes,3"`
	OSVersion    string   `protobuf:"bytes,4"`
	OSFeatures   []string `protobuf:"bytes,5"`
}

// Metric is containerd.types.Metric.
type Metric struct {
	Timestamp *timestamppb.Timestamp `protobuf:"bytes,1"`
	ID        string                 `protobuf:"bytes,2"`
	Data      *anypb.Any             `protobuf:"bytes,3"`
}

// Envelope is containerd.types.Envelope.
type Envelope struct {
	Timestamp *timestamppb.Timestamp `protobuf:"bytes,1"`
	Namespace string                 `protobuf:"bytes,2"`
	Topic     string                 `protobuf:"bytes,3"`
	Event     *anypb.Any             `protobuf:"bytes,4"`
}

// RuntimeInfo is containerd.types.RuntimeInfo.
type RuntimeInfo struct {
	Name        string            `protobuf:"bytes,1"`
	Version     *RuntimeVersion   `protobuf:"bytes,2"`
	Options     *anypb.Any        `protobuf:"bytes,3"`
	Features    *anypb.Any        `protobuf:"bytes,4"`
	Annotations map[string]string `protobuf:"bytes,5"`
}

// RuntimeVersion is containerd.types.RuntimeVersion.
type RuntimeVersion struct {
	Version  string `protobuf:"bytes,1"`
	Revision string `protobuf:"bytes,2"`
}
