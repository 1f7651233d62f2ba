package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// This file ends containers that no shim watches any more.

// End kills a container and removes what is left of it. It kills the processes first,
// which is quick even on a busy host, and calls the OCI runtime last, which may be slow.
func (r *Runtime) End(ctx context.Context, id string) error {
	err := r.kill(ctx, id)
	if !r.removeKilled(ctx, id) {
		derr := r.Delete(ctx, id, true)
		if wasKilled(derr) && ctx.Err() == nil {
			derr = r.Delete(ctx, id, true) // a signal ended the runtime before its work was done
		}
		err = errors.Join(err, derr)
	}
	// Under load, the kernel may be slow to take the last process out of the cgroup. runc
	// then leaves the cgroup behind, and only logs that.
	return errors.Join(err, r.RemoveCgroup(ctx))
}

func (r *Runtime) removeKilled(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return r.RemoveContainer(ctx, id)
}

// endTimeout bounds how long processes may take to die, and then how long a cgroup may
// stay busy. Without this bound no time might be left for the OCI runtime.
const endTimeout = time.Second

// kill kills a container's processes, and waits until its init has ended. If the init is
// known and the container has its own PID namespace, the kernel kills the other processes
// with the init; otherwise kill signals all processes in the cgroup.
func (r *Runtime) kill(ctx context.Context, id string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot kill container %s: %w", id, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	init := r.openInit(id)
	defer stdio.CloseAll(init)
	if init != nil {
		err = sendSignal(init, unix.SIGKILL)
	}
	cgroup, gerr := r.cgroup()
	switch {
	case cgroup == nil:
	case init != nil && err == nil && r.ownsPIDNamespace():
		gerr = cgroup.LetDie(ctx)
	default:
		gerr = cgroup.Signal(unix.SIGKILL)
	}
	if !errdefs.IsNotFound(gerr) { // not found: removed after its last process ended
		err = errors.Join(err, gerr)
	}
	if err != nil || init == nil {
		return err
	}
	return awaitDeath(ctx, init)
}

// ownsPIDNamespace reports whether all of the container's processes end with its init.
func (r *Runtime) ownsPIDNamespace() bool {
	s, err := ReadSpec(r.Bundle)
	return err == nil && OwnsPIDNamespace(s)
}

// openInit returns a pidfd of the container's init. It returns nil if no process has both
// the pid and the start time that runc has recorded (the pid alone may be another
// process's now), or if there are no pidfds.
func (r *Runtime) openInit(id string) *os.File {
	state, err := r.runcState(id)
	if err != nil || state.InitPid <= 0 {
		return nil // not runc's container
	}
	fd, err := unix.PidfdOpen(state.InitPid, 0)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if start, err := reap.StartTime(state.InitPid); err != nil || start != state.InitStart {
		f.Close()
		return nil
	}
	return f
}

// sendSignal sends a signal to the process of a pidfd. It is no error if that has ended.
func sendSignal(pidfd *os.File, sig unix.Signal) error {
	err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}

// awaitDeath waits until the process of a pidfd has ended.
func awaitDeath(ctx context.Context, pidfd *os.File) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(endTimeout)
	}
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	var n int
	err := reap.IgnoringEINTR(func() (err error) {
		n, err = unix.Poll(fds, int(max(0, time.Until(deadline).Milliseconds())))
		return err
	})
	if err == nil && n == 0 {
		return errors.New("its init has not ended after SIGKILL")
	}
	return os.NewSyscallError("poll", err)
}

// cgroup returns the container's cgroup; nil if the container has none of its own, or if
// that is gone.
func (r *Runtime) cgroup() (*cgroups.Cgroup, error) {
	if r.CgroupsPath == "" {
		return nil, nil
	}
	cgroup, err := cgroups.Load(r.CgroupsPath, r.Options.SystemdCgroup)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return cgroup, nil
}

// SharesCgroup reports whether other processes are in the container's cgroup. It is for a
// container that is not created yet.
func (r *Runtime) SharesCgroup() bool {
	cgroup, err := r.cgroup()
	if err != nil || cgroup == nil {
		return false
	}
	pids, err := cgroup.Pids()
	return err == nil && len(pids) > 0
}

// RemoveCgroup removes the container's cgroup, unless it stays busy.
func (r *Runtime) RemoveCgroup(ctx context.Context) error {
	cgroup, err := r.cgroup()
	if err != nil || cgroup == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return cgroup.Remove(ctx)
}
