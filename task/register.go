package task

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"

	"containerd-shim-pause-v2/shim/wire"
)

// Register serves the methods on the server under the names of both generations
// of the Task service. Their messages are the same in all but the package's
// name, which is not on the wire.
func (s *Service) Register(server *ttrpc.Server) {
	desc := &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State":      method(s.state),
		"Create":     method(s.create),
		"Start":      method(s.start),
		"Delete":     method(s.delete),
		"Pids":       method(s.pids),
		"Pause":      method(s.pause),
		"Resume":     method(s.resume),
		"Checkpoint": method(s.checkpoint),
		"Kill":       method(s.kill),
		"Exec":       method(s.exec),
		"ResizePty":  method(s.resizePty),
		"CloseIO":    method(s.closeIO),
		"Update":     method(s.update),
		"Wait":       method(s.wait),
		"Stats":      method(s.stats),
		"Connect":    method(s.connect),
		"Shutdown":   method(s.shutDown),
	}}
	for _, name := range []string{"containerd.task.v2.Task", "containerd.task.v3.Task"} {
		server.RegisterService(name, desc)
	}
}

// RegisterSandbox serves the Sandbox service on the server.
func (s *Service) RegisterSandbox(server *ttrpc.Server) {
	server.RegisterService("containerd.runtime.sandbox.v1.Sandbox", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"CreateSandbox":   method(s.createSandbox),
		"StartSandbox":    method(s.startSandbox),
		"Platform":        method(s.platform),
		"StopSandbox":     method(s.stopSandbox),
		"WaitSandbox":     method(s.waitSandbox),
		"SandboxStatus":   method(s.sandboxStatus),
		"PingSandbox":     method(s.pingSandbox),
		"ShutdownSandbox": method(s.shutdownSandbox),
		"SandboxMetrics":  method(s.sandboxMetrics),
		"UpdateSandbox":   method(s.updateSandbox),
	}})
}

// method makes a ttrpc method of a function: it decodes the request, and turns
// the error into a gRPC status of the code that errdefs assigns to its kind.
func method[Request, Response any](f func(context.Context, *Request) (*Response, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		request := new(Request)
		if err := unmarshal(wire.Message(request)); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("cannot decode the request: %w", err))
		}
		response, err := f(ctx, request)
		if err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
		return wire.Message(response), nil
	}
}
