package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// execution is the runner of an exec.
type execution struct {
	container *container
	// spec is a specs.Process. It is kept as raw fields, so that those unknown to the shim
	// reach the OCI runtime too. It is nil after start.
	spec  map[string]json.RawMessage
	child *reap.Child // nil before start
}

func (c *container) newExec(t *Task, id string, sio stdio.Config, spec []byte) (*Process, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(spec, &fields); err != nil {
		return nil, fmt.Errorf("cannot decode the spec of process %s in task %s: %w: %w", id, t.ID, err, errdefs.ErrInvalidArgument)
	}
	if fields == nil {
		return nil, fmt.Errorf("cannot add process %s to task %s: it has no spec: %w", id, t.ID, errdefs.ErrInvalidArgument)
	}
	// The request decides whether there is a terminal, not the spec.
	fields["terminal"] = strconv.AppendBool(nil, sio.Terminal)
	return newProcess(t.ID, id, sio, c.supervisor.events, &execution{container: c, spec: fields}), nil
}

// writeSpec writes the spec for the OCI runtime. It includes the terminal size that a
// client has asked for, because the runtime sets it before the program runs.
func (e *execution) writeSpec(p *Process, path string) error {
	if size := p.wantedSize(); size != nil && p.stdio.Terminal {
		box, err := json.Marshal(size)
		if err != nil {
			return err
		}
		e.spec["consoleSize"] = box
	}
	data, err := json.Marshal(e.spec)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func (e *execution) start(ctx context.Context, p *Process) (err error) {
	t := e.container.task
	if err := t.beginExec(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			t.running.Done()
		}
	}()
	ctx, cancel := e.container.untilEnd(ctx)
	defer cancel()
	// The files are not named after the id: it may be as long as a file name can be, which
	// leaves no room for a suffix, or be the name of another exec's file.
	dir, err := os.MkdirTemp(t.Bundle, "exec-")
	if err != nil {
		return fmt.Errorf("cannot create a directory for the files of the exec: %w", err)
	}
	defer os.RemoveAll(dir)
	pidFile, spec, logFile := filepath.Join(dir, "pid"), filepath.Join(dir, "process.json"), filepath.Join(filepath.Base(dir), oci.LogFile)
	if err := e.writeSpec(p, spec); err != nil {
		return err
	}
	rt := e.container.runtime
	e.child, err = e.container.supervisor.spawn(ctx, p, rt.Options, pidFile, func(s *stdio.Streams, console *stdio.ConsoleSocket) error {
		return rt.Exec(ctx, t.ID, spec, pidFile, logFile, s, console)
	})
	if err != nil {
		return err
	}
	e.spec = nil // free it: it may be large
	p.setPID(e.child.Pid)
	go e.awaitEnd(p)
	e.container.killLate()
	return nil
}

func (e *execution) awaitEnd(p *Process) {
	e.child.Await()
	defer e.container.supervisor.begin()()
	defer e.container.task.running.Done()
	status, err := e.child.Reap()
	if err != nil {
		log.L.WithError(err).WithField("id", p.taskID).WithField("exec", p.id).Error("cannot get the exit status of the process: reporting 255")
	}
	p.stop(Exit{Status: uint32(status), At: time.Now()}, nil)
}

func (e *execution) signal(sig unix.Signal) error { return e.child.Signal(sig) }

func (e *execution) remove(ctx context.Context, p *Process) error {
	if err := p.closeStreams(ctx); err != nil {
		log.G(ctx).Warn(err)
	}
	return nil
}
