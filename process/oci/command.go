package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// RunToEnd runs an OCI runtime and waits for it; when ctx ends, it kills the runtime, and
// what that has started. Processes of containers are in sessions of their own, and live on.
// A nil file in stdio stands for /dev/null. If there is neither standard output nor
// standard error, it returns the beginning of what the runtime has written to them.
// It calls started, if not nil, once the runtime has started.
//
// The starter may be nil in a process whose threads do not end before it.
//
// It does not use os/exec, which forks another process at its first use, to find out
// what the kernel can do, and keeps a thread for each process that it waits for.
func RunToEnd(ctx context.Context, starter *Starter, args []string, stdio [3]*os.File, started func()) (out string, err error) {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return "", err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer null.Close()
	if stdio[1] == nil && stdio[2] == nil {
		messages, err := scratchFile("messages", nil)
		if err != nil {
			return "", err
		}
		defer messages.Close()
		defer func() { out = beginning(messages) }()
		stdio[1], stdio[2] = messages, messages
	}
	files := make([]uintptr, len(stdio))
	for i, f := range stdio {
		if f == nil {
			f = null
		}
		files[i] = f.Fd()
	}
	pid, err := starter.forkExec(path, args, &syscall.ProcAttr{
		Env:   runtimeEnvironment(os.Environ()),
		Files: files,
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}, // see Starter
	})
	if err != nil {
		return "", &os.PathError{Op: "fork/exec", Path: path, Err: err}
	}
	if started != nil {
		started()
	}
	status, err := await(ctx, pid)
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot wait for %s: %w", args[0], err)
	case ctx.Err() != nil && status.Signaled():
		return "", fmt.Errorf("%s was killed: %w", args[0], context.Cause(ctx))
	case status.Signaled():
		return "", &signalError{args[0], status.Signal()}
	case status.ExitStatus() != 0:
		return "", fmt.Errorf("%s did not terminate successfully: exit status %d", args[0], status.ExitStatus())
	}
	return "", nil
}

// signalError is the error of an OCI runtime that a signal has ended before its work was done.
type signalError struct {
	program string
	signal  unix.Signal
}

func (e *signalError) Error() string {
	return fmt.Sprintf("%s was ended by signal %d", e.program, int(e.signal))
}

func wasKilled(err error) bool {
	var killed *signalError
	return errors.As(err, &killed)
}

// await waits for a child that nobody else reaps, and kills it with its process group if ctx
// ends first: runc for instance makes user namespaces in a child that is stopped until runc
// kills it.
func await(ctx context.Context, pid int) (status unix.WaitStatus, err error) {
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.Kill(-pid, unix.SIGKILL) // the number is the child's: wait4 comes after this
	})
	_ = reap.AwaitExit(pid) // it fails only if there is no such child, and so does wait4
	if !stop() {
		<-killed
	}
	err = reap.IgnoringEINTR(func() error {
		_, err := unix.Wait4(pid, &status, 0, nil)
		return err
	})
	return status, os.NewSyscallError("wait4", err)
}

// runtimeEnvironment returns the environment for an OCI runtime. It leaves out
// NOTIFY_SOCKET, through which systemd expects to hear from containerd: runc would send
// its container's readiness there. It sets GOGC, because a runtime written in Go ends
// before garbage collection pays off: without it, runc exec took a seventh less CPU time.
// Hooks that the runtime runs may inherit GOGC.
func runtimeEnvironment(env []string) []string {
	own := make([]string, 0, len(env)+1)
	tuned := false
	for _, entry := range env {
		if strings.HasPrefix(entry, "NOTIFY_SOCKET=") {
			continue
		}
		tuned = tuned || strings.HasPrefix(entry, "GOGC=")
		own = append(own, entry)
	}
	if !tuned {
		own = append(own, "GOGC=400")
	}
	return own
}

// scratchFile returns a file in memory that holds data and is read from its beginning. It
// is marked as not executable, because a host may refuse files that are not marked so
// (vm.memfd_noexec, sysctl/vm.rst). Linux has that flag since 6.3 (memfd_create(2)).
func scratchFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// beginning returns as much of a file as an error message should hold.
func beginning(f *os.File) string {
	const limit = 4 << 10
	data, err := io.ReadAll(io.NewSectionReader(f, 0, limit))
	if err != nil {
		return ""
	}
	return string(data)
}
