package process

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Stdio names where the streams of a process lead, as in containerd's API: paths
// of fifos, or for Stdout a URI with the scheme file, binary or binary-v2. Empty
// is /dev/null. With a terminal, Stdout carries the standard error as well.
type Stdio struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// drainTimeout bounds how long a delete waits for output that a process has left
// in its pipes; a child that outlives it may hold them open for ever.
const drainTimeout = 10 * time.Second

// streams are the open ends of a process's streams on the shim's side.
//
//	process ──pipe──▶ copy in the shim ──▶ fifo, file
//	process ──pipe──▶ logging program
//	process ◀──pipe── copy in the shim ◀── fifo
type streams struct {
	child   [3]*os.File // the process's ends, closed as soon as it is started; may be nil
	in      *input      // nil without standard input
	outputs []*output
	logger  *logger

	copies sync.WaitGroup // the outputs' copies
	tty    *os.File       // the console's master, if there is one
}

// input copies a fifo to a process's standard input.
type input struct {
	fifo *os.File
	// keep holds the fifo open for writing, so that the input does not end when a
	// client that wrote to it goes away, but when it is closed through the API.
	keep *os.File
	dst  *os.File
}

// output copies a process's output to its destination.
type output struct{ src, dst *os.File }

// openStreams opens all that the streams of a process without terminal need.
// The pipes belong to the user and group which the runtime options give.
func openStreams(ctx context.Context, sio Stdio, l *loggerRequest, o Options) (_ *streams, err error) {
	s := &streams{}
	defer func() {
		if err != nil {
			s.close()
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
		s.child[1], s.child[2] = s.logger.take()
		return s, nil
	case "file":
		return s, s.openFile(target.Path, sio, o)
	}
	for fd, path := range map[int]string{1: sio.Stdout, 2: sio.Stderr} {
		if path == "" {
			continue
		}
		dst, err := openSink(ctx, path)
		if err != nil {
			return nil, err
		}
		if err := s.addOutput(fd, dst, o); err != nil {
			return nil, err
		}
	}
	if s.child[1] == nil && s.child[2] == nil {
		// go-runc would collect the output itself, through a pipe that the process
		// inherits, and wait for the end of it.
		if s.child[1], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
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

// openFile sends both outputs to one file.
func (s *streams) openFile(path string, sio Stdio, o Options) error {
	for fd, stream := range []string{1: sio.Stdout, 2: sio.Stderr} {
		if stream == "" {
			continue
		}
		dst, err := openLogFile(path)
		if err != nil {
			return err
		}
		if err := s.addOutput(fd, dst, o); err != nil {
			return err
		}
	}
	return nil
}

func openLogFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the log file: %w", err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log file: %w", err)
	}
	return f, nil
}

func (s *streams) addOutput(fd int, dst *os.File, o Options) error {
	r, w, err := os.Pipe()
	if err != nil {
		return errors.Join(fmt.Errorf("cannot make a pipe for output: %w", err), dst.Close())
	}
	s.outputs = append(s.outputs, &output{src: r, dst: dst})
	s.child[fd] = w
	return chown(w, o)
}

func (s *streams) openInput(path string, o Options) error {
	in, err := openSource(path)
	if err != nil {
		return err
	}
	s.in = in
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("cannot make a pipe for input: %w", err)
	}
	s.child[0], in.dst = r, w
	return chown(r, o)
}

// chown gives a pipe to the user who will reopen it through /dev/stdout.
func chown(f *os.File, o Options) error {
	if o.IoUID == 0 && o.IoGID == 0 {
		return nil
	}
	if err := f.Chown(int(o.IoUID), int(o.IoGID)); err != nil {
		return fmt.Errorf("cannot give a pipe to %d:%d: %w", o.IoUID, o.IoGID, err)
	}
	return nil
}

// openSource opens a fifo to read standard input from. Opening it for both
// directions first never blocks, and makes opening it for reading not block.
func openSource(path string) (*input, error) {
	keep, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the standard input: %w", err)
	}
	fifo, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the standard input: %w", err), keep.Close())
	}
	return &input{fifo: fifo, keep: keep}, nil
}

// readerTimeout bounds how long a client may take to open the other end of a
// fifo that it asked output to be written to.
const readerTimeout = 30 * time.Second

