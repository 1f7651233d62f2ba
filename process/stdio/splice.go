package stdio

import (
	"errors"
	"os"
	"syscall"
	"time"

	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

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
	for p := (pace{in: in, out: out}); ; {
		n, err := splice(out, in)
		switch {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
			return false // It is so from the beginning, or never.
		case errors.Is(err, unix.EAGAIN):
			if !p.awaitRoom() || !waitReadable(src) {
				return true
			}
		case err != nil, n == 0:
			return true
		default:
			p.moved += n
		}
	}
}

// splice moves what is in one pipe to another. It returns 0 at the end of the source, and
// EAGAIN if nothing is in it or the destination is full.
func splice(out, in syscall.RawConn) (n int64, err error) {
	const all = 1 << 20 // more than pipes hold, unless somebody has made them larger
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

// pace is how fast the destination is read while it is full. The kernel tells of room in a
// pipe at each read, and to be woken up for each costs more than to move what has been
// read. So a slow reader, as containerd is with logs, is slept for: for as long as it
// takes half of what a pipe holds, and pipes hold more as long as there is one.
type pace struct {
	in, out syscall.RawConn
	since   time.Time // when the destination was full last; zero if the source has been empty since
	moved   int64     // bytes, after that
	large   bool      // the pipes have been made larger
}

const (
	pipeSize  = 64 << 10 // pipe(7), "Pipe capacity"
	largeSize = 256 << 10

	// shortestNap is no less than Go's timers take when all is idle.
	shortestNap = time.Millisecond
	longestNap  = 10 * time.Millisecond

	// beyond lets a nap of whole milliseconds be one sleep: Go's poller asks the kernel for
	// no fraction of one, and then once more for what is left.
	beyond = 20 * time.Microsecond
)

// awaitRoom waits until there is room in the destination. It returns false if that was closed.
func (p *pace) awaitRoom() bool {
	hasRoom := false
	if p.out.Control(func(fd uintptr) { hasRoom = reap.IsReady(int(fd), unix.POLLOUT) }) != nil {
		return false
	}
	if hasRoom {
		p.since, p.moved = time.Time{}, 0
		if p.large {
			p.resize(pipeSize)
		}
		return true
	}
	if nap := p.nap(time.Now()); nap > 0 {
		time.Sleep(nap + beyond)
		return true
	}
	return p.out.Write(func(fd uintptr) bool { return reap.IsReady(int(fd), unix.POLLOUT) }) == nil
}

// nap returns how long to sleep for the reader of a pipe that is full now. It is zero if
// the reader is too fast for that, has stopped, or is not known yet.
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

// resize gives both pipes a size, but for one that somebody has given another. One that has more
// in it stays large until the next time. All pipes of a user count together (pipe(7),
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
