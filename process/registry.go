package process

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// maxID is the length of the longest name of a file in bytes (NAME_MAX in limits.h(0p)).
const maxID = 255

// checkBundle refuses an id by which files cannot be named, and a path of a bundle that
// leads to another place than the client means: relative to the shim's own bundle, it could
// be that. It returns the path without links, by which a bundle is told from others.
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

// reserve keeps out a second create of the same id, or of the same bundle: two in one
// would overwrite each other's records.
func (h *Supervisor) reserve(id, bundle string) (*entry, error) {
	bundle, err := checkBundle(id, bundle)
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
	e := &entry{bundle: bundle}
	h.entries[id] = e
	return e, nil
}

// forget lets an id go: nothing is left of its task.
func (h *Supervisor) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.entries, id)
}

// Task returns a task that has been created. It fails with [errdefs.ErrNotFound].
func (h *Supervisor) Task(id string) (*Task, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[id]; e != nil && e.task != nil {
		return e.task, nil
	}
	return nil, fmt.Errorf("there is no task %s: %w", id, errdefs.ErrNotFound)
}

// Tasks returns all tasks that have been created.
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

// HasOthers says whether there is any task, or one that is being created, beside that
// of the id.
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

// pods returns the sandboxes, those that are not complete yet included.
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

// pod returns the sandbox of an id, which may not be complete yet; nil if there is none.
func (h *Supervisor) pod(id string) *sandbox {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[id]; e != nil {
		return e.pod
	}
	return nil
}

// seat gives the thread to the sandbox, and makes it known. Who wants to join it waits
// until it is complete.
func (h *Supervisor) seat(e *entry, s *sandbox) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, other := range h.entries {
		if other.pod != nil && !other.pod.isFreed() {
			return fmt.Errorf("this shim already holds sandbox %s: %w", id, errdefs.ErrFailedPrecondition)
		}
	}
	e.pod = s
	return nil
}
