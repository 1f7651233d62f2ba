package reap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// IsReady says whether a file is ready for the events, has failed or is at its end
// (poll(2)).
//
// It is a raw system call, as it waits for nothing: for one that might, Go wakes up a
// thread of its own to watch it, which takes as much time as moving 64 kB of output.
func IsReady(fd int, events int16) bool {
	fds, timeout := unix.PollFd{Fd: int32(fd), Events: events}, unix.Timespec{}
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds)), 1, uintptr(unsafe.Pointer(&timeout)), 0, 0, 0)
		if errno != unix.EINTR {
			return n > 0 || errno != 0
		}
	}
}
