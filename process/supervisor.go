package process

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Supervisor makes tasks. There is one in a shim process; what all of its tasks
// share is here.
type Supervisor struct {
	namespace string // containerd's
	thread    *Thread
	reaper    *Reaper
	events    Events

	mu sync.Mutex
	// sandboxes that live, by id. Guarded by mu.
	sandboxes map[string]*sandbox
	// tenant is the sandbox that the thread holds, if any. Guarded by mu.
	tenant *sandbox
	// sharers are the containers whose PID namespace is not their own, with that
	// namespace. Guarded by mu.
	sharers map[*container]nsID
}

// NewSupervisor returns a supervisor for the tasks of one of containerd's
// namespaces. The thread is the one that a sandbox will live in.
func NewSupervisor(namespace string, thread *Thread, reaper *Reaper, events Events) *Supervisor {
	return &Supervisor{
		namespace: namespace,
		thread:    thread,
		reaper:    reaper,
		events:    events,
		sandboxes: make(map[string]*sandbox),
		sharers:   make(map[*container]nsID),
	}
}

// Create makes a task: a sandbox if the annotations in its spec say so, else a
// container. What it has made is undone if it fails.
func (h *Supervisor) Create(ctx context.Context, r CreateRequest) (*Task, error) {
	t, err := h.create(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("cannot create task %s: %w", r.ID, err)
	}
	return t, nil
}

func (h *Supervisor) create(ctx context.Context, r CreateRequest) (*Task, error) {
	s, err := specOf(r)
	if err != nil {
		return nil, err
	}
	if err := checkNamespaceList(s.Linux.Namespaces); err != nil {
		return nil, err
	}
	if r.Sandbox || isSandbox(s) {
		if r.Checkpoint != "" {
			return nil, fmt.Errorf("a sandbox has no process to restore: %w", errdefs.ErrNotImplemented)
		}
		return h.newSandbox(ctx, r, s)
	}
	return h.newContainer(ctx, r, s)
}

func (h *Supervisor) ociRuntime(bundle string, o Options) *ociRuntime {
	return &ociRuntime{options: o, namespace: h.namespace, bundle: bundle, reaper: h.reaper}
}

// Release ends all sandboxes, when the shim ends without having been told to
// delete them. It does not wait for containers that join one and do not give up:
// the namespaces go with the shim.
func (h *Supervisor) Release() {
	h.mu.Lock()
	tenant := h.tenant
	h.mu.Unlock()
	if tenant == nil {
		return
	}
	go tenant.end(exitSignalBase + int(unix.SIGKILL))
	select {
	case <-tenant.freed:
	case <-time.After(releaseTimeout):
	}
}

// releaseTimeout bounds how long a shim that ends waits for its sandbox. The exit
// is told at once, but for a pod's init that does not die.
const releaseTimeout = 5 * time.Second
