// Package program holds two programs that the shim runs as processes of their
// own: of some hundred bytes, without a runtime or library.
//
// Go's assembler makes them, from program_<arch>.s, and the linker puts them into
// the shim's text like any function, though nothing calls them. Their code does
// not depend on its address: it makes system calls, and keeps what it needs in
// registers and on the stack. So it can be copied from there into an executable
// file.
package program

import (
	"fmt"
	"os"
	"syscall"
)

// PodInit returns an executable file: the init of a PID namespace that containers
// of a pod share. It reaps, ends with exit code 0 on SIGINT and SIGTERM, and takes
// no notice of any other signal, as the pause program of Kubernetes does. It
// closes its standard streams.
//
// On an architecture for which there is no such program it fails with [errdefs.ErrNotImplemented].
func PodInit() ([]byte, error) { return podInitFile() }

// Holder returns an executable file: it makes namespaces in a user namespace,
// which a thread of a Go program cannot enter (setns(2)), and stays in them until
// its standard input ends. It reads an [Order] from there first, and writes a
// [Report] to standard output. It fails as PodInit does.
func Holder() ([]byte, error) { return holderFile() }

// Order says what a holder has to do.
type Order struct {
	// UserNamespace is the file descriptor of a user namespace to enter; -1 if the
	// holder was started in it.
	UserNamespace int64
	// Flags are those of unshare(2) for the namespaces to make.
	Flags uint64
}

// Report says what a holder has done.
type Report struct {
	Result int64  // of the last system call: 0, or an error number made negative
	Step   uint64 // which one that was
}

// Err returns an error that names the system call that failed, or nil.
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
