package process

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

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
	p := &pipes{src: src, dst: dst, flood: flood{size: pipeSize}}
	for {
		switch p.move(in, out) {
		case drained:
			if !p.awaitSource() {
				return true
			}
		case stuck:
			if !waitWritable(out) {
				return true
			}
		case slow:
			p.enlarge()
		case unfit:
			return false // It is so from the beginning, or never.
		case ended:
			return true
		}
	}
}

// outcome is why a move has come to an end.
type outcome int

const (
	drained outcome = iota // nothing is left in the source
	full                   // no room is left in the destination
	slow                   // the same, and its reader takes long enough for larger pipes to be of use
	stuck                  // the same, and nothing has been read for a while
	paused                 // there is more to do
	ended                  // the source is at its end, or one of the two is closed or broken
	unfit                  // one is not a pipe
)

// pipes are what a stream leads through.
type pipes struct {
	src, dst *os.File
	flood
}

// move moves what is in the source to the destination, and for a while what comes after it
// if that is full. If the files are closed meanwhile, they are closed after it.
func (p *pipes) move(in, out syscall.RawConn) outcome {
	o := ended
	_ = out.Control(func(to uintptr) {
		_ = in.Control(func(from uintptr) {
			if o = splice(from, to); o != full {
				return
			}
			o = stuck
			if floods.Add(1) <= maxFloods {
				o = p.run(from, to)
			}
			floods.Add(-1)
		})
	})
	return o
}

// floods is how many streams are being moved by run, each of which keeps a thread. Go never
// ends a thread, so that others wait as streams do that are not in flood.
var floods atomic.Int32

const maxFloods = 4

// splice moves what fits.
func splice(from, to uintptr) outcome {
	err := ignoringEINTR(func() error {
		n, _, errno := unix.Syscall6(unix.SYS_SPLICE, from, 0, to, 0, all, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errno != 0:
			return errno
		case n == 0:
			return io.EOF
		}
		return nil
	})
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
		return unfit
	case err != nil && !errors.Is(err, unix.EAGAIN):
		return ended
	case isReady(int(to), unix.POLLOUT):
		return drained // even with EAGAIN: a container can read from its own output, too
	}
	return full
}

const (
	// all is more than pipes hold, unless somebody has made them larger.
	all = 1 << 20

	pipeSize  = 64 << 10 // pipe(7), "Pipe capacity"
	floodSize = 256 << 10

	// lull is how long large pipes are kept for a source that is empty.
	lull = 100 * time.Millisecond

	// Nanoseconds. The kernel adds up to 50_000 to a sleep (PR_SET_TIMERSLACK(2const)).
	shortestNap = 20_000
	longestNap  = 10_000_000
	turn        = 100_000_000
)

// flood is a stream that comes faster than it is read. The kernel tells of room in a pipe at
// each read, and to be woken up for each costs more than to move what has been read. So it is
// slept for, for as long as the reader takes to read half of the pipe.
//
// And Go's scheduler has no part in it. To it, this is one system call that lasts long: to let
// the goroutine sleep and wake up, and other threads see to it, would cost ten times as much
// as what is done in between.
type flood struct {
	size  int64 // of the destination, in bytes
	nap   int64 // nanoseconds
	large bool  // the pipes have been made larger
}

// run moves as long as the destination is full after it, at most for a turn.
//
// As long as the goroutine is in a system call, it must not use the memory manager nor grow its
// stack: what is called between the two calls of the runtime has to be go:nosplit, without
// allocations and pointers that are stored, and nothing may be added to it, as the race detector
// (hence go:norace) and a count of coverage (-cover with -race) do.
//
// splice(2) must not be a raw system call without that. It takes the pipe's lock, which a writer
// holds while it copies from its memory, and that may be on a file system that has stopped: it
// would keep the only P, and thereby the whole process.
//
//go:nosplit
//go:norace
func (f *flood) run(from, to uintptr) outcome {
	entersyscallblock()
	o := f.loop(from, to)
	exitsyscall()
	return o
}

