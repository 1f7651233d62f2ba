package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"containerd-shim-pause-v2/cgroups"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Two of runc's commands do less than it takes to start a Go program. For the usual
// container the shim does itself what they do; for others, and for other OCI runtimes, it
// calls them. See execFifo and removeContainer.

// isRunc says whether the OCI runtime is runc, by its name.
func (r *ociRuntime) isRunc() bool { return strings.HasPrefix(filepath.Base(r.binary()), "runc") }

// stateFile is where runc keeps what it knows of a container. crun has no file of that
// name.
func (r *ociRuntime) stateFile(id string) string { return filepath.Join(r.root(), id, "state.json") }

// The init of a container that runc has created waits until somebody opens the fifo
// exec.fifo in runc's directory of the container, writes a byte into it, and closes it by
// executing the container's program. `runc start` is no more than the reader, and the
// removal of the fifo (Container.exec, libcontainer/container_linux.go). Being that reader
// spares a process, and a tenth of the time in which a pod is ready.
//
// The runtime specification has the poststart hooks run by start, too. runc runs them at
// the end of create, up to 1.5 at least; where there are any, it is called all the same.

// execFifo returns the path of the fifo if the container is one of runc's that waits to
// be started; otherwise it is empty.
func (r *ociRuntime) execFifo(id string) string {
	if !r.isRunc() {
		return ""
	}
	if _, err := os.Lstat(r.stateFile(id)); err != nil {
		return ""
	}
	fifo := filepath.Join(r.root(), id, "exec.fifo")
	if st, err := os.Lstat(fifo); err != nil || st.Mode().Type() != os.ModeNamedPipe {
		return ""
	}
	return fifo
}

// look is how often it is looked whether an init that has not opened its fifo still
// lives; `runc start` does as often.
const look = 100 * time.Millisecond

// openExecFifo lets the init behind a fifo go on, and returns when it has executed the
// container's program.
func openExecFifo(ctx context.Context, path string, init *child) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	reader := execFifoReader{}
	for dead := false; ; {
		if err := f.SetReadDeadline(time.Now().Add(look)); err != nil {
			return err
		}
		err := conn.Read(reader.read)
		switch {
		case reader.err != nil:
			return os.NewSyscallError("read", reader.err)
		case err == nil:
			return removeFifo(path)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case dead && reader.told:
			return removeFifo(path) // somebody else holds the fifo open
		case dead:
			return fmt.Errorf("container process is already dead: %w", errdefs.ErrFailedPrecondition)
		}
		// What it has written before its end can still be read, once more.
		dead = errdefs.IsNotFound(init.signal(0))
	}
}

func removeFifo(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// execFifoReader reads the byte and then the end of a fifo whose writer may not have
// come yet, which looks like the end. More than one byte is not from runc's init: a
// container that may trace another's processes could write for ever.
type execFifoReader struct {
	told bool
	err  error
}

// read says whether there is no more to come.
func (r *execFifoReader) read(fd uintptr) bool {
	var buf [2]byte
	for {
		n, err := unix.Read(int(fd), buf[:])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil:
			r.err = err
			return true
		case n == 0:
			return r.told
		case r.told, n > 1:
			r.told = true
			return true
		default:
			r.told = true
		}
	}
}

// removeContainer does what `runc delete` does to a container that has ended, and has no
// more than usual: it removes the cgroup, and runc's directory of the container (destroy,
// libcontainer/state_linux.go). It returns false if that is left to runc, which then goes
// on with what is there.
func (r *ociRuntime) removeContainer(ctx context.Context, id string) bool {
	if !r.isRunc() {
		return false
	}
	var state struct {
		CgroupPaths  map[string]string `json:"cgroup_paths"`
		IntelRdtPath string            `json:"intel_rdt_path"`
	}
	if err := readJSON(r.stateFile(id), &state); err != nil || len(state.CgroupPaths) == 0 || state.IntelRdtPath != "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	err := cgroups.RemoveDirs(ctx, slices.Collect(maps.Values(state.CgroupPaths)))
	if err == nil {
		err = os.RemoveAll(filepath.Dir(r.stateFile(id)))
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("id", id).Warn("runc is to remove the container")
	}
	return err == nil
}
