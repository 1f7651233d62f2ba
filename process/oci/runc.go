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

// Two of runc's commands do less than it takes to start a Go program. For the usual
// container the shim does itself what they do; for others, and for other OCI runtimes, it
// calls them. See execFifo and removeContainer.

// isRunc says whether the OCI runtime is runc itself, whatever it is called, and may be
// done without. A program that calls runc, under any name, is to get all commands.
func (r *Runtime) isRunc() bool {
	if r.Options.AlwaysCallRuntime {
		return false
	}
	path, err := exec.LookPath(r.binary())
	return err == nil && runcPrograms.has(path)
}

// runcPrograms are the files that have been looked at. There are one or two on a host,
// and more only as long as they are replaced under a running shim.
var runcPrograms = programs{isRunc: make(map[programID]bool)}

type programs struct {
	mu     sync.Mutex
	isRunc map[programID]bool // guarded by mu
}

// programID tells a file from the one that replaces it.
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

// isRuncProgram says whether a file is runc, of a major version that keeps its files as
// is said here: by what Go's linker writes into every program. Distributions' builds may
// have no version there.
func isRuncProgram(path string) bool {
	info, err := buildinfo.ReadFile(path)
	if err != nil || info.Path != "github.com/opencontainers/runc" {
		return false
	}
	major, _, ok := strings.Cut(info.Main.Version, ".")
	return !ok || major == "v1" || major == "v0" // the latter of builds from no release
}

// stateFile is where runc keeps what it knows of a container. crun has no file of that
// name.
func (r *Runtime) stateFile(id string) string { return filepath.Join(r.Root(), id, "state.json") }

// RuncState is what is of use of that file (State in libcontainer, 1.0 to 1.5).
type RuncState struct {
	InitPid      int               `json:"init_process_pid"`
	InitStart    uint64            `json:"init_process_start"` // as of [reap.StartTime]
	CgroupPaths  map[string]string `json:"cgroup_paths"`
	IntelRdtPath string            `json:"intel_rdt_path"`
	Config       struct {
		Cgroups struct{ Systemd bool }
		Hooks   struct {
			Poststop []json.RawMessage `json:"poststop"`
		}
	} `json:"config"`
}

// runcState returns what runc has written of a container.
func (r *Runtime) runcState(id string) (s RuncState, err error) {
	if !r.isRunc() {
		return s, fmt.Errorf("the OCI runtime %s is not runc: %w", r.binary(), errdefs.ErrNotFound)
	}
	err = ReadJSON(r.stateFile(id), &s)
	return s, err
}

// The init of a container that runc has created waits until somebody opens the fifo
// exec.fifo in runc's directory of the container, writes a byte into it, and closes it by
// executing the container's program. `runc start` is no more than the reader, and the
// removal of the fifo (Container.exec, libcontainer/container_linux.go). Being that reader
// spares a process, and a tenth of the time in which a pod is ready.
//
// The runtime specification has the poststart hooks run by start, too. runc runs them at
// the end of create, up to 1.5 at least; where there are any, it is called all the same.

// ExecFifo returns the path of the fifo if the container is one of runc's that waits to
// be started; otherwise it is empty.
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
	// look is how often it is looked whether an init that has not opened its fifo still
	// lives; `runc start` does as often.
	look = 100 * time.Millisecond
	// execFifoTimeout bounds how long an init that goes on may take to execute its
	// program. It is over where somebody else holds the fifo open.
	execFifoTimeout = 10 * time.Second
)

// OpenExecFifo lets the init behind a fifo go on, and returns when it has executed the
// container's program. Once it goes on, that the client has gone changes nothing: the
// container runs, and nobody could start it a second time.
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
	var end time.Time // zero as long as the init does not go on
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
			return removeFifo(path) // somebody else holds the fifo open
		case reader.told:
		case dead:
			return fmt.Errorf("container process is already dead: %w", errdefs.ErrFailedPrecondition)
		case executed:
			return removeFifo(path) // it went on just when another start gave up
		case gone:
			return ctx.Err()
		}
		// What it has written before can still be read, once more. Whether it is dead is
		// looked at last: then it is not its own program, either.
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

// programTimeout bounds how long it is waited for a program to be executed: it may call
// itself what an OCI runtime's init is called.
const programTimeout = time.Second

// awaitProgram returns when a process that an OCI runtime has let go executes its own
// program: a signal that comes before is not the program's to handle. The runtime's own
// end says less: it does not see that execve(2).
func awaitProgram(pid int, isInit func(pid int) bool) {
	for end := time.Now().Add(programTimeout); isInit(pid) && time.Now().Before(end); {
		time.Sleep(250 * time.Microsecond)
	}
}

// isInitOfRunc says whether a process is still what runc makes it from: that has a name
// of this form (nsexec.c in libcontainer).
func isInitOfRunc(pid int) bool {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && strings.HasPrefix(string(name), "runc:[")
}

// isInit is isInitOfRunc for any OCI runtime: crun's init is executed from its own file,
// or from a copy in memory.
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

// RemoveContainer does what `runc delete` does to a container that has ended, and has no
// more than usual: it removes the cgroup, and runc's directory of the container (destroy,
// libcontainer/state_linux.go). It returns false if that is left to runc, which then goes
// on with what is there: hooks, systemd's unit, a group in the CPU's cache control.
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

// cgroupTimeout bounds how long the cgroup of a container that has ended may stay busy.
const cgroupTimeout = 10 * time.Second
