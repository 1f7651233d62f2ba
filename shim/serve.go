package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

const (
	// flushLimit is how long an ending process waits for containerd to take
	// its last events.
	flushLimit = 5 * time.Second

	// replyLimit is how long an ending process then waits for its peers to
	// hang up. containerd hangs up when it has the reply to Shutdown
	// (shimTask.delete in core/runtime/v2/shim.go), but not if the process
	// ends for another reason.
	replyLimit = 200 * time.Millisecond
)

// serve runs a shim process on a socket that it has claimed, until the process must end.
// serve calls ready first; ready may give up what the process has inherited, such as its
// standard streams.
func (c *call) serve(ctx context.Context, b *bootstrap, socket *os.File, t tenancy, ready func() error) error {
	// This comes first, so that every later return removes the socket.
	defer socket.Close()
	removed := sync.OnceValue(func() error {
		err := removeSocket(socket.Name())
		if err != nil {
			log.L.WithError(err).Warn("the shim's socket may be left behind")
		}
		return err
	})
	defer func() { _ = removed() }()

	restoreEnvironment()
	bundle, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("cannot find the bundle: %w", err)
	}
	if err := ready(); err != nil {
		return err
	}
	logs, err := openLog(filepath.Join(bundle, logFile), b.debug)
	if err != nil {
		return err
	}
	// Catching signals takes half a millisecond, so it runs concurrently. RPCs wait until
	// it is done.
	end, signaled := context.WithCancel(ctx)
	defer signaled()
	handled := make(chan struct{})
	go func() {
		handleSignals(signaled, logs)
		close(handled)
	}()
	// The processes of a container outlive the process of the OCI runtime that starts them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become child subreaper: %w", err)
	}
	seats, err := newSeats(t.seats, unixScheme+socket.Name(), c.id, bundle)
	if err != nil {
		return err
	}
	s, err := c.newServerProcess(b, t, seats, bundle, socket.Name(), handled)
	if err == nil && t.shared {
		s.seats.log = &sharedLog{logs, bundle}
		err = prepareShared()
	}
	if err != nil {
		return err
	}
	return c.serveTasks(ctx, end, s, socket, removed)
}

// serveTasks serves on the socket until the process must end. removed removes the socket's
// file.
func (c *call) serveTasks(ctx, end context.Context, s *serverProcess, socket *os.File, removed func() error) error {
	listener, err := net.FileListener(socket)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", socket.Name(), err)
	}
	defer listener.Close()
	s.upgrader.socket, s.upgrader.end = listener, end
	socket.Close() // FileListener has duplicated the descriptor.
	stop, err := c.config.Serve(ctx, s.Instance)
	if err != nil {
		return err
	}
	if s.Shared {
		s.seats.giveUp, s.seats.idle = s.GiveUp, s.Idle
		s.seats.register(s.Server)
	}
	s.upgrader.register(s.Server)
	err = s.run(ctx, end, listener)

	// The order matters: refuse new connections; then publish the last events,
	// before containerd sees the open connections end and cleans up itself.
	s.seats.stop()
	left := removed()
	listener.Close()
	if stop != nil {
		stop()
	}
	if left == nil && err == nil && end.Err() == nil { // Otherwise there may be tasks left.
		s.answers.finish()
	}
	s.flush(ctx)
	return err
}

// serverProcess is a shim process that serves.
type serverProcess struct {
	*Instance
	seats    *seats
	peers    *connections
	before   []savedPeer // connections of the program before this one
	answers  *answers
	gate     *gate
	upgrader *upgrader
	ended    chan struct{} // closed when the process is asked to end, and may
}

