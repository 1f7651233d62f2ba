package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The init of a container that runc has created waits until somebody opens the fifo
// exec.fifo in runc's directory of the container, writes a byte into it, and closes it by
// executing the container's program. `runc start` is no more than the reader, and the
// removal of the fifo (Container.exec, libcontainer/container_linux.go). Being that reader
// spares a process, and a tenth of the time in which a pod is ready.
//
// The runtime specification has the poststart hooks run by start, too. runc runs them at
// the end of create, up to 1.5 at least; where there are any, it is called all the same.

// execFifo returns the path of the fifo if the container is one of runc's that waits to
// be started; otherwise it is empty. Other OCI runtimes may have files of the same names,
// but no state.json beside an exec.fifo.
func (r *ociRuntime) execFifo(id string) string {
	if name := filepath.Base(r.options.BinaryName); r.options.BinaryName != "" && !strings.HasPrefix(name, "runc") {
		return ""
	}
	dir := filepath.Join(r.root(), id)
	fifo := filepath.Join(dir, "exec.fifo")
	if st, err := os.Lstat(fifo); err != nil || st.Mode().Type() != os.ModeNamedPipe {
		return ""
	}
	if _, err := os.Lstat(filepath.Join(dir, "state.json")); err != nil {
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
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case dead:
			return fmt.Errorf("container process is already dead: %w", errdefs.ErrFailedPrecondition)
		}
		// What it has written before its end can still be read, once more.
		dead = errdefs.IsNotFound(init.signal(0))
	}
}

// execFifoReader reads the byte and then the end of a fifo whose writer may not have
// come yet, which looks like the end.
type execFifoReader struct {
	told bool
	err  error
}

// read says whether there is no more to come.
func (r *execFifoReader) read(fd uintptr) bool {
	var buf [8]byte
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
		default:
			r.told = true
		}
	}
}
