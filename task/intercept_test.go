package task

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"containerd-shim-pause-v2/process/proctest"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestPanicOfAnRPC checks that the shim and its other tasks survive, and that the id can
// be used again.
func TestPanicOfAnRPC(t *testing.T) {
	wantInternal := func(t *testing.T, err error) {
		t.Helper()
		wantKind(t, err, errdefs.IsInternal, "an internal one")
		if err != nil && !strings.Contains(err.Error(), "panicked") {
			t.Errorf("the error does not say what has happened: %v", err)
		}
	}
	t.Run("create of a task", func(t *testing.T) {
		n, ctx := newNode(t), proctest.Context(t)
		n.container(forever)
		n.service.decode = func(*anypb.Any) (*HandlerOptions, error) { panic("no options") }
		r := n.containerRequest("d", forever)
		_, err := n.Create(ctx, r)
		wantInternal(t, err)
		n.service.decode = decodeOptions
		n.make(r)
		_, err = n.State(ctx, &taskapi.StateRequest{ID: "c"})
		proctest.Must(t, err)
	})
	t.Run("create of a task, second generation", func(t *testing.T) {
		n := newNode(t)
		n.service.decode = func(*anypb.Any) (*HandlerOptions, error) { panic("no options") }
		r := n.containerRequest("d", forever)
		_, err := n.v2.Create(proctest.Context(t), &taskv2.CreateTaskRequest{ID: r.ID, Bundle: r.Bundle})
		wantInternal(t, err)
	})
	t.Run("create of a sandbox", func(t *testing.T) {
		n, h := newNode(t), newHome(t)
		options := n.service.options
		n.service.options = nil
		r := n.createRequest(h, config(t))
		_, err := n.sandboxes.CreateSandbox(proctest.Context(t), r)
		wantInternal(t, err)
		n.service.options = options
		n.createSandbox(r)
	})
	t.Run("shutdown", func(t *testing.T) {
		n, ctx := newNode(t), proctest.Context(t)
		shutdown := n.service.host.Shutdown
		n.service.host.Shutdown = func() { panic("not now") }
		_, err := n.Shutdown(ctx, &taskapi.ShutdownRequest{})
		wantInternal(t, err)
		n.service.host.Shutdown = shutdown
		_, err = n.Shutdown(ctx, &taskapi.ShutdownRequest{}) // No lock is held.
		proctest.Must(t, err)
	})
}

// TestErrorTextOfAnyKind returns any text that an OCI runtime may write to a ttrpc
// client, whose connection must survive.
func TestErrorTextOfAnyKind(t *testing.T) {
	for name, text := range map[string]string{
		"not UTF-8":                   "a \xff\xfe b",
		"long":                        strings.Repeat("x", 3*maxErrorText),
		"long, of long characters":    strings.Repeat("\u20ac", maxErrorText),
		"long and not UTF-8":          strings.Repeat("\xe2\x82", maxErrorText),
		"longer than ttrpc's message": strings.Repeat("y\xff", 3<<20),
	} {
		t.Run(name, func(t *testing.T) {
			n, ctx := newNode(t), proctest.Context(t)
			n.container(forever)
			n.service.decode = func(*anypb.Any) (*HandlerOptions, error) {
				return nil, errors.Join(errors.New(text), errdefs.ErrAborted)
			}
			_, err := n.Create(ctx, n.containerRequest("d", forever))
			s, _ := status.FromError(err)
			if s.Code() != codes.Aborted {
				t.Errorf("got code %s", s.Code())
			}
			if !utf8.ValidString(s.Message()) || len(s.Message()) > maxErrorText || len(s.Message()) < len("a b") {
				t.Errorf("got %d bytes: %.100q", len(s.Message()), s.Message())
			}
			_, err = n.State(ctx, &taskapi.StateRequest{ID: "c"})
			proctest.Must(t, err)
		})
	}
	t.Run("of the OCI runtime", func(t *testing.T) {
		n, ctx := newNode(t), proctest.Context(t)
		n.container(forever)
		n.tell("fail-create", "bananas \xff are out")
		_, err := n.Create(ctx, n.containerRequest("d", forever))
		if err == nil || !strings.Contains(err.Error(), "bananas") {
			t.Errorf("got error %v", err)
		}
		_, err = n.State(ctx, &taskapi.StateRequest{ID: "c"})
		proctest.Must(t, err)
	})
	t.Run("of a panic", func(t *testing.T) {
		n, ctx := newNode(t), proctest.Context(t)
		n.service.decode = func(*anypb.Any) (*HandlerOptions, error) { panic("\xff") }
		_, err := n.Create(ctx, n.containerRequest("d", forever))
		wantKind(t, err, errdefs.IsInternal, "an internal one")
		_, err = n.Connect(ctx, &taskapi.ConnectRequest{ID: "c"})
		proctest.Must(t, err)
	})
}

func TestErrorTextIsLeftAsItIs(t *testing.T) {
	for _, err := range []error{
		errdefs.ErrNotFound,
		errors.Join(errors.New("first"), errdefs.ErrNotFound),
		context.Canceled,
		status.Error(codes.AlreadyExists, "text"),
		errors.New(strings.Repeat("x", maxErrorText)),
	} {
		if got, want := answerable(err), errgrpc.ToGRPC(err); got.Error() != want.Error() || status.Code(got) != status.Code(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if got := cut("ab\u20ac", 4); got != "ab" {
		t.Errorf("cut to %q", got)
	}
}

func TestSpecOfASandboxThatIsNone(t *testing.T) {
	for _, text := range []string{"null", "[]", `""`, `{"linux": []}`, "", "{"} {
		t.Run(text, func(t *testing.T) {
			n, h := newNode(t), newHome(t)
			proctest.Must(t, os.WriteFile(filepath.Join(h.bundle, "config.json"), []byte(text), 0o600))
			r := n.createRequest(h, nil)
			r.NetnsPath = "/proc/self/ns/net"
			_, err := n.sandboxes.CreateSandbox(proctest.Context(t), r)
			wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
			_, err = n.sandboxes.SandboxMetrics(proctest.Context(t), &sandboxapi.SandboxMetricsRequest{SandboxID: "pod"})
			wantKind(t, err, errdefs.IsNotFound, "not found")
		})
	}
}
