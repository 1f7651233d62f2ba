package shim

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

const (
	// flushLimit is how long a process that ends waits for containerd to take
	// its last events.
	flushLimit = 5 * time.Second

	// replyLimit is how long it then waits for its peers to hang up.
	// containerd does when it has the reply to Shutdown (shimTask.delete in
	// core/runtime/v2/shim.go), but not if the end is not its own wish.
	replyLimit = 200 * time.Millisecond
)

// serve is the life of a shim process.
func (c *call) serve(ctx context.Context) error {
	saveMemory()

	// First of all, so that every later way out removes the socket.
	listener, err := c.listener()
	if err != nil {
		return err
	}
	defer listener.Close()
	removed := sync.OnceFunc(func() {
		if err := removeSocket(listener.Addr().String()); err != nil {
			log.L.WithError(err).Warn("a shim socket may be left")
		}
	})
	defer removed()

	logs, err := openLog(logFile, c.debug)
	if err != nil {
		return err
	}
	peers := &connections{}
	p, ended, err := c.newProcess(peers)
	if err != nil {
		return err
	}
	handleSignals(p.Shutdown, logs)
	// Processes of containers outlive those of the OCI runtime that start them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot become child subreaper: %w", err)
	}

	stop, err := c.program.Serve(ctx, p)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- p.Server.Serve(ctx, listener) }()
	log.L.WithFields(log.Fields{"namespace": c.namespace, "id": c.id, "bundle": p.Bundle}).Debug("shim serves")

	select {
	case <-ended:
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("cannot serve: %w", err)
	}

	// The order matters: no new connections; then the last events, before
	// containerd sees the open connections end and cleans up by itself.
	removed()
	listener.Close()
	if stop != nil {
		stop()
	}
	flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushLimit)
	defer cancel()
	p.Events.Close(flush)
	peers.awaitNone(replyLimit)
	return err
}

// listener returns the listener that `start` left open for this process, or
// one on -socket.
func (c *call) listener() (*net.UnixListener, error) {
	if c.socket != "" {
		l, err := claimSocket(c.socket)
		if err == nil && l == nil {
			err = fmt.Errorf("cannot listen on %s: a shim listens there", c.socket)
		}
		return l, err
	}
	unix.CloseOnExec(listenerFD)
	f := os.NewFile(listenerFD, "listener")
	defer f.Close() // FileListener has a copy.
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot take over the listener (file descriptor %d) from start: %w", listenerFD, err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("cannot serve on %s: not a unix socket", l.Addr())
	}
	return u, nil
}

// newProcess returns the process that is served, and a channel that is closed
// when it is asked to end.
func (c *call) newProcess(peers *connections) (*Process, <-chan struct{}, error) {
	bundle, err := os.Getwd()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot find the bundle: %w", err)
	}
	server, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(peers),
		ttrpc.WithUnaryServerInterceptor((&trimmer{}).intercept),
	)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot create ttrpc server: %w", err)
	}
	options, err := takeOptions()
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan struct{})
	return &Process{
		Options:   options,
		Namespace: c.namespace,
		ID:        c.id,
		Bundle:    bundle,
		Debug:     c.debug,
		Server:    server,
		Events:    newPublisher(os.Getenv(ttrpcAddressEnv), c.namespace),
		Shutdown:  sync.OnceFunc(func() { close(ended) }),
	}, ended, nil
}

// handleSignals ends the process on SIGTERM and SIGINT, and writes the stacks
// of all goroutines to the log on SIGUSR1. It survives SIGPIPE, which the Go
// runtime makes deadly for stderr; it does not ignore that signal, because
// containers would inherit it.
func handleSignals(shutdown func(), logs *logWriter) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGUSR1, unix.SIGPIPE)
	go func() {
		for s := range signals {
			switch s {
			case unix.SIGTERM, unix.SIGINT:
				log.L.WithField("signal", s).Debug("shim is asked to end")
				shutdown()
			case unix.SIGUSR1:
				fmt.Fprintf(logs, "=== goroutine stacks ===\n%s\n=== end of stacks ===\n", stacks())
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
