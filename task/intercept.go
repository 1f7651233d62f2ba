package task

// Every RPC passes through here; errors become gRPC statuses.

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/status"
)

// Intercept turns the error of an RPC into the gRPC status that errdefs assigns to its
// kind, and a panic into an [errdefs.ErrInternal], so that the pod survives. It
// implements [ttrpc.UnaryServerInterceptor].
func Intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (response any, err error) {
	defer func() {
		if p := recover(); p != nil {
			response, err = nil, answerable(reportPanic(ctx, info, p))
		}
	}()
	response, err = method(ctx, unmarshal)
	if err != nil {
		return nil, answerable(err)
	}
	return response, nil
}

// reportPanic logs where a panic came from, and returns the error for the client.
func reportPanic(ctx context.Context, info *ttrpc.UnaryServerInfo, p any) error {
	name := "RPC"
	if info != nil {
		name = info.FullMethod
	}
	log.G(ctx).WithField("rpc", name).WithField("stack", string(debug.Stack())).Errorf("panic: %v", p)
	return fmt.Errorf("%s: the shim panicked (its log has the stack): %v: %w", name, p, errdefs.ErrInternal)
}

// maxErrorText is the longest error text that is sent to a client, in bytes. containerd
// copies it into logs and Kubernetes events.
const maxErrorText = 4096

// answerable returns the error as a gRPC status that can be encoded. Text that is not
// UTF-8 cannot be: ttrpc would close the connection, which containerd takes for the end
// of the shim. Such text comes from OCI runtimes, hooks and file names.
func answerable(err error) error {
	err = errgrpc.ToGRPC(err)
	s := status.Convert(err)
	text := cut(strings.ToValidUTF8(s.Message(), string(utf8.RuneError)), maxErrorText)
	if text == s.Message() {
		return err
	}
	return status.Error(s.Code(), text) // without the details, which repeat the text
}

// cut shortens valid UTF-8 text to at most limit bytes without splitting a character.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}
