package reap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// IsReady reports whether a file is ready for one of the events, has failed or is at its
// end (poll(2)). It does not wait.
//
// It makes a raw system call, because Go wakes up another thread to watch a call that might
// wait. That takes as much time as moving 64 kB of output.
func IsReady(fd int, events int16) bool {
	fds, timeout := unix.PollFd{Fd: int32(fd), Events: events}, unix.Timespec{}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
		if errno != unix.EINTR {
			return n > 0 || errno != 0
		}
	}
}
