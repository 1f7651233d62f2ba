package process

import (
	"context"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

	"golang.org/x/sys/unix"
)

// spawn has the OCI runtime create a process: it opens the streams, has run call the
// runtime, and returns the process as a claimed child. After an error no stream is open, but
// the caller has to undo what the runtime may have created.
func (h *Supervisor) spawn(ctx context.Context, p *Process, o oci.Options, pidFile string, run func(*stdio.Streams, *stdio.ConsoleSocket) error) (_ *reap.Child, err error) {
	// Until the process is claimed, nobody else may reap it.
	defer h.reaper.Hold()()

	s, console, err := h.openStdio(ctx, p, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if console != nil {
		defer console.Close()
	}
	if err := run(s, console); err != nil {
		return nil, err
	}
	pid, err := oci.ReadPidFile(pidFile)
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
	s.Start()
	return child, nil
}

func (h *Supervisor) openStdio(ctx context.Context, p *Process, o oci.Options) (*stdio.Streams, *stdio.ConsoleSocket, error) {
	logger := &stdio.LoggerConfig{ID: p.loggerID(), Namespace: h.namespace, Reaper: h.reaper, ReadyTimeout: stdio.LoggerReadyTimeout}
	if !p.stdio.Terminal {
		s, err := stdio.Open(ctx, p.stdio, logger, stdio.Owner{UID: o.IoUID, GID: o.IoGID})
		return s, nil, err
	}
	s, err := stdio.OpenConsole(ctx, p.stdio, logger)
	if err != nil {
		return nil, nil, err
	}
	console, err := stdio.NewConsoleSocket()
	if err != nil {
		s.Close()
		return nil, nil, err
	}
	return s, console, nil
}

func (h *Supervisor) attachConsole(ctx context.Context, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	ctx, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	master, err := console.Receive(ctx)
	if err != nil {
		return err
	}
	s.Attach(master)
	return nil
}

// abandon kills and reaps a claimed child that cannot be used.
func (h *Supervisor) abandon(c *reap.Child) {
	_ = c.Signal(unix.SIGKILL) // it may have ended
	_, _ = c.Wait()
}
