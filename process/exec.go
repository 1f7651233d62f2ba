package process

import (
	"context"
	"os"
	"path/filepath"
	"time"

	runc "github.com/containerd/go-runc"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// execution runs a process in a container beside its init.
type execution struct {
	container *container
	spec      *specs.Process
	child     *child // nil before start
}

func (c *container) newExec(t *Task, id string, sio Stdio, spec *specs.Process) (*Process, error) {
	spec.Terminal = sio.Terminal
	return newProcess(t.ID, id, sio, c.host.events, &execution{container: c, spec: spec}), nil
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
	pidFile := e.pidFile(p)
	defer os.Remove(pidFile)
	rt := e.container.runtime
	e.child, err = e.container.host.spawn(ctx, p, rt.options, pidFile, func(s *streams, console *consoleSocket) error {
		opts := &runc.ExecOpts{IO: processIO{s}, PidFile: pidFile, Detach: true}
		if console != nil {
			opts.ConsoleSocket, opts.IO = console, nil
		}
		return rt.exec(ctx, t.ID, *e.spec, opts, "exec-"+p.id+".log.json")
	})
	if err != nil {
		return err
	}
	p.setPID(e.child.pid)
	go e.awaitEnd(p)
	return nil
}

func (e *execution) pidFile(p *Process) string {
	return filepath.Join(e.container.task.Bundle, "exec-"+p.id+".pid")
}

func (e *execution) awaitEnd(p *Process) {
	defer e.container.task.running.Done()
	status, err := e.child.wait()
	if err != nil {
		log.L.WithError(err).WithField("id", p.taskID).WithField("exec", p.id).Error("the exit status of the process is not known")
	}
	p.stop(Exit{Status: uint32(status), At: time.Now()}, nil)
}

func (e *execution) signal(sig unix.Signal) error { return e.child.signal(sig) }

func (e *execution) remove(ctx context.Context, p *Process) error {
	if err := p.closeStreams(ctx); err != nil {
		log.G(ctx).Warn(err)
	}
	return nil
}
