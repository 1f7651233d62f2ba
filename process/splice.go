package process

import (
	"errors"
	"os"
	"syscall"

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
	for waitReadable(src) {
		switch n, err := splice(out, in); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE):
			return false // It is so from the beginning, or never.
		case errors.Is(err, unix.EAGAIN): // A container can read from its own output, too.
		case err != nil, n == 0:
			return true
		}
	}
	return true
}

// splice moves what is in one pipe to another, and waits for room there. It returns 0 at
// the end of the source, and EAGAIN if nothing is in it.
func splice(out, in syscall.RawConn) (n int64, err error) {
	const all = 1 << 20 // more than pipes hold, unless somebody has made them larger
	failed := out.Write(func(to uintptr) (done bool) {
		closed := in.Control(func(from uintptr) {
			err = ignoringEINTR(func() (err error) {
				n, err = unix.Splice(int(from), nil, int(to), nil, all, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
				return err
			})
		})
		if closed != nil {
			err = closed
		}
		return !errors.Is(err, unix.EAGAIN) || isReady(int(to), unix.POLLOUT)
	})
	return n, errors.Join(err, failed)
}
