package stdio

import (
	"errors"
	"os"
	"syscall"
	"time"

	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// errNoPipes says that two files are not both pipes.
var errNoPipes = errors.New("not both files are pipes")

// spliceStream is copyStream for two pipes, of which fifos are a kind. It moves the pages
// that hold the data (splice(2)), without copying them through this process, so that there
// is no rest when it is suspended. It fails with errNoPipes before it has copied anything.
func spliceStream(dst, src *os.File) error {
	in, err := src.SyscallConn()
	if err != nil {
		return err
	}
	out, err := dst.SyscallConn()
	if err != nil {
		return err
	}
	p := pace{in: in, out: out}
	defer p.shrink()
	for {
		n, err := splice(out, in)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
			return errNoPipes // the first call fails with these, or none does
		case errors.Is(err, unix.EAGAIN):
			if err := p.awaitRoom(); err != nil {
				return err
			}
			if err := waitReadable(src); err != nil {
				return err
			}
		case err != nil, n == 0:
			return err
		default:
			p.moved += n
		}
	}
}

// splice moves the data from one pipe to another, and returns its length in bytes. It
// returns 0 at the end of the source, and EAGAIN if the source is empty or the destination
// is full.
func splice(out, in syscall.RawConn) (n int64, err error) {
	const all = 1 << 20 // more than a pipe holds, unless another process has enlarged it
	closed := out.Control(func(to uintptr) {
		closed := in.Control(func(from uintptr) {
			err = reap.IgnoringEINTR(func() (err error) {
				n, err = unix.Splice(int(from), nil, int(to), nil, all, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				return err
			})
		})
		if closed != nil {
			err = closed
		}
	})
	if closed != nil {
		err = closed
	}
	return n, err
}

// pace measures how fast the reader of a full destination reads. The kernel reports room in
// a pipe at each read, and a wake-up for each read costs more than moving what was read. So
// with a slow reader, such as containerd when it writes logs, the copy sleeps until about
// half of the pipe should have been read. Meanwhile the pipes are larger.
type pace struct {
	in, out syscall.RawConn
	since   time.Time // when the destination was last full; zero if the source has been empty since
	moved   int64     // bytes moved since that time
	large   bool      // whether the pipes are larger than usual
}

const (
	pipeSize = 64 << 10 // pipe(7), "Pipe capacity"

	// largeSize is the kernel's limit for users without privileges (/proc/sys/fs/pipe-max-size).
	largeSize = 1 << 20

	// shortestNap is the shortest sleep of an idle Go program.
	shortestNap = time.Millisecond
	longestNap  = 10 * time.Millisecond

	// beyond is added to a nap, so that a nap of whole milliseconds is one wait in the
	// kernel. Go's poller waits for whole milliseconds, and would wait a second time for a
	// remainder.
	beyond = 20 * time.Microsecond
)

// awaitRoom waits until there may be room in the destination. It fails if the destination
// was closed, or is suspended.
func (p *pace) awaitRoom() error {
	hasRoom := false
	if err := p.out.Control(func(fd uintptr) { hasRoom = reap.IsReady(int(fd), unix.POLLOUT) }); err != nil {
		return err
	}
	if hasRoom {
		p.since, p.moved = time.Time{}, 0
		p.shrink()
		return nil
	}
	if nap := p.nap(time.Now()); nap > 0 {
		time.Sleep(nap + beyond)
		return nil
	}
	return p.out.Write(func(fd uintptr) bool { return reap.IsReady(int(fd), unix.POLLOUT) })
}

// nap returns how long to sleep while a destination that is full now is read. It returns zero
// if the reader is too fast for a nap, has stopped, or has not been measured yet.
func (p *pace) nap(now time.Time) time.Duration {
	elapsed, moved, known := min(now.Sub(p.since), time.Second), p.moved, !p.since.IsZero()
	p.since, p.moved = now, 0
	if !known || moved == 0 {
		return 0
	}
	size := pipeSize
	if p.large {
		size = largeSize
	}
	nap := min(elapsed*time.Duration(size/2)/time.Duration(moved), longestNap).Truncate(shortestNap)
	if nap > 0 && !p.large {
		p.resize(largeSize)
	}
	return nap
}

// shrink makes pipes that were made larger small again.
func (p *pace) shrink() {
	if p.large {
		p.resize(pipeSize)
	}
}

// resize sets the size of both pipes, except of one that another process has resized. A pipe
// that holds more than size stays large until the next call. Pipes should be large only for
// a time, because the kernel limits the size of all pipes of a user together (pipe(7),
// /proc/sys/fs/pipe-user-pages-soft).
func (p *pace) resize(size int) {
	p.large = false
	for _, conn := range []syscall.RawConn{p.in, p.out} {
		_ = conn.Control(func(fd uintptr) {
			n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0)
			if err != nil || n != pipeSize && n != largeSize {
				return
			}
			if m, err := unix.FcntlInt(fd, unix.F_SETPIPE_SZ, size); err == nil {
				n = m
			}
			p.large = p.large || n == largeSize
		})
	}
}