// openSink opens a fifo or file for output. With a fifo it waits for a client to
// read, lest output is lost which comes and goes before one has opened it. Then
// it opens the fifo for both directions: so the process does not get SIGPIPE
// when the client goes away, and output waits for the next client.
func openSink(ctx context.Context, path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the output: %w", err)
	}
	if st.Mode()&os.ModeNamedPipe == 0 {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, fmt.Errorf("cannot open the output: %w", err)
		}
		return f, nil
	}
	writer, err := awaitReader(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the output: %w", err)
	}
	// Not sooner, lest the reader sees a moment without any writer: the end.
	defer unix.Close(writer)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the output: %w", err)
	}
	return f, nil
}

// awaitReader opens the fifo for writing when somebody has opened it for reading.
// A blocking open would keep a thread; with O_NONBLOCK it fails with ENXIO until
// then (fifo(7)).
func awaitReader(ctx context.Context, path string) (fd int, err error) {
	ctx, cancel := context.WithTimeout(ctx, readerTimeout)
	defer cancel()
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.ENXIO) {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return -1, fmt.Errorf("nobody reads %s: %w", path, ctx.Err())
		}
	}
}

// start begins to copy, when the process has been started.
func (s *streams) start() {
	s.closeChildEnds()
	if s.in != nil {
		in := s.in
		go func() {
			copyStream(in.dst, in.fifo)
			closeAll(in.dst, in.fifo)
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
			o.src.Close()
			o.dst.Close()
		})
	}
}

func (s *streams) closeChildEnds() {
	for i, f := range s.child {
		if f != nil {
			f.Close()
			s.child[i] = nil
		}
	}
}

// closeInput ends the standard input once all that was written to it is read.
func (s *streams) closeInput() {
	if s.in != nil {
		s.in.keep.Close()
	}
}

// drain waits until the output has been copied, at most for drainTimeout, and
// says whether it has.
func (s *streams) drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		s.copies.Wait()
		close(done)
	}()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close closes everything, which ends copies that are still running. It may be
// called more than once, and at any time.
func (s *streams) close() {
	s.closeChildEnds()
	if s.in != nil {
		closeAll(s.in.fifo, s.in.keep, s.in.dst)
	}
	for _, o := range s.outputs {
		closeAll(o.src, o.dst)
	}
	closeAll(s.tty)
	if s.logger != nil {
		s.logger.stop()
	}
}

func closeAll(files ...*os.File) {
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
			err = joinErrors(err, werr)
		}
		buffers.Put(buf)
		if err != nil {
			return
		}
	}
}

// spliceStream copies from a pipe to another, such as a fifo, as copyStream does, but
// by handing over the pages that the data is in (splice(2)): they never come to this
// process. It returns false, and has copied nothing, if the two are not of that kind.
func spliceStream(dst, src *os.File) bool {
	in, err := src.SyscallConn()
	if err != nil {
		return false
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return false
	}
	p := &pace{src: src, dst: dst, size: pipeSize}
	for {
		n, err := splice(out, in, p.mayNap)
		p.moved += n
		switch {
		case errors.Is(err, errFull):
			time.Sleep(p.nap + beyond)
		case errors.Is(err, unix.EAGAIN):
			if !p.awaitSource() {
				return true
			}
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
			return false // It is so from the beginning, or never.
		case n == 0, err != nil:
			return true
		}
	}
}

// errFull is EAGAIN because of the destination.
var errFull = fmt.Errorf("the pipe is full: %w", unix.EAGAIN)

