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

// How a container ends that no shim watches any more.

// End kills a container and removes all of it, in the order of what matters: it takes no
// time to end processes, however busy the host is. What calls the OCI runtime comes last.
func (r *Runtime) End(ctx context.Context, id string) error {
	err := r.kill(ctx, id)
	if !r.removeKilled(ctx, id) {
		derr := r.Delete(ctx, id, true)
		if wasKilled(derr) && ctx.Err() == nil {
			derr = r.Delete(ctx, id, true) // what it had not done
		}
		err = errors.Join(err, derr)
	}
	// Under load, runc gives up on a cgroup whose last process the kernel has not
	// taken out yet, with no more than a line in its log.
	return errors.Join(err, r.RemoveCgroup(ctx))
}

func (r *Runtime) removeKilled(ctx context.Context, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	return r.RemoveContainer(ctx, id)
}

// endTimeout bounds how long processes may take to die, and then how long a cgroup may
// stay busy, before the OCI runtime is called in what is left of the time.
const endTimeout = time.Second

// kill kills the init of a container, and with it all in its PID namespace; if that is
// not its own, or not known, all in the cgroup. It waits until the init has ended.
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
	if !errdefs.IsNotFound(gerr) { // else the cgroup has gone with its last process
		err = errors.Join(err, gerr)
	}
	if err != nil || init == nil {
		return err
	}
	return awaitDeath(ctx, init)
}

// ownsPIDNamespace says whether all of the container ends with its init.
func (r *Runtime) ownsPIDNamespace() bool {
	s, err := ReadSpec(r.Bundle)
	return err == nil && OwnsPIDNamespace(s)
}

// openInit returns a pidfd of the container's init; nil if that has ended, or is not known
// by more than its pid, which may be another process's by now, or if there are no pidfds.
func (r *Runtime) openInit(id string) *os.File {
	state, err := r.runcState(id)
	if err != nil || state.InitPid <= 0 {
		return nil // it is no container of runc's
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

// sendSignal sends a signal to the process of a pidfd, which may have ended.
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
		return errors.New("it has not ended within the time")
	}
	return os.NewSyscallError("poll", err)
}

// cgroup returns the container's; nil if it has none, or not any more.
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

// SharesCgroup says whether others are in the container's cgroup before it is created.
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
