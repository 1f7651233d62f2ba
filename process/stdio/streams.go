package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync"
	"time"

	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Config names where the streams of a process lead, as in containerd's API: paths
// of fifos, or for Stdout a URI with the scheme file, binary or binary-v2. Empty
// is /dev/null. With a terminal, Stdout carries the standard error as well.
type Config struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// drainTimeout bounds how long a delete waits for output that a process has left
// in its pipes; a child that outlives it may hold them open for ever.
const drainTimeout = 10 * time.Second

// Streams are the open ends of a process's streams on the shim's side.
//
//	process ──pipe──▶ copy in the shim ──▶ fifo, file
//	process ──pipe──▶ logging program
//	process ◀──pipe── copy in the shim ◀── fifo
type Streams struct {
	Child   [3]*os.File // the process's ends, closed as soon as it is started; may be nil
	in      *input      // nil without standard input
	outputs []*output
	logger  *logger

	copies sync.WaitGroup // the outputs' copies
	tty    *os.File       // the console's master, if there is one

	// Patience is how long the exit is held back at most for readers that are too slow.
	Patience time.Duration
}

// input copies a fifo or file to a process's standard input.
type input struct {
	src *os.File
	// keep holds a fifo open for writing, so that the input does not end when a
	// client that wrote to it goes away, but when it is closed through the API. It is
	// nil for all but fifos.
	keep *os.File
	dst  *os.File
}

// output copies a process's output to its destination.
type output struct {
	src, dst *os.File
	// keep holds a fifo open for reading until the process is deleted, so that the process
	// gets no SIGPIPE when the client goes away, and output waits for the next one. It is
	// nil for all but fifos.
	keep *os.File
}

func (o *output) close() { CloseAll(o.src, o.dst, o.keep) }

// isAbandoned says whether nobody will read a fifo any more whose keep is closed: poll(2)
// has POLLERR then.
func (o *output) isAbandoned() bool {
	conn, err := o.dst.SyscallConn()
	if err != nil {
		return true
	}
	abandoned := false
	closed := conn.Control(func(fd uintptr) { abandoned = reap.IsReady(int(fd), 0) })
	return closed != nil || abandoned
}

// inFlight returns how many bytes the process has written to a fifo that nobody has read yet.
func (o *output) inFlight() int { return bytesIn(o.src) + bytesIn(o.keep) }

// Owner is the user and group who may reopen a process's pipes, through /dev/stdout.
type Owner struct{ UID, GID uint32 }

// Open opens all that the streams of a process without terminal need.
// The pipes belong to the user and group which the runtime options give.
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
		// go-runc would collect the output itself, through a pipe that the process
		// inherits, and wait for the end of it.
		if s.Child[1], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// parseTarget takes a path for a URI without scheme.
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
		if err := s.addOutput(fd, &output{dst: dst}, o); err != nil {
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

// chown gives a pipe to the user who will reopen it through /dev/stdout.
func chown(f *os.File, o Owner) error {
	if o == (Owner{}) {
		return nil
	}
	if err := f.Chown(int(o.UID), int(o.GID)); err != nil {
		return fmt.Errorf("cannot give a pipe to %d:%d: %w", o.UID, o.GID, err)
	}
	return nil
}

// Start begins to copy, when the process has been started.
func (s *Streams) Start() {
	s.CloseChildEnds()
	if s.in != nil {
		in := s.in
		go func() {
			if in.keep == nil {
				_, _ = io.Copy(in.dst, in.src) // there is nobody to tell but the process
			} else {
				copyStream(in.dst, in.src)
			}
			CloseAll(in.dst, in.src)
			if s.tty != nil {
				s.hangUp()
			}
		}()
	}
	for _, o := range s.outputs {
		s.copies.Go(func() {
			if !spliceStream(o.dst, o.src) {
				copyStream(o.dst, o.src)
			}
			if o.src != s.tty {
				o.src.Close()
			}
			o.dst.Close()
		})
	}
}

// CloseChildEnds closes the process's ends, when the process has its own copies.
func (s *Streams) CloseChildEnds() {
	for i, f := range s.Child {
		if f != nil {
			f.Close()
			s.Child[i] = nil
		}
	}
}

// CloseInput ends the standard input once all that was written to it is read.
func (s *Streams) CloseInput() {
	if s.in != nil {
		CloseAll(s.in.keep)
	}
}

const (
	// maxInFlight is how much of a stream, in bytes, may be in flight when the exit of its
	// process is told. A client that stops to read then loses no more.
	maxInFlight = 64 << 10

	settleTimeout = time.Second
)

// Settle waits until readers have taken most of the output, unless they are too slow.
func (s *Streams) Settle() {
	end := time.Now().Add(s.Patience)
	for nap := time.Millisecond; time.Now().Before(end); nap = min(2*nap, 10*time.Millisecond) {
		if s.InFlight() <= maxInFlight {
			return
		}
		time.Sleep(nap)
	}
}

// InFlight returns how many bytes of an output nobody has read yet; of that with most.
func (s *Streams) InFlight() (n int) {
	for _, o := range s.outputs {
		n = max(n, o.inFlight())
	}
	return n
}

// bytesIn returns how many bytes are in a pipe (FIONREAD, pipe(7)); none in a closed one
// or another file.
func bytesIn(f *os.File) (n int) {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	_ = conn.Control(func(fd uintptr) {
		if _, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err != nil {
			return // FIONREAD means something else elsewhere
		}
		if unread, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil {
			n = unread
		}
	})
	return n
}

// Drain waits until the output has been copied, at most for drainTimeout, and says whether
// it has. No other reader is waited for: output that nobody reads is dropped.
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

// Close closes everything, which ends copies that are still running. It may be
// called more than once, and at any time.
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

// copyStream copies until the source ends. A source or destination that fails
// ends it as well: there is nobody to tell but the process, by EPIPE. It holds a
// buffer only while there is something to copy, since most streams are silent
// most of the time.
func copyStream(dst, src *os.File) {
	for waitReadable(src) {
		buf := buffers.Get().(*[16 << 10]byte)
		n, err := src.Read(buf[:])
		if n > 0 {
			_, werr := dst.Write(buf[:n])
			err = errors.Join(err, werr)
		}
		buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

// waitReadable waits until a read from f would not wait, because there is data,
// the end or an error. It returns false if f was closed.
func waitReadable(f *os.File) bool {
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	return conn.Read(func(fd uintptr) bool { return reap.IsReady(int(fd), unix.POLLIN) }) == nil
}
