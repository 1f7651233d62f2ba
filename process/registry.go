package process

import (
	"fmt"
	"path/filepath"
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

// seat gives the thread to the sandbox, and enters the sandbox in the registry. Containers
// that want to join it wait until it is complete.
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
