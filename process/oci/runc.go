package oci

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Two of runc's commands, start and delete, do less work than starting a Go program takes.
// For most containers the shim does that work itself: see ExecFifo and RemoveContainer. For
// the rest, and with other OCI runtimes, it calls the command.

// isRunc reports whether the OCI runtime is runc itself, under any name, so that the shim
// may do its work. A program that wraps runc must get every command.
func (r *Runtime) isRunc() bool {
	if r.Options.AlwaysCallRuntime {
		return false
	}
	path, err := exec.LookPath(r.binary())
	return err == nil && runcPrograms.has(path)
}

// runcPrograms remembers which files are runc. It holds one or two per host, and one more
// for each time that such a file is replaced while the shim runs.
var runcPrograms = programs{isRunc: make(map[programID]bool)}

type programs struct {
	mu     sync.Mutex
	isRunc map[programID]bool // guarded by mu
}

// programID identifies a file, and distinguishes it from one that replaces it.
type programID struct {
	path              string
	dev, ino          uint64
	size              int64
	modified, changed unix.Timespec
}

func (p *programs) has(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false
	}
	id := programID{path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
	p.mu.Lock()
	defer p.mu.Unlock()
	is, ok := p.isRunc[id]
	if !ok {
		is = isRuncProgram(path)
		p.isRunc[id] = is
	}
	return is
}

// isRuncProgram reports whether a file is runc, of a major version whose files this package
// knows. It reads what Go's linker writes into every program (debug/buildinfo), where
// distributions' builds may have no version.
func isRuncProgram(path string) bool {
	info, err := buildinfo.ReadFile(path)
	if err != nil || info.Path != "github.com/opencontainers/runc" {
		return false
	}
	major, _, ok := strings.Cut(info.Main.Version, ".")
	return !ok || major == "v1" || major == "v0" // v0.0.0-… is a build without a release tag
}

// stateFile is the path of runc's state of a container. crun has no file of that name.
func (r *Runtime) stateFile(id string) string { return filepath.Join(r.Root(), id, "state.json") }

// RuncState holds the fields of runc's state.json that the shim needs (State in
// libcontainer, 1.0 to 1.5).
type RuncState struct {
	InitPid      int               `json:"init_process_pid"`
	InitStart    uint64            `json:"init_process_start"` // see [reap.StartTime]
	CgroupPaths  map[string]string `json:"cgroup_paths"`
	IntelRdtPath string            `json:"intel_rdt_path"`
	Config       struct {
		Cgroups struct{ Systemd bool }
		Hooks   struct {
			Poststop []json.RawMessage `json:"poststop"`
		}
	} `json:"config"`
}

// runcState reads runc's state of a container. If the OCI runtime is not runc, it fails with
// [errdefs.ErrNotFound].
func (r *Runtime) runcState(id string) (s RuncState, err error) {
	if !r.isRunc() {
		return s, fmt.Errorf("the OCI runtime %s is not runc: %w", r.binary(), errdefs.ErrNotFound)
	}
	err = ReadJSON(r.stateFile(id), &s)
	return s, err
}

// After `runc create`, the container's init opens exec.fifo in runc's directory of the
// container for writing, and so waits for a reader. Then it writes one byte, and executes
// the container's program, which closes the fifo. `runc start` only reads the fifo and
// removes it (Container.exec, libcontainer/container_linux.go). The shim reads it itself:
// that saves a process, and a tenth of the time until a pod is ready.
//
// By the runtime specification, start also runs the poststart hooks. runc, at least up to
// 1.5, runs them at the end of create; the shim still calls runc if there are any.

// ExecFifo returns the path of the fifo if runc created the container and its init waits to
// be started; otherwise it returns an empty string.
func (r *Runtime) ExecFifo(id string) string {
	if !r.isRunc() {
		return ""
	}
	if _, err := os.Lstat(r.stateFile(id)); err != nil {
		return ""
	}
	fifo := filepath.Join(r.Root(), id, "exec.fifo")
	if st, err := os.Lstat(fifo); err != nil || st.Mode().Type() != os.ModeNamedPipe {
		return ""
	}
	return fifo
}

const (
	// look is how often OpenExecFifo checks that the init, which has not opened its fifo
	// yet, still lives. `runc start` uses the same interval.
	look = 100 * time.Millisecond
	// execFifoTimeout bounds how long the fifo may stay open after the init has written
	// its byte. It expires only if another process holds the fifo open.
	execFifoTimeout = 10 * time.Second
)

