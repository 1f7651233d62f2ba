package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"time"

	"containerd-shim-pause-v2/process/launch"
	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// loggerTimeout is how long a logging program may take to end after SIGTERM.
// The stock shim gives it the same time.
const loggerTimeout = 12 * time.Second

// LoggerReadyTimeout is how long a logging program may take to become ready. Without it, a
// logging program that hangs would block the create for ever.
const LoggerReadyTimeout = 30 * time.Second

// LoggerConfig has what starting a logging program takes.
type LoggerConfig struct {
	ID, Namespace string        // of the process's task; the program gets them in its environment
	Reaper        *reap.Reaper  // owns the program's process
	ReadyTimeout  time.Duration // how long the program may take to become ready
}

// logger is a running logging program, which takes a process's output.
//
// The protocol is in containerd's runtime-v2 document ("Logging"). The program reads the
// process's standard output and error from descriptors 3 and 4. When it is ready, it closes
// descriptor 5; with the scheme binary-v2, it writes a byte there first. Its arguments are
// the keys and values of the URI's query.
type logger struct {
	child    *reap.Child
	out, err *os.File // the write ends; nil after take
	ended    chan struct{}
}

func startLogger(ctx context.Context, uri *url.URL, r *LoggerConfig) (_ *logger, err error) {
	var files []*os.File
	defer func() {
		if err != nil {
			CloseAll(files...)
		}
	}()
	pipe := func() (rd, wr *os.File) {
		if err != nil {
			return nil, nil
		}
		rd, wr, err = os.Pipe()
		files = append(files, rd, wr)
		return rd, wr
	}
	outR, outW := pipe()
	errR, errW := pipe()
	readyR, readyW := pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make pipes for the logging program: %w", err)
	}

	var args []string
	for key, values := range uri.Query() {
		args = append(args, key)
		if len(values) > 0 {
			args = append(args, values[0])
		}
	}
	cmd := exec.Command(uri.Path, args...)
	cmd.Env = append(cmd.Env, "CONTAINER_ID="+r.ID, "CONTAINER_NAMESPACE="+r.Namespace)
	cmd.ExtraFiles = []*os.File{outR, errR, readyW}

	defer r.Reaper.Hold()()
	program, err := launch.Start(cmd)
	if err != nil {
		return nil, fmt.Errorf("cannot start the logging program %s: %w", uri.Path, err)
	}
	defer program.Close()
	l := &logger{child: r.Reaper.Claim(cmd.Process.Pid), out: outW, err: errW, ended: make(chan struct{})}
	// The reaper owns the process from here on. os.Process would keep a pidfd open.
	err = cmd.Process.Release()
	go l.await()
	if err != nil {
		l.kill()
		return nil, err
	}
	CloseAll(outR, errR, readyW)
	ctx, cancel := context.WithTimeoutCause(ctx, r.ReadyTimeout, fmt.Errorf("timed out after %v", r.ReadyTimeout))
	defer cancel()
	err = awaitReady(ctx, readyR, uri.Scheme == "binary-v2")
	if ctx.Err() == nil {
		// This does not take long: the program is executed, or its process has ended.
		if notExecuted := program.Await(); notExecuted != nil {
			err = notExecuted
		}
	}
	if err != nil {
		l.kill()
		return nil, fmt.Errorf("cannot use the logging program %s: %w", uri.Path, err)
	}
	return l, nil
}

// awaitReady waits until a logging program has closed its end of ready, or until ctx ends.
// It closes ready.
func awaitReady(ctx context.Context, ready *os.File, needByte bool) error {
	defer ready.Close()
	defer context.AfterFunc(ctx, func() { ready.Close() })()
	n, err := ready.Read(make([]byte, 1))
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("it did not become ready: %w", context.Cause(ctx))
	case err != nil && !errors.Is(err, io.EOF):
		return err
	case n == 0 && needByte:
		return errors.New("it ended, or closed descriptor 5 without writing a byte to it")
	}
	return nil
}

// await waits for the end of the program.
func (l *logger) await() {
	_, _ = l.child.Wait() // an exit status would be of no use
	close(l.ended)
}

// take returns the write ends, which the caller must close.
func (l *logger) take() (stdout, stderr *os.File) {
	stdout, stderr = l.out, l.err
	l.out, l.err = nil, nil
	return stdout, stderr
}

// stop asks the program to end (SIGTERM), and kills it if it does not end in time.
func (l *logger) stop() {
	CloseAll(l.out, l.err)
	if l.child.Signal(unix.SIGTERM) != nil {
		return
	}
	select {
	case <-l.ended:
	case <-time.After(loggerTimeout):
		l.kill()
	}
}

// kill kills the program and waits for its end.
func (l *logger) kill() {
	CloseAll(l.out, l.err)
	_ = l.child.Signal(unix.SIGKILL) // it may have ended just now
	<-l.ended
}