// splice moves what is in one pipe to another. If that has no room it waits for some, or
// returns errFull if mayNap says so. It returns EAGAIN if there is nothing to move: a
// container can read from its own output, too.
func splice(out, in syscall.RawConn, mayNap func() bool) (n int64, err error) {
	const all = 1 << 20 // more than pipes hold, unless somebody has made them larger
	failed := out.Write(func(to uintptr) (done bool) {
		closed := in.Control(func(from uintptr) {
			err = ignoringEINTR(func() error {
				moved, _, errno := unix.Syscall6(unix.SYS_SPLICE, from, 0, to, 0, all, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				if errno != 0 {
					return errno
				}
				n = int64(moved)
				return nil
			})
		})
		if closed != nil {
			err = closed
		}
		if !errors.Is(err, unix.EAGAIN) || isReady(int(to), unix.POLLOUT) {
			return true
		}
		if mayNap() {
			err = errFull
			return true
		}
		return false
	})
	if failed != nil {
		return 0, failed
	}
	return n, err
}

// pace is how to wait for room in a pipe. The kernel tells of room at each read, and to be
// woken up for each costs more than to move what has been read for. If the reader is slow,
// as containerd is with logs, it is better to sleep for as long as it takes about half of
// what is in the pipe, in a pipe of more than the usual size.
type pace struct {
	src, dst *os.File
	// moved has been since the time since, which is zero until the pipe is full.
	moved int64
	since time.Time

	nap   time.Duration // for half of the pipe, as it was the last time
	large bool          // the pipes have been made larger
	size  int64         // of dst
}

const (
	pipeSize  = 64 << 10 // pipe(7), "Pipe capacity"
	floodSize = 256 << 10

	// shortestNap is no less than the Go runtime's timers take when all is idle.
	shortestNap = time.Millisecond
	longestNap  = 10 * time.Millisecond
	// beyond lets a nap of whole milliseconds be one sleep: the runtime asks the kernel
	// for no fraction of one, and would do that again for what it lacks (netpoll).
	beyond = 20 * time.Microsecond
	// window is the shortest time that tells how fast a reader is who is not slept for.
	window = 5 * time.Millisecond
)

// mayNap says, of a pipe that is full, whether it is to be slept for.
func (p *pace) mayNap() bool {
	now := time.Now()
	elapsed := min(now.Sub(p.since), time.Second)
	switch {
	case p.since.IsZero():
		p.since, p.moved = now, 0
	case p.moved == 0:
		// The reader has stopped, maybe for long.
		p.since, p.nap = time.Time{}, 0
	case p.nap > 0 || elapsed >= window:
		p.measure(elapsed)
		p.since, p.moved = now, 0
	}
	return p.nap > 0
}

// awaitSource waits for the source, which is empty, as waitReadable does. Meanwhile the
// pipes get their usual size back, as soon as what is in them fits.
func (p *pace) awaitSource() bool {
	p.since = time.Time{} // Until the pipe is full again, no time tells how fast the reader is.
	if !p.large {
		return waitReadable(p.src)
	}
	for tries := 0; ; tries++ {
		if p.resize(pipeSize) {
			p.large, p.nap = false, 0
			break
		}
		if tries == 10 {
			break // The reader has stopped.
		}
		if err := p.src.SetReadDeadline(time.Now().Add(10 * longestNap)); err != nil {
			return false
		}
		err := readable(p.src)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.Join(err, p.src.SetReadDeadline(time.Time{})) == nil
		}
	}
	return p.src.SetReadDeadline(time.Time{}) == nil && readable(p.src) == nil
}

// measure sets the nap by what was moved in a time.
func (p *pace) measure(elapsed time.Duration) {
	size := p.size
	if !p.large {
		size = max(size, floodSize)
	}
	p.nap = min(elapsed*time.Duration(size/2)/time.Duration(p.moved), longestNap).Truncate(shortestNap)
	if p.nap > 0 && !p.large {
		p.large = true
		p.resize(floodSize)
		p.measure(elapsed)
	}
}

// resize gives both pipes a size, and says whether they have no more than that. It stops
// at one that has more in it; one that is smaller than usual is left as it is. They are
// large only as long as they are of use: all pipes of a user count together (pipe(7),
// /proc/sys/fs/pipe-user-pages-soft).
func (p *pace) resize(size int) bool {
	done := true
	for _, f := range []*os.File{p.dst, p.src} {
		conn, err := f.SyscallConn()
		if err != nil {
			return false
		}
		_ = conn.Control(func(fd uintptr) {
			n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
			if err == nil && n != size && n >= pipeSize {
				if m, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size); err == nil {
					n = m
				}
			}
			if f == p.dst {
				p.size = int64(max(n, 1))
			}
			done = n <= size
		})
		if !done {
			return false
		}
	}
	return true
}

// waitReadable waits until a read from f would not wait, because there is data,
// the end or an error. It returns false if f was closed.
func waitReadable(f *os.File) bool { return readable(f) == nil }

// readable is waitReadable, until f's deadline.
func readable(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		return isReady(int(fd), unix.POLLIN)
	})
}

// isReady says whether a file is ready for the events, has failed or is at its end
// (poll(2)).
//
// It is a raw system call, as it waits for nothing: of one that might, Go wakes up a thread of
// its own to watch it (sysmon). splice must not be one. It takes the pipe's lock, which a
// writer holds while it copies from its memory, and that may be on a file system that has
// stopped: a raw call would keep the only P, and thereby the whole process.
func isReady(fd int, events int16) bool {
	fds, now := unix.PollFd{Fd: int32(fd), Events: events}, unix.Timespec{}
	var n uintptr
	err := ignoringEINTR(func() error {
		var errno unix.Errno
		n, _, errno = unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(&now)), 0, 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	return n > 0 || err != nil
}
