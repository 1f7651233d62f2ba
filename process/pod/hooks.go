package pod

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"containerd-shim-pause-v2/process/launch"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Hooks are the hooks in a sandbox's spec. No OCI runtime sees that spec, so the shim runs
// them, when the runtime specification says ("Lifecycle" in runtime.md):
//
//	prestart, createRuntime  after the namespaces are made, in the host's namespaces
//	createContainer          after these, in the namespaces of the sandbox's thread
//	poststart                after the sandbox has started
//	poststop                 after it has been deleted, or could not be created
//
// startContainer hooks never run: they belong to a program that is executed in a root file
// system, and a sandbox has neither.
type Hooks struct {
	specs.Hooks
	state specs.State // its status is set for each run
	// Patience is how long all poststop hooks without a timeout may take together.
	Patience time.Duration
}

// NewHooks returns the hooks of a sandbox, nil if it has none.
func NewHooks(s *specs.Spec, id, bundle string, pid int) *Hooks {
	if s.Hooks == nil {
		return nil
	}
	return &Hooks{Hooks: *s.Hooks, Patience: poststopTimeout, state: specs.State{
		Version: s.Version, ID: id, Pid: pid, Bundle: bundle, Annotations: s.Annotations,
	}}
}

// SavedHooks are Hooks as they can be written down.
type SavedHooks struct {
	Hooks specs.Hooks `json:"hooks"`
	State specs.State `json:"state"`
}

// Save returns the hooks for Restore; nil if there are none.
func (h *Hooks) Save() *SavedHooks {
	if h == nil {
		return nil
	}
	return &SavedHooks{h.Hooks, h.state}
}

// Restore returns the hooks that were saved, of a sandbox whose pid is that of a thread.
func (s *SavedHooks) Restore(pid int) *Hooks {
	if s == nil {
		return nil
	}
	s.State.Pid = pid
	return &Hooks{Hooks: s.Hooks, Patience: poststopTimeout, state: s.State}
}

// CheckHooks fails with [errdefs.ErrInvalidArgument] if a hook could never run.
func CheckHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for _, list := range [][]specs.Hook{h.Prestart, h.CreateRuntime, h.CreateContainer, h.Poststart, h.Poststop} { //nolint:staticcheck // Prestart is deprecated, but in use
		for _, hook := range list {
			if !filepath.IsAbs(hook.Path) {
				return fmt.Errorf("the path of hook %q is not absolute: %w", hook.Path, errdefs.ErrInvalidArgument)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("the timeout of hook %s is %d s, but must be more than zero: %w", hook.Path, *hook.Timeout, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// Created runs the prestart, createRuntime and createContainer hooks, up to the first that
// fails.
func (h *Hooks) Created(ctx context.Context, thread *Thread) error {
	if h == nil {
		return nil
	}
	err := h.run(ctx, "prestart", h.Prestart, specs.StateCreating) //nolint:staticcheck // deprecated, but in use
	if err == nil {
		err = h.run(ctx, "createRuntime", h.CreateRuntime, specs.StateCreating)
	}
	if err == nil && len(h.CreateContainer) > 0 {
		err = thread.Do(func() error {
			return h.run(ctx, "createContainer", h.CreateContainer, specs.StateCreating)
		})
	}
	return err
}

// Started runs the poststart hooks, up to the first that fails.
func (h *Hooks) Started(ctx context.Context) error {
	if h == nil {
		return nil
	}
	return h.run(ctx, "poststart", h.Poststart, specs.StateRunning)
}

// poststopTimeout bounds how long all poststop hooks without a timeout may take together,
// because a sandbox cannot be deleted before they have ended.
const poststopTimeout = time.Minute

// Stopped runs all poststop hooks, even after one has failed. It bounds their time by
// Patience and their timeouts, all added up.
func (h *Hooks) Stopped(ctx context.Context) error {
	if h == nil || len(h.Poststop) == 0 {
		return nil
	}
	limit := h.Patience
	for _, hook := range h.Poststop {
		if hook.Timeout != nil {
			limit += time.Duration(*hook.Timeout) * time.Second
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("all poststop hooks together ran past %v", limit))
	defer cancel()
	h.state.Pid = 0
	var errs []error
	for _, hook := range h.Poststop {
		errs = append(errs, h.run(ctx, "poststop", []specs.Hook{hook}, specs.StateStopped))
	}
	return errors.Join(errs...)
}

func (h *Hooks) run(ctx context.Context, kind string, list []specs.Hook, status specs.ContainerState) error {
	state := h.state
	state.Status = status
	data, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, hook := range list {
		if err := runHook(ctx, hook, data, h.state.Bundle); err != nil {
			return fmt.Errorf("%s hook %s failed: %w", kind, hook.Path, err)
		}
	}
	return nil
}

// runHook runs one hook in the calling thread's namespaces.
func runHook(ctx context.Context, h specs.Hook, state []byte, dir string) error {
	if h.Timeout != nil {
		timeout := time.Duration(*h.Timeout) * time.Second
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it ran past its timeout of %v", timeout))
		defer cancel()
	}
	var out message
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // nil would mean the shim's environment
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) } // the hook and its children
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(state), &out, &out
	cmd.WaitDelay = time.Second // a process that the hook leaves behind may hold the output open
	err := launch.Run(cmd)      // the hook may be on a file system that hangs
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if text := strings.TrimSpace(string(out)); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// message keeps the beginning of a hook's output for an error message.
type message []byte

func (m *message) Write(p []byte) (int, error) {
	const limit = 4 << 10
	*m = append(*m, p[:min(len(p), limit-len(*m))]...)
	return len(p), nil
}
