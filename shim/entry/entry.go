// Package entry runs before Go's runtime, whose start takes milliseconds, and sets the
// environment that the runtime reads. A flag of the linker makes it the entry point of the
// program:
//
//	go build -ldflags '-E containerd-shim-pause-v2/shim/entry.entry'
//
// Without that flag, and on architectures other than amd64 and arm64, the program does the
// same in Go, which takes longer. See docs/entry-point.md.
//
// The last argument selects what the entry point does:
//
//   - start: the process that containerd has executed, and waits for, must end when the
//     shim serves, while the shim goes on. A process can be forked as long as it has one
//     thread. So the entry point forks, and the child becomes the shim: Go's runtime
//     starts once, instead of in two programs one after the other. The parent, the
//     starter, ends with the exit code that the child writes to a pipe, or with the exit
//     code of the child.
//   - delete: containerd calls it each time a shim has ended, when usually nothing is left
//     to do. The shim has then left the answer in the bundle, and the entry point writes
//     that to standard output.
//
// Anything else, and any step that fails, is left to the program in Go, with the
// environment and the arguments unchanged.
//
// The child of start gets two variables in front of its environment. There they win over
// later ones of the same name: Go's runtime takes the first (gogetenv and getGodebugEarly
// in package runtime), and package syscall drops all but the first.
//
//   - GOMAXPROCS=1: a shim mostly waits in system calls, which need none of Go's
//     processors (Ps), and each P has its own caches.
//   - GODEBUG=disablethp=1, unless GODEBUG is set: with transparent_hugepage=always the
//     first byte of Go's heap would take 2 MiB. The runtime reads GODEBUG when it makes
//     the heap, so the program cannot set it for itself.
//
// The program must unset both, because they are not meant for the processes that inherit
// its environment.
package entry

import (
	"errors"

	"golang.org/x/sys/unix"
)

// AnswerFile holds the answer to delete, of 1 to 511 bytes. The file is in the bundle that
// the argument -bundle names.
const AnswerFile = "pause-deleted"

// Starter returns the file descriptor of the pipe from which the starter reads its exit
// code, one byte, or -1 if there is no starter. The descriptor is close-on-exec.
func Starter() int { return starterFD() }

// Tell makes the starter at the other end of fd end with an exit code, and closes fd. It
// fails with [unix.EPIPE] if the starter has already ended, which means that it was killed.
func Tell(fd int, code byte) error {
	defer unix.Close(fd)
	for {
		_, err := unix.Write(fd, []byte{code})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
