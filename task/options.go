package task

import (
	"containerd-shim-pause-v2/process"

	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/types/known/anypb"
)

// HandlerOptions are the options of a runtime handler.
type HandlerOptions struct {
	// Runc are those of the stock shim; never nil.
	Runc *options.Options
	// The next three have the names and the meaning of settings of containerd's CRI. They
	// are for sandboxes of the Sandbox API, whose specs are made here.
	EnableUnprivilegedPorts bool
	EnableUnprivilegedICMP  bool
	RestrictOOMScoreAdj     bool
	// AlwaysCallRuntime is the option of that name in package process.
	AlwaysCallRuntime bool
}

// DecodeOptions decodes the runtime options of a request, in whichever form the
// client has sent them. None at all are valid.
type DecodeOptions func(*anypb.Any) (*HandlerOptions, error)

// process returns those that concern the OCI runtime.
func (o *HandlerOptions) process() process.Options {
	return process.Options{
		BinaryName:        o.Runc.BinaryName,
		Root:              o.Runc.Root,
		SystemdCgroup:     o.Runc.SystemdCgroup,
		NoPivotRoot:       o.Runc.NoPivotRoot,
		NoNewKeyring:      o.Runc.NoNewKeyring,
		IoUID:             o.Runc.IoUid,
		IoGID:             o.Runc.IoGid,
		CriuWorkPath:      o.Runc.CriuWorkPath,
		AlwaysCallRuntime: o.AlwaysCallRuntime,
	}
}
