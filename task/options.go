package task

import (
	"containerd-shim-pause-v2/process"

	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/types/known/anypb"
)

// HandlerOptions are the options of a runtime handler.
type HandlerOptions struct {
	// Runc has the options of the stock shim; it is never nil.
	Runc *options.Options
	// The next three have the names and meanings of settings of containerd's CRI. They
	// apply to sandboxes of the Sandbox API, whose specs are made here.
	EnableUnprivilegedPorts bool
	EnableUnprivilegedICMP  bool
	RestrictOOMScoreAdj     bool
	// AlwaysCallRuntime is the option of that name in [process.Options].
	AlwaysCallRuntime bool
}

// DecodeOptions decodes the runtime options of a request, in any form that a client may
// send. A request without options is valid.
type DecodeOptions func(*anypb.Any) (*HandlerOptions, error)

// process returns the options that concern the OCI runtime.
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
