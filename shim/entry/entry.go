// Package entry is what a shim program does before the Go runtime starts, which takes
// milliseconds. The linker has to be told to make it the program's entry point:
//
//	go build -ldflags '-E containerd-shim-pause-v2/shim/entry.entry'
//
// Linked without, the program does the same in more time.
//
// Two calls of the program are known by their last argument:
//
//   - start: the process that containerd has executed, and waits for, must end when the
//     shim serves, and the shim must go on. As long as a process has one thread it can be
//     forked. So the child becomes the shim: the Go runtime starts once, instead of in
//     two programs one after the other. The parent, the starter, ends with the exit code
//     that the child writes to a pipe, or with that of the child. It also sets GOMAXPROCS
//     to 1, if it is set at all: see package shim.
//   - delete: containerd asks for it after each end of a shim, when most often nothing is
//     left to do. Then the shim has left the answer in the bundle, and it is passed on.
//
// Everything else, and whatever of this fails, is left to the program.
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

// In assembly.
func starterFD() int
