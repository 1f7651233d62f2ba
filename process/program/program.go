// Package program has two programs that the shim runs as separate processes. Each has a few
// hundred bytes of machine code, and uses no runtime or library.
//
// They are functions in program_<arch>.s, in Go's assembler. The linker puts them into the
// shim's text like any function, though nothing calls them there. Their code only makes
// system calls, and keeps its data in registers and on the stack, so it does not depend on
// its address and can be copied into an executable file.
package program

import (
	"fmt"
	"os"
	"syscall"
)

// PodInit returns the executable file of a pod init, the init of a PID namespace that the
// containers of a pod share. As Kubernetes' pause program does, the pod init reaps its
// children, ends with exit code 0 on SIGINT and SIGTERM, and ignores all other signals. It
// closes its standard streams.
//
// PodInit fails with [errdefs.ErrNotImplemented] on an architecture that has no such program.
func PodInit() ([]byte, error) { return podInitFile() }

// Holder returns the executable file of a holder, which makes namespaces in a user namespace:
// a thread of a Go program cannot enter one (setns(2)). The holder reads an [Order] from
// standard input, writes a [Report] to standard output, and stays in the namespaces until its
// standard input ends.
//
// Holder fails as [PodInit] does.
func Holder() ([]byte, error) { return holderFile() }

// Order tells a holder what to do.
type Order struct {
	// UserNamespace is the file descriptor of the user namespace to enter; -1 if the
	// holder was started in it.
	UserNamespace int64
	// Flags are the flags of unshare(2) for the namespaces to make.
	Flags uint64
}

// Report is the outcome of an [Order].
type Report struct {
	Result int64  // the result of the last system call: 0, or a negative error number
	Step   uint64 // the number of that system call, see Err
}

// Err returns nil if the holder has made all namespaces; otherwise an error that names the
// system call that failed.
func (r Report) Err() error {
	steps := []string{"", "read", "setns", "setresgid", "setresuid", "unshare"}
	switch {
	case r.Result == 0 && r.Step == uint64(len(steps)-1):
		return nil
	case r.Result < 0 && r.Step < uint64(len(steps)):
		return os.NewSyscallError(steps[r.Step], syscall.Errno(-r.Result))
	}
	return fmt.Errorf("unexpected report %+v", r)
}
