package process

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// maxID is the length of the longest file name in bytes (NAME_MAX in limits.h(0p)).
const maxID = 255

// checkBundle refuses an id that is not a file name, and a bundle path that is not absolute:
// the shim would resolve it in its working directory, its own bundle, which the client does
// not mean. It returns the path without symbolic links, which identifies the bundle.
func checkBundle(id, bundle string) (string, error) {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") || len(id) > maxID {
		return "", fmt.Errorf("id %q cannot be the name of a file: %w", id, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(bundle) {
		return "", fmt.Errorf("bundle %q is not an absolute path: %w", bundle, errdefs.ErrInvalidArgument)
	}
	resolved, err := filepath.EvalSymlinks(bundle)
	if err != nil {
		return "", fmt.Errorf("cannot find the bundle: %w", err)
	}
	return resolved, nil
}

// reserve refuses a second create of the same id or the same bundle: two tasks in one bundle
// would overwrite each other's records.
func (h *Supervisor) reserve(id, given string) (*entry, error) {
	bundle, err := checkBundle(id, given)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.entries[id]; ok {
		return nil, errdefs.ErrAlreadyExists // Create adds the id
	}
	for other, e := range h.entries {
		if e.bundle == bundle {
			return nil, fmt.Errorf("bundle %s belongs to task %s: %w", bundle, other, errdefs.ErrInvalidArgument)
		}
	}
	e := &entry{bundle: bundle, given: given, created: make(chan struct{})}
	h.entries[id] = e
	return e, nil
}

// forget removes an id from the registry. Nothing must be left of its task.
func (h *Supervisor) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.entries, id)
}

// Task returns the task with the id. It fails with [errdefs.ErrNotFound] if there is none, or
// if its create has not ended.
func (h *Supervisor) Task(id string) (*Task, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[id]; e != nil && e.task != nil {
		return e.task, nil
	}
	return nil, fmt.Errorf("there is no task %s: %w", id, errdefs.ErrNotFound)
}

// Settled returns the task with the id for a client that gives it up. A task that is still
// being created is not, if that can be helped: Settled has the create give up, and waits
// for it. bundle is the path of the task's bundle, with symbolic links or without; empty for
// any. Settled fails with [errdefs.ErrNotFound] if there is no such task.
func (h *Supervisor) Settled(ctx context.Context, id, bundle string) (*Task, error) {
	e, abort := h.giveUp(id, bundle)
	if e == nil {
		return nil, fmt.Errorf("there is no task %s in bundle %s: %w", id, bundle, errdefs.ErrNotFound)
	}
	if abort != nil {
		abort()
	}
	select {
	case <-e.created:
		return h.Task(id)
	case <-ctx.Done():
		return nil, fmt.Errorf("task %s is still being created: %w", id, ctx.Err())
	}
}

// giveUp has the create of a task give up, if it is under way. The caller has to call abort
// if it is not nil. There may be no task in that bundle; then e is nil.
func (h *Supervisor) giveUp(id, bundle string) (e *entry, abort func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e = h.entries[id]
	// The bundle may be gone, so that its path can no longer be resolved.
	if e == nil || bundle != "" && bundle != e.bundle && bundle != e.given {
		return nil, nil
	}
	if e.task != nil {
		return e, nil
	}
	e.givenUp = true
	return e, e.abort
}

// mayTakeTime sets how a create that is about to do what takes time is made to give up. It
// fails if the create has to give up already.
func (h *Supervisor) mayTakeTime(e *entry, abort func()) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	e.abort = abort
	return e.whyAborted()
}

// whyAborted returns an error if the create has to give up. The caller holds mu of the
// supervisor.
func (e *entry) whyAborted() error {
	if e.givenUp {
		return fmt.Errorf("the client has given it up: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Has says whether the id is in use, be it by a task that is still being created.
func (h *Supervisor) Has(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.entries[id] != nil
}

// Tasks returns all tasks, without those that are still being created.
func (h *Supervisor) Tasks() (tasks []*Task) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.entries {
		if e.task != nil {
			tasks = append(tasks, e.task)
		}
	}
	return tasks
}

// Members returns the containers that were created to join the sandbox with the id, without
// those that are still being created.
func (h *Supervisor) Members(id string) []*Task {
	return slices.DeleteFunc(h.Tasks(), func(t *Task) bool { return t.sandboxID != id })
}

// HasOthers says whether there is any task with another id. Tasks that are being created
// count.
func (h *Supervisor) HasOthers(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for other := range h.entries {
		if other != id {
			return true
		}
	}
	return false
}

// pods returns the sandboxes, including those that are not complete yet.
func (h *Supervisor) pods() (pods []*sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.entries {
		if e.pod != nil {
			pods = append(pods, e.pod)
		}
	}
	return pods
}

// pod returns the sandbox with the id, which may not be complete yet; nil if there is none.
func (h *Supervisor) pod(id string) *sandbox {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[id]; e != nil {
		return e.pod
	}
	return nil
}

// admit enters the sandbox in the registry, unless it lives in a thread that another still
// uses. Containers that want to join the sandbox wait until it is complete.
func (h *Supervisor) admit(e *entry, s *sandbox) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := e.whyAborted(); err != nil {
		return err
	}
	for id, other := range h.entries {
		if other.pod != nil && other.pod.thread == s.thread && !other.pod.isFreed() {
			return fmt.Errorf("this shim already holds sandbox %s: %w", id, errdefs.ErrFailedPrecondition)
		}
	}
	e.pod = s
	e.abort = func() { s.close() }
	return nil
}
