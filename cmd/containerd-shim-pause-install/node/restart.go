package node

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// restarter restarts containerd. It returns when containerd has been started, which does not
// mean that it works.
type restarter interface {
	restart(ctx context.Context) error
	String() string
}

// command is a command of the host that restarts containerd.
type command struct {
	root root
	argv []string
}

func (c command) String() string { return fmt.Sprintf("%q", c.argv) }

func (c command) restart(ctx context.Context) error {
	_, err := c.root.run(ctx, nil, c.argv...)
	return err
}

// systemd restarts a unit.
type systemd struct {
	root            root
	systemctl, unit string
}

func (s systemd) String() string { return "systemctl restart " + s.unit }

func (s systemd) restart(ctx context.Context) error {
	before, err := s.invocation(ctx)
	if err != nil {
		return err
	}
	if _, err := s.root.run(ctx, nil, s.systemctl, "restart", s.unit); err != nil {
		return err
	}
	after, err := s.invocation(ctx)
	if err != nil {
		return err
	}
	// Old releases of systemctl succeed without doing anything where they do not find their daemon.
	if after == before {
		return fmt.Errorf("cannot restart %s: systemctl has succeeded, but the unit has not been restarted (%s)", s.unit, after)
	}
	return nil
}

// invocation tells one start of the unit from another.
func (s systemd) invocation(ctx context.Context) (string, error) {
	return s.root.run(ctx, nil, s.systemctl, "show", "-p", "InvocationID", "-p", "MainPID", "-p", "ActiveEnterTimestampMonotonic", s.unit)
}

// awaitCRI waits until containerd's CRI answers at the socket, a path of the host, and is ready.
// If CRI lists its handlers (containerd 2.0 and later), they must include, or not include, those
// of ours.
func (r root) awaitCRI(ctx context.Context, socket string, handlers []string, want bool) error {
	var last error
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := r.askCRI(attempt, socket, handlers, want)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("containerd is not ready: %w", last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (r root) askCRI(ctx context.Context, socket string, handlers []string, want bool) error {
	path, err := r.follow(socket)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+filepath.Clean(path), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := cri.NewRuntimeServiceClient(conn).Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return fmt.Errorf("no answer by CRI at %s: %w", socket, err)
	}
	for _, c := range answer.GetStatus().GetConditions() {
		if c.Type == "RuntimeReady" && !c.Status {
			return fmt.Errorf("CRI is not ready: %s: %s", c.Reason, c.Message)
		}
	}
	if len(answer.RuntimeHandlers) == 0 {
		return nil
	}
	for _, name := range handlers {
		if slices.ContainsFunc(answer.RuntimeHandlers, func(h *cri.RuntimeHandler) bool { return h.Name == name }) != want {
			if want {
				return fmt.Errorf("CRI does not have the handler %s", name)
			}
			return errors.New("CRI still has the handler " + name)
		}
	}
	return nil
}
