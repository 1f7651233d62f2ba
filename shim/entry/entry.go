// Package entry is what a shim program does before Go's runtime starts, which takes
// milliseconds, and what it tells the runtime. The linker has to be told to make it the
// program's entry point:
//
//	go build -ldflags '-E containerd-shim-pause-v2/shim/entry.entry'
//
// Linked without, and on architectures other than amd64 and arm64, the program does the
// same in more time. See docs/entry-point.md.
//
// Two calls of the program are known by their last argument:
//
//   - start: the process that containerd has executed, and waits for, must end when the
//     shim serves, and the shim must go on. As long as a process has one thread it can be
//     forked. So the child becomes the shim: the Go runtime starts once, instead of in
//     two programs one after the other. The parent, the starter, ends with the exit code
//     that the child writes to a pipe, or with that of the child.
//   - delete: containerd asks for it after each end of a shim, when most often nothing is
//     left to do. Then the shim has left the answer in the bundle, and it is passed on.
//
// Everything else, and whatever of this fails, is left to the program, with the
// environment and the arguments as they were.
//
// The child of start gets two variables in front of its environment. There they win over
// others of their names: Go's runtime takes the first (gogetenv and getGodebugEarly in
// package runtime), and package syscall forgets all but the first.
//
//   - GOMAXPROCS=1: what a shim does waits in system calls, which need no processor of
//     Go's; each has caches of its own.
//   - GODEBUG=disablethp=1, unless there is a GODEBUG: with transparent_hugepage=always
//     the first byte of Go's heap would take 2 MiB. The runtime reads it when it makes
//     the heap, so the program cannot set it for itself.
//
// Who inherits the environment has no use for them: the program has to unset both.
package entry

import (
	"errors"

	"golang.org/x/sys/unix"
)

// AnswerFile is the file in a bundle, which the argument -bundle names, that holds the
// answer to delete, of 1 to 511 bytes.
const AnswerFile = "pause-deleted"

// Starter returns the file descriptor of the pipe to the process that waits for this
// one, to be told its exit code, one byte; or -1 if there is none. It closes on exec.
func Starter() int { return starterFD() }

// Tell lets the starter at the other end of fd end with an exit code, and closes fd. It
// fails with [unix.EPIPE] if the starter has ended already, which then somebody has
// killed.
func Tell(fd int, code byte) error {
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte{code})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