//go:nosplit
//go:norace
func (f *flood) loop(from, to uintptr) outcome {
	if f.nap < shortestNap {
		f.nap = shortestNap // to see how much is read in that time
	}
	end := monotonicTime() + turn
	for {
		napped := f.nap >= shortestNap
		if napped {
			sleep(f.nap)
		} else if !poll(to, unix.POLLOUT, longestNap) {
			return stuck
		}
		n, _, errno := syscall.RawSyscall6(unix.SYS_SPLICE, from, 0, to, 0, all, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case errno == unix.EAGAIN || errno == unix.EINTR:
			n = 0
		case errno != 0 || n == 0:
			return ended
		}
		switch {
		case poll(to, unix.POLLOUT, 0):
			return drained
		case n == 0 && f.nap == longestNap:
			return stuck
		case napped:
			f.nap = min(f.nap*(f.size/2)/max(int64(n), f.size/8, 1), longestNap)
			if n > 0 && f.nap >= shortestNap && !f.large {
				return slow
			}
		}
		if monotonicTime() >= end {
			return paused
		}
	}
}

//go:nosplit
//go:norace
func sleep(ns int64) {
	ts := unix.Timespec{Nsec: ns}
	_, _, _ = syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// poll waits until a file is ready for the events, has failed or is at its end, at most for
// so many nanoseconds (ppoll(2)). Only run may wait in it, others see isReady.
//
//go:nosplit
//go:norace
func poll(fd uintptr, events int16, ns int64) bool {
	fds, ts := unix.PollFd{Fd: int32(fd), Events: events}, unix.Timespec{Nsec: ns}
	for {
		n, _, errno := syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if errno != unix.EINTR {
			return n > 0 || errno != 0
		}
	}
}

//go:nosplit
//go:norace
func monotonicTime() (ns int64) {
	var ts unix.Timespec
	_, _, _ = syscall.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&ts)), 0)
	return ts.Sec*1e9 + ts.Nsec
}

// What a goroutine does before and after a system call that lasts; golang.org/x/sys/unix has
// such calls of its own (SyscallNoError).

//go:linkname entersyscallblock runtime.entersyscallblock
func entersyscallblock()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// enlarge makes the pipes larger, so that there is more to move after a longer nap.
func (p *pipes) enlarge() {
	before := p.size
	p.large = true
	p.resize(floodSize)
	p.nap = min(p.nap*p.size/before, longestNap)
}

// awaitSource waits for the source, which is empty, as waitReadable does. If that lasts, the
// pipes get their usual size back, as soon as what is in them fits.
func (p *pipes) awaitSource() bool {
	for range 10 { // The reader may have stopped, and the pipe stay full.
		if !p.large {
			break
		}
		if err := p.src.SetReadDeadline(time.Now().Add(lull)); err != nil {
			return false
		}
		err := readable(p.src)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return errors.Join(err, p.src.SetReadDeadline(time.Time{})) == nil
		}
		if p.resize(pipeSize) {
			p.large, p.nap = false, 0
		}
	}
	return p.src.SetReadDeadline(time.Time{}) == nil && readable(p.src) == nil
}

// resize gives both pipes a size, and says whether they have no more than that. It stops
// at one that has more in it; one that is smaller than usual is left as it is. They are
// large only as long as they are of use: all pipes of a user count together (pipe(7),
// /proc/sys/fs/pipe-user-pages-soft).
func (p *pipes) resize(size int) bool {
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
			if f == p.dst && n > 0 {
				p.size = int64(n)
			}
			done = n <= size
		})
		if !done {
			return false
		}
	}
	return true
}

// waitWritable waits until there is room in a pipe, or nobody has it open for reading. It
// returns false if it was closed.
func waitWritable(conn syscall.RawConn) bool {
	return conn.Write(func(fd uintptr) bool { return isReady(int(fd), unix.POLLOUT) }) == nil
}
