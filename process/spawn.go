package process

import (
	"context"

	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// spawn has the OCI runtime make a process: it opens the streams, lets run call
// the runtime, and returns the process as a claimed child. After an error nothing
// is open, but what the runtime may have made is the caller's to undo.
func (h *Supervisor) spawn(ctx context.Context, p *Process, o Options, pidFile string, run func(*streams, *consoleSocket) error) (_ *reap.Child, err error) {
	// Until the process is claimed, its exit must wait for us.
	defer h.reaper.Hold()()

	s, console, err := h.openStdio(ctx, p, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if console != nil {
		defer console.Close()
	}
	if err := run(s, console); err != nil {
		return nil, err
	}
	pid, err := readPidFile(pidFile)
	if err != nil {
		return nil, err
	}
	child := h.reaper.Claim(pid)
	if console != nil {
		if err := h.attachConsole(ctx, s, console); err != nil {
			h.abandon(child)
			return nil, err
		}
	}
	p.setStreams(s)
	s.start()
	return child, nil
}

func (h *Supervisor) openStdio(ctx context.Context, p *Process, o Options) (*streams, *consoleSocket, error) {
	logger := &loggerRequest{id: p.loggerID(), namespace: h.namespace, reaper: h.reaper, readyTimeout: loggerReadyTimeout}
	if !p.stdio.Terminal {
		s, err := openStreams(ctx, p.stdio, logger, o)
		return s, nil, err
	}
	s, err := openConsole(ctx, p.stdio, logger)
	if err != nil {
		return nil, nil, err
	}
	console, err := newConsoleSocket()
	if err != nil {
		s.close()
		return nil, nil, err
	}
	return s, console, nil
}

func (h *Supervisor) attachConsole(ctx context.Context, s *streams, console *consoleSocket) error {
	ctx, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	master, err := console.receive(ctx)
	if err != nil {
		return err
	}
	s.attach(master)
	return nil
}

// abandon kills a claimed child that cannot be used, and reaps it.
func (h *Supervisor) abandon(c *reap.Child) {
	_ = c.Signal(unix.SIGKILL) // it may have ended
	_, _ = c.Wait()
}
