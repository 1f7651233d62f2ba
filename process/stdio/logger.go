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

	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// loggerTimeout is how long a logging program may take to end after SIGTERM.
// The stock shim gives it the same.
const loggerTimeout = 12 * time.Second

// LoggerReadyTimeout is how long a logging program may take to become ready. Without a
// bound, one that hangs would hold the create for ever.
const LoggerReadyTimeout = 30 * time.Second

// LoggerConfig is what a logging program is told, and asked.
type LoggerConfig struct {
	ID, Namespace string
	Reaper        *reap.Reaper
	ReadyTimeout  time.Duration // how long it may take to become ready
}

// logger is a program that takes a process's output.
//
// Its protocol, from containerd's runtime-v2 document ("Logging"): the standard
// output and error come at descriptors 3 and 4; descriptor 5 is closed when it is
// ready, with binary-v2 after a byte has been written to it; arguments are the
// keys and values of the URI's query.
type logger struct {
	child    *reap.Child
	out, err *os.File // the write ends, until take
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
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the logging program: %w", err)
	}
	l := &logger{child: r.Reaper.Claim(cmd.Process.Pid), out: outW, err: errW, ended: make(chan struct{})}
	// From here on the process is the reaper's; os.Process would keep a pidfd.
	err = cmd.Process.Release()
	go func() {
		_, _ = l.child.Wait()
		close(l.ended)
	}()
	if err != nil {
		l.kill()
		return nil, err
	}
	CloseAll(outR, errR, readyW)
	ctx, cancel := context.WithTimeoutCause(ctx, r.ReadyTimeout, fmt.Errorf("nothing heard of it for %v", r.ReadyTimeout))
	defer cancel()
	if err := awaitReady(ctx, readyR, uri.Scheme == "binary-v2"); err != nil {
		l.kill()
		return nil, fmt.Errorf("cannot use the logging program %s: %w", uri.Path, err)
	}
	return l, nil
}

// awaitReady closes ready when it returns.
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
		return errors.New("it ended or closed descriptor 5 without a sign of readiness")
	}
	return nil
}

// take hands the write ends over.
func (l *logger) take() (stdout, stderr *os.File) {
	stdout, stderr = l.out, l.err
	l.out, l.err = nil, nil
	return stdout, stderr
}

// stop asks the program to end and waits until it has.
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

// kill ends the program at once.
func (l *logger) kill() {
	CloseAll(l.out, l.err)
	_ = l.child.Signal(unix.SIGKILL) // it may have ended just now
	<-l.ended
}
