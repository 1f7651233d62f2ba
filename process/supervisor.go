package process

import (
	"context"
	"fmt"
	"sync"
	"time"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Supervisor creates tasks, and is the registry of all tasks in a shim process. Containers,
// and sandboxes of either API, share one space of ids.
type Supervisor struct {
	namespace string      // containerd's
	thread    *pod.Thread // nil if each sandbox has a thread of its own
	reaper    *reap.Reaper
	starter   *oci.Starter
	events    Events

	// Begin is called before anything that changes a task without a request, and end after
	// it. While it waits, the tasks can be saved (see Save). It is set before the first task
	// is created; nil if they are never saved.
	Begin func() (end func())

	mu      sync.Mutex
	entries map[string]*entry // guarded by mu: by task id
}

// entry is what the registry holds for an id.
type entry struct {
	bundle  string        // path without symbolic links
	given   string        // the same as the client gave it
	created chan struct{} // closed at the end of the create
	// The fields below are guarded by Supervisor.mu.
	task *Task    // nil while it is being created
	pod  *sandbox // nil for a container; set before the sandbox is complete
	// pidns is the PID namespace of a container that shares another's; zero for any other task.
	pidns pod.NSID
	// abort has the create of the task give up; nil before there is anything that takes time.
	abort func()
	// givenUp says that the create has to give up.
	givenUp bool
}

// NewSupervisor returns a supervisor for the tasks of one containerd namespace. With a thread,
// that is where the sandbox lives, and there can be one sandbox at a time; without, each
// sandbox gets a thread of its own.
func NewSupervisor(namespace string, thread *pod.Thread, reaper *reap.Reaper, events Events) *Supervisor {
	return &Supervisor{
		namespace: namespace,
		thread:    thread,
		reaper:    reaper,
		starter:   oci.NewStarter(),
		events:    events,
		entries:   make(map[string]*entry),
	}
}

// begin is Begin.
func (h *Supervisor) begin() (end func()) {
	if h.Begin == nil {
		return func() {}
	}
	return h.Begin()
}

// inBackground calls f in a goroutine of its own. It counts from now on: what asked for f may
// end before f begins.
func (h *Supervisor) inBackground(f func()) {
	end := h.begin()
	go func() {
		defer end()
		f()
	}()
}

// Create creates a task: a sandbox if the request or the annotations in its spec ask for
// one, else a container. It undoes everything if it fails. It fails with
// [errdefs.ErrAlreadyExists] if the id is in use.
func (h *Supervisor) Create(ctx context.Context, r CreateRequest) (*Task, error) {
	t, err := h.create(ctx, r)
	if err != nil {
		kind := "task"
		if r.Pod != nil {
			kind = "sandbox"
		}
		return nil, fmt.Errorf("cannot create %s %s: %w", kind, r.ID, err)
	}
	return t, nil
}

func (h *Supervisor) create(ctx context.Context, r CreateRequest) (t *Task, err error) {
	e, err := h.reserve(r.ID, r.Bundle)
	if err != nil {
		return nil, err
	}
	defer close(e.created)
	defer func() {
		if t == nil { // also after a panic
			h.forget(r.ID)
		}
	}()
	if r.Prepare != nil {
		if err := r.Prepare(&r); err != nil {
			return nil, err
		}
	}
	s, err := specOf(r)
	if err != nil {
		return nil, err
	}
	if err := pod.CheckNamespaceList(s.Linux.Namespaces); err != nil {
		return nil, err
	}
	if !r.Sandbox && !oci.IsSandbox(s) {
		t, err = h.newContainer(ctx, r, s, e)
	} else if r.Checkpoint != "" {
		return nil, fmt.Errorf("a sandbox has no process to restore: %w", errdefs.ErrNotImplemented)
	} else {
		t, err = h.newSandbox(ctx, r, s, e)
	}
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	e.task = t
	h.mu.Unlock()
	return t, nil
}

func (h *Supervisor) ociRuntime(bundle string, o oci.Options) *oci.Runtime {
	return &oci.Runtime{Options: o, Namespace: h.namespace, Bundle: bundle, Reaper: h.reaper, Starter: h.starter}
}

// Release ends all sandboxes that a shim still has when it ends. It does not wait longer
// than releaseTimeout for containers that are joining: the namespaces go with the shim.
func (h *Supervisor) Release() {
	late := time.After(releaseTimeout)
	pods := h.pods()
	for _, pod := range pods {
		go pod.end(reap.ExitSignalBase + int(unix.SIGKILL))
	}
	for _, pod := range pods {
		select {
		case <-pod.freed:
		case <-late:
			return
		}
	}
}

// releaseTimeout limits how long a shim that ends waits for its sandboxes. Their exits are
// reported at once, unless a pod init does not die.
const releaseTimeout = 5 * time.Second

// specOf returns the spec of the task to create, with empty sections in place of missing
// ones.
func specOf(r CreateRequest) (*specs.Spec, error) {
	if r.Spec != nil {
		return oci.Complete(*r.Spec), nil
	}
	return oci.ReadSpec(r.Bundle)
}