// newServerProcess returns the server of a process that was started for what is in a bundle. RPCs
// wait until ready is closed.
func (c *call) newServerProcess(b *bootstrap, t tenancy, seats *seats, bundle, socket string, ready <-chan struct{}) (*serverProcess, error) {
	s := &serverProcess{seats: seats, peers: &connections{}, answers: &answers{}, gate: newGate(), ended: make(chan struct{})}
	s.upgrader = &upgrader{call: c, process: s, bootstrap: b, socketPath: socket}
	rpcs, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(s.peers),
		ttrpc.WithChainUnaryServerInterceptor(after(ready), s.gate.intercept, (&trimmer{}).intercept, c.config.Intercept),
	)
	if err != nil {
		return nil, fmt.Errorf("cannot create ttrpc server: %w", err)
	}
	if err := os.Setenv(ttrpcAddressEnv, b.ttrpcAddress); err != nil {
		return nil, fmt.Errorf("cannot set $%s: %w", ttrpcAddressEnv, err)
	}
	if !t.shared {
		s.answers.own = bundle
	}
	end := sync.OnceFunc(func() { close(s.ended) })
	seats.begin = s.gate.begin
	s.Instance = &Instance{
		Runtime:   c.runtime(),
		Options:   b.options,
		Namespace: c.namespace,
		ID:        c.id,
		Bundle:    bundle,
		Debug:     b.debug,
		Shared:    t.shared,
		Server:    rpcs,
		Events:    newPublisher(b.ttrpcAddress, c.namespace),
		Begin:     s.gate.begin,
		Expects:   seats.expects,
		Forget:    seats.release,
		Shutdown: func() {
			if !t.shared || seats.close() {
				end()
			}
		},
		Removed: func(id, bundle string, e Exit) {
			s.answers.removed(bundle, e)
			seats.release(id)
		},
	}
	return s, nil
}

// run serves until the process is asked to end, by an RPC or by end.
func (s *serverProcess) run(ctx, end context.Context, listener net.Listener) error {
	failed := make(chan error, 1)
	peers := &resumingListener{Listener: patientListener{s.peers.listen(listener), acceptPause}, before: s.before}
	go func() { failed <- s.Server.Serve(ctx, peers) }()
	log.L.WithFields(log.Fields{"namespace": s.Namespace, "id": s.ID, "bundle": s.Bundle}).Debug("shim serves")
	select {
	case <-s.ended:
	case <-end.Done():
	case err := <-failed:
		return fmt.Errorf("cannot serve: %w", err)
	}
	return nil
}

// flush gives containerd the time to take the last events and answers.
func (s *serverProcess) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
	defer cancel()
	s.Events.Close(ctx)
	s.peers.awaitNone(replyLimit)
}

// serveSocket serves on the socket that the flag -socket names, for tests and for trying
// out a shim without containerd.
func (c *call) serveSocket(ctx context.Context) error {
	if c.socket == "" {
		return errors.New("no action: give start, delete, or a socket to serve on with -socket")
	}
	// Otherwise a write to standard error would end this process once nobody reads from it.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	socket, err := claimSocket(c.socket)
	if err == nil && socket == nil {
		err = fmt.Errorf("cannot listen on %s: another process already does", c.socket)
	}
	if err != nil {
		return err
	}
	b := &bootstrap{ttrpcAddress: os.Getenv(ttrpcAddressEnv), debug: c.debug, options: handlerOptions(&options.Options{})}
	return c.serve(ctx, b, socket, tenancy{seats: 1}, func() error { return nil })
}

// sharedProcs is how many processors a shared shim uses at most, see maxProcs: what it has
// to do for one pod must not wait for what it does for another.
const sharedProcs = 4

// prepareShared makes a process that was started in a bundle one that outlives the bundle.
func prepareShared() error {
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("cannot leave the bundle: %w", err)
	}
	runtime.GOMAXPROCS(min(sharedProcs, runtime.NumCPU()))
	return nil
}

// after returns an interceptor that waits for ready to be closed.
func after(ready <-chan struct{}) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		<-ready
		return method(ctx, u)
	}
}

// handleSignals ends the process on SIGTERM and SIGINT, and writes the stacks
// of all goroutines to the log on SIGUSR1.
func handleSignals(end func(), logs *logWriter) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1)
	go func() {
		for s := range signals {
			switch s {
			case unix.SIGTERM, unix.SIGINT:
				log.L.WithField("signal", s).Debug("a signal asks the shim to end")
				end()
			case unix.SIGUSR1:
				go logs.writeAll(fmt.Appendf(nil, "=== goroutine stacks ===\n%s\n=== end of stacks ===\n", stacks()), dumpLimit)
			}
		}
	}()
}

// stacks returns the stacks of all goroutines.
func stacks() []byte {
	for size := 16 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return buf[:n]
		}
	}
}
