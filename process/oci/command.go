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

// RunToEnd runs an OCI runtime to its end, or until ctx's. It returns the beginning of
// what the runtime has written if it was given no files.
//
// It does without os/exec, of whose features it needs none: that forks another process
// at its first use, to find out what the kernel can do, and keeps a thread for each
// process that it waits for.
func RunToEnd(ctx context.Context, args []string, stdio [3]*os.File, started func()) (out string, err error) {
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
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{
		Env:   runtimeEnvironment(os.Environ()),
		Files: files,
		// The signal comes when the thread ends that has forked; no thread of a shim ends
		// before the shim does.
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
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

// signalError says that a signal has ended an OCI runtime, before it had done its work.
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

// await waits for a child that nobody else reaps, and kills it when ctx ends before.
func await(ctx context.Context, pid int) (status unix.WaitStatus, err error) {
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(killed)
		_ = unix.Kill(pid, unix.SIGKILL) // it is not reaped before this has returned
	})
	_ = reap.AwaitExit(pid) // wait4 says the same, that there is no such child
	if !stop() {
		<-killed
	}
	err = reap.IgnoringEINTR(func() error {
		_, err := unix.Wait4(pid, &status, 0, nil)
		return err
	})
	return status, os.NewSyscallError("wait4", err)
}

// runtimeEnvironment returns the environment of an OCI runtime. NOTIFY_SOCKET is systemd's
// to containerd; runc would answer there for its container. A runtime that is written in
// Go ends before a collection of its garbage is of use: without any, runc exec took a
// seventh less CPU time. The hooks that it runs may inherit that.
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

// scratchFile returns a file that is in no directory, to be read from its beginning. It is
// nothing to execute, and says so: a host may refuse files that do not (vm.memfd_noexec).
// The flag came with Linux 6.3 (memfd_create(2)).
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

// beginning returns what a message can hold of a file.
func beginning(f *os.File) string {
	const limit = 4 << 10
	data, err := io.ReadAll(io.NewSectionReader(f, 0, limit))
	if err != nil {
		return ""
	}
	return string(data)
}
