package shim

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// shortListener is a listener of a kernel that is short of something: accept(2) fails some times
// with each of the errors.
type shortListener struct {
	net.Listener
	errs []error
}

func (l *shortListener) Accept() (net.Conn, error) {
	if len(l.errs) == 0 {
		return l.Listener.Accept()
	}
	err := l.errs[0]
	l.errs = l.errs[1:]
	return nil, &net.OpError{Op: "accept", Net: "unix", Addr: l.Addr(), Err: os.NewSyscallError("accept4", err)}
}

func listenShort(t *testing.T, errs ...error) *shortListener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(shortDir(t), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &shortListener{l, errs}
}

func TestListenerOutlastsAWantOfMemory(t *testing.T) {
	captureLog(t)
	l := listenShort(t, unix.ENOMEM, unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE, unix.ECONNABORTED)
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	server.RegisterService("test.Shim", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Do": func(_ context.Context, unmarshal func(any) error) (any, error) {
			var verb wrapperspb.StringValue
			return &verb, unmarshal(&verb)
		},
	}})
	served := make(chan error, 1)
	go func() { served <- server.Serve(t.Context(), patientListener{l, 1}) }()

	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatalf("%v; the server has ended: %v", err, <-served)
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	var answer wrapperspb.StringValue
	if err := client.Call(t.Context(), "test.Shim", "Do", wrapperspb.String("x"), &answer); err != nil || answer.Value != "x" {
		t.Errorf("the answer is %q, error %v", answer.Value, err)
	}
	select {
	case err := <-served:
		t.Fatalf("the server has ended: %v", err)
	default:
	}
	server.Close()
	if err := <-served; !errors.Is(err, ttrpc.ErrServerClosed) {
		t.Errorf("the server has ended with %v", err)
	}
}

func TestListenerEndsAtErrorsThatDoNotPass(t *testing.T) {
	l := listenShort(t, unix.EINVAL)
	if _, err := (patientListener{l, 1}).Accept(); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("got error %v", err)
	}
	l.Close()
	if _, err := (patientListener{l, 1}).Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("got error %v after Close", err)
	}
}
