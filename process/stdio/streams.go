package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"time"

	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Config has the sources and destinations of a process's streams, as in containerd's API:
// paths of fifos or files, or for Stdout also a URI with the scheme file, binary or
// binary-v2. An empty one means /dev/null. With a terminal, Stdout also carries standard
// error.
type Config struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// drainTimeout bounds how long a delete waits for output that a process has left in its
// pipes. A child that outlives the process may hold them open for ever.
const drainTimeout = 10 * time.Second

// Streams are the open ends of a process's streams on the shim's side.
//
//	process ──pipe──▶ copy in the shim ──▶ fifo, file
//	process ──pipe──▶ logging program
//	process ◀──pipe── copy in the shim ◀── fifo
type Streams struct {
	Child   [3]*os.File // the process's ends, closed once it has started; may be nil
	in      *input      // nil without standard input
	outputs []*output
	logger  *logger // nil without a logging program

	copies sync.WaitGroup // one for each output that has not ended, suspended or not
	runs   sync.WaitGroup // the copies that run
	tty    *os.File       // the terminal's master; nil without a terminal

	// suspended is made by Suspend, and closed when all copies have stopped; else nil.
	suspended chan struct{}
	// continued is closed when the last Continue that could not start the copies at once has;
	// nil if there was none.
	continued chan struct{}

	// Patience is how long Settle waits at most for slow readers.
	Patience time.Duration
}

// flow is what is copied from one file to another, see Streams.run.
type flow struct {
	src, dst *os.File
	// rest was read from src, and has not been written, when the copy was suspended.
	rest []byte
	// ended says that there is nothing more to copy. Like rest, it must not be read while
	// the copy may run.
	ended bool
	// file says that src is a file that is not in Go's poller.
	file bool
}

// input copies a fifo or file to a process's standard input.
type input struct {
	flow
	// keep holds a fifo open for writing, so that the input ends when it is closed through
	// the API, and not when a client that wrote to it goes away. It is nil for files other
	// than fifos.
	keep *os.File
}

// output copies a process's output to its destination.
type output struct {
	flow
	// keep holds a fifo open for reading until the process is deleted, so that the process
	// gets no SIGPIPE when the client goes away, and output waits for the next client. It is
	// nil for files other than fifos.
	keep *os.File
}

func (o *output) close() { CloseAll(o.src, o.dst, o.keep) }

// isAbandoned reports whether a fifo has no reader any more, once keep is closed: poll(2)
// returns POLLERR then.
func (o *output) isAbandoned() bool {
	conn, err := o.dst.SyscallConn()
	if err != nil {
		return true
	}
	abandoned := false
	closed := conn.Control(func(fd uintptr) { abandoned = reap.IsReady(int(fd), 0) })
	return closed != nil || abandoned
}

// inFlight returns how many bytes of the output are in the process's pipe and the fifo, and
// so have not been read yet.
func (o *output) inFlight() int { return bytesIn(o.src) + bytesIn(o.keep) }

// Owner is the user and group to whom a process's pipes belong, so that the process may
// reopen them through /dev/stdout.
type Owner struct{ UID, GID uint32 }

