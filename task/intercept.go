package task

// The one place that every RPC passes.

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

// Intercept turns the error of an RPC into a gRPC status of the code that errdefs assigns
// to its kind, and a panic into one of [errdefs.ErrInternal]: the pod goes on. It
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
	return fmt.Errorf("%s: the shim has panicked, its log says where: %v: %w", name, p, errdefs.ErrInternal)
}

// maxErrorText is the length in bytes of the longest error text that is answered. containerd
// writes it into logs and events of Kubernetes.
const maxErrorText = 4096

// answerable returns the error as a gRPC status that can be encoded: one with text that is
// not UTF-8 cannot, and ttrpc then closes the connection, which containerd takes for the end
// of the shim. Such text comes from OCI runtimes, hooks and names of files.
func answerable(err error) error {
	err = errgrpc.ToGRPC(err)
	s := status.Convert(err)
	text := cut(strings.ToValidUTF8(s.Message(), string(utf8.RuneError)), maxErrorText)
	if text == s.Message() {
		return err
	}
	return status.Error(s.Code(), text) // without details, which repeat the text
}

// cut returns the first bytes of valid UTF-8 text, at most limit, that are whole characters.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	for !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}