// OpenExecFifo starts the init that waits at a fifo, and returns when the init has executed
// the container's program. The end of ctx has no effect once the init has written its byte:
// the container runs then, and cannot be started a second time.
func OpenExecFifo(ctx context.Context, path string, init *reap.Child) error {
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
	var end time.Time // zero until the init has written its byte
	for dead, gone, executed := false, false, false; ; {
		if err := f.SetReadDeadline(time.Now().Add(look)); err != nil {
			return err
		}
		err := conn.Read(reader.read)
		if reader.told && end.IsZero() {
			end = time.Now().Add(execFifoTimeout)
		}
		switch {
		case reader.err != nil:
			return os.NewSyscallError("read", reader.err)
		case err == nil:
			awaitProgram(init.Pid, isInitOfRunc)
			return removeFifo(path)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case reader.told && (dead || time.Now().After(end)):
			return removeFifo(path) // another process holds the fifo open
		case reader.told:
		case dead:
			return fmt.Errorf("container process is already dead: %w", errdefs.ErrFailedPrecondition)
		case executed:
			return removeFifo(path) // another start has read the byte, and then gave up
		case gone:
			return ctx.Err()
		}
		// One more read follows these checks, as the init may have written its byte before
		// it died. The check for death comes last: a dead init also looks as if it had
		// executed its program.
		gone, executed = ctx.Err() != nil, !isInitOfRunc(init.Pid)
		dead = errdefs.IsNotFound(init.Signal(0))
	}
}

func removeFifo(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// execFifoReader reads one byte and then the end of a fifo. An end before the byte only
// means that there is no writer yet. runc's init writes no second byte; but another
// container that may trace the init could write for ever, so a second byte is the end, too.
type execFifoReader struct {
	told bool
	err  error
}

// read reports whether it has read the end of the fifo, or failed.
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

// programTimeout bounds awaitProgram, because a container's program may have the same name
// as an OCI runtime's init.
const programTimeout = time.Second

// awaitProgram returns when a process that an OCI runtime has started executes the
// container's program: that could not handle a signal that came earlier. The end of the
// OCI runtime is no sign of it, because the runtime does not wait for that execve(2).
func awaitProgram(pid int, isInit func(pid int) bool) {
	for end := time.Now().Add(programTimeout); isInit(pid) && time.Now().Before(end); {
		time.Sleep(250 * time.Microsecond)
	}
}

// isInitOfRunc reports whether a process still executes runc's init code, which sets a name
// of this form (nsexec.c in libcontainer).
func isInitOfRunc(pid int) bool {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && strings.HasPrefix(string(name), "runc:[")
}

// isInit is isInitOfRunc for any OCI runtime: crun's init executes crun's own file, or a
// copy of it in memory.
func (r *Runtime) isInit(pid int) bool {
	if isInitOfRunc(pid) {
		return true
	}
	exe := "/proc/" + strconv.Itoa(pid) + "/exe"
	if name, err := os.Readlink(exe); err == nil && strings.HasPrefix(name, "/memfd:") {
		return true
	}
	path, err := exec.LookPath(r.binary())
	if err != nil {
		return false
	}
	own, err := os.Stat(path)
	if err != nil {
		return false
	}
	current, err := os.Stat(exe)
	return err == nil && os.SameFile(own, current)
}

// RemoveContainer does what `runc delete` does for a simple container that has ended: it
// removes the cgroup and runc's directory of the container (destroy,
// libcontainer/state_linux.go). It returns false if the OCI runtime must be called: because
// something failed, because it is not runc, or because the container has poststop hooks, a
// systemd unit or a resctrl group (Intel RDT). runc then removes whatever is left.
func (r *Runtime) RemoveContainer(ctx context.Context, id string) bool {
	state, err := r.runcState(id)
	switch {
	case err != nil, len(state.CgroupPaths) == 0:
		return false
	case state.IntelRdtPath != "", state.Config.Cgroups.Systemd, len(state.Config.Hooks.Poststop) > 0:
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, cgroupTimeout)
	defer cancel()
	err = cgroups.RemoveDirs(ctx, slices.Collect(maps.Values(state.CgroupPaths)))
	if err == nil {
		err = os.RemoveAll(filepath.Dir(r.stateFile(id)))
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("id", id).Warn("cannot remove the container without runc; calling runc")
	}
	return err == nil
}

// cgroupTimeout bounds how long the cgroup may stay busy after a container has ended.
const cgroupTimeout = 10 * time.Second