// Open opens the streams of a process without a terminal: the client's ends, and the pipes to
// the process, which belong to the user and group in the runtime options.
func Open(ctx context.Context, sio Config, l *LoggerConfig, o Owner) (_ *Streams, err error) {
	s := &Streams{Patience: settleTimeout}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if sio.Stdin != "" {
		if err := s.openInput(sio.Stdin, o); err != nil {
			return nil, err
		}
	}
	target, err := parseTarget(sio.Stdout)
	if err != nil {
		return nil, err
	}
	switch target.Scheme {
	case "binary", "binary-v2":
		s.logger, err = startLogger(ctx, target, l)
		if err != nil {
			return nil, err
		}
		s.Child[1], s.Child[2] = s.logger.take()
		return s, nil
	case "file":
		return s, s.sendToFile(target.Path, sio, o)
	}
	for fd, path := range map[int]string{1: sio.Stdout, 2: sio.Stderr} {
		if path == "" {
			continue
		}
		out, err := openSink(ctx, path)
		if err != nil {
			return nil, err
		}
		if err := s.addOutput(fd, out, o); err != nil {
			return nil, err
		}
	}
	if s.Child[1] == nil && s.Child[2] == nil {
		// If both were nil, RunToEnd would collect the process's output as messages of the
		// OCI runtime.
		if s.Child[1], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// parseTarget parses a URI, or a path, which it returns as a URI without a scheme.
func parseTarget(stdout string) (*url.URL, error) {
	u, err := url.Parse(stdout)
	if err != nil {
		return nil, fmt.Errorf("cannot parse standard output %q: %w: %w", stdout, err, errdefs.ErrInvalidArgument)
	}
	switch u.Scheme {
	case "", "fifo", "file", "binary", "binary-v2":
		return u, nil
	}
	return nil, fmt.Errorf("standard output %q has the unknown scheme %q: %w", stdout, u.Scheme, errdefs.ErrInvalidArgument)
}

// sendToFile sends both outputs to one file.
func (s *Streams) sendToFile(path string, sio Config, o Owner) error {
	for fd, stream := range []string{1: sio.Stdout, 2: sio.Stderr} {
		if stream == "" {
			continue
		}
		dst, err := openLogFile(path)
		if err != nil {
			return err
		}
		if err := s.addOutput(fd, &output{flow: flow{dst: dst}}, o); err != nil {
			return err
		}
	}
	return nil
}

func (s *Streams) addOutput(fd int, out *output, o Owner) error {
	s.outputs = append(s.outputs, out)
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe for output: %w", err)
	}
	out.src, s.Child[fd] = r, w
	return chown(w, o)
}

func (s *Streams) openInput(path string, o Owner) error {
	in, err := openSource(path)
	if err != nil {
		return err
	}
	s.in = in
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe for input: %w", err)
	}
	s.Child[0], in.dst = r, w
	return chown(r, o)
}

// chown gives a pipe to the owner, unless that is root.
func chown(f *os.File, o Owner) error {
	if o == (Owner{}) {
		return nil
	}
	if err := f.Chown(int(o.UID), int(o.GID)); err != nil {
		return fmt.Errorf("cannot give a pipe to %d:%d: %w", o.UID, o.GID, err)
	}
	return nil
}

// Start starts copying. It must be called after the process has been started.
func (s *Streams) Start() {
	s.CloseChildEnds()
	s.copies.Add(len(s.outputs))
	s.run()
}

// run copies what has not ended.
func (s *Streams) run() {
	if in := s.in; in != nil && !in.ended {
		s.runs.Go(func() {
			if in.ended = in.copy(false); !in.ended {
				return
			}
			CloseAll(in.dst, in.src)
			if s.tty != nil {
				s.hangUp()
			}
		})
	}
	for _, o := range s.outputs {
		if o.ended {
			continue
		}
		s.runs.Go(func() {
			if o.ended = o.copy(true); !o.ended {
				return
			}
			defer s.copies.Done()
			if o.src != s.tty {
				o.src.Close()
			}
			o.dst.Close()
		})
	}
}

// copy copies until the source ends, or until the source or destination fails; then it
// returns true. It returns false if it has been suspended. It reports no error, because only
// the process could handle it, and gets EPIPE, or sees the end of its input.
func (f *flow) copy(maySplice bool) (ended bool) {
	if len(f.rest) > 0 {
		n, err := f.dst.Write(f.rest)
		f.rest = f.rest[n:]
		if err != nil {
			return !isSuspended(err)
		}
		f.rest = nil
	}
	err := errNoPipes
	if maySplice {
		err = spliceStream(f.dst, f.src)
	}
	if errors.Is(err, errNoPipes) {
		f.rest, err = copyStream(f.dst, f.src, !f.file)
	}
	return !isSuspended(err)
}

// CloseChildEnds closes the process's ends. It must be called after the process, or the OCI
// runtime that makes it, has been started and so has its own copies.
func (s *Streams) CloseChildEnds() {
	for i, f := range s.Child {
		if f != nil {
			f.Close()
			s.Child[i] = nil
		}
	}
}

// CloseInput ends standard input. What was written to it before can still be read.
func (s *Streams) CloseInput() {
	if s.in != nil {
		CloseAll(s.in.keep)
	}
}

const (
	// maxInFlight is how many bytes of an output may be unread when the exit of the process
	// is published. A client that stops reading at the exit loses no more than that.
	maxInFlight = 64 << 10

	settleTimeout = time.Second
)

// Settle waits, at most for Patience, until clients have read all but a small part of each
// output.
func (s *Streams) Settle() {
	end := time.Now().Add(s.Patience)
	for nap := time.Millisecond; time.Now().Before(end); nap = min(2*nap, 10*time.Millisecond) {
		if s.InFlight() <= maxInFlight {
			return
		}
		time.Sleep(nap)
	}
}

// InFlight returns how many bytes of an output nobody has read yet. With several outputs, it
// returns the largest number.
func (s *Streams) InFlight() (n int) {
	for _, o := range s.outputs {
		n = max(n, o.inFlight())
	}
	return n
}

// bytesIn returns how many bytes are in a pipe (FIONREAD, pipe(7)). It returns zero for a
// closed pipe and for other files.
func bytesIn(f *os.File) (n int) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) {
		if _, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err != nil {
			return // not a pipe: FIONREAD has another meaning for other files
		}
		if unread, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			n = unread
		}
	})
	return n
}

// Drain waits until all output has been copied, at most for drainTimeout, and fails if it has
// not been. It waits only for readers that are there: output that nobody reads is dropped.
func (s *Streams) Drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.copies.Wait()
		close(done)
	}()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for nap := time.Millisecond; ; nap = min(2*nap, 50*time.Millisecond) {
		for _, o := range s.outputs {
			if o.keep == nil {
				continue
			}
			o.keep.Close()
			if o.isAbandoned() {
				o.close()
			}
		}
		select {
		case <-done:
			return nil
		case <-time.After(nap):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close closes all files, which ends copies that are still running, and stops the logging
// program. It may be called more than once and at any time.
func (s *Streams) Close() {
	s.CloseChildEnds()
	if s.in != nil {
		CloseAll(s.in.src, s.in.keep, s.in.dst)
	}
	for _, o := range s.outputs {
		o.close()
	}
	CloseAll(s.tty)
	if s.logger != nil {
		s.logger.stop()
	}
}

// CloseAll closes those of the files that are not nil.
func CloseAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// buffers hold what one read(2) takes from a pipe.
var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// copyStream copies until the source ends, or until a file fails. If src is in Go's poller,
// it holds a buffer only while there is something to copy, since most streams are silent
// most of the time. If the copy is suspended, rest is what was read and not written.
func copyStream(dst, src *os.File, polled bool) (rest []byte, err error) {
	for {
		if polled {
			if err := waitReadable(src); err != nil {
				return nil, err
			}
		}
		buf := buffers.Get().(*[16 << 10]byte)
		n, err := src.Read(buf[:])
		if n > 0 {
			written, werr := dst.Write(buf[:n])
			if isSuspended(werr) {
				rest = bytes.Clone(buf[written:n])
			}
			err = errors.Join(err, werr)
		}
		buffers.Put(buf)
		if err != nil {
			return rest, err
		}
	}
}

// waitReadable waits until a read from f would not block, because there is data, the end or
// an error. It fails if f was closed, or is suspended.
func waitReadable(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool { return reap.IsReady(int(fd), unix.POLLIN) })
}
