package cgroups

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Freeze stops every process of the cgroup and of those below, and returns when all have stopped. ctx bounds the wait,
// which a process in uninterruptible sleep can prolong for ever. On error, Freeze thaws the cgroup again.
//
// On v1 the library bounds neither this wait nor that of the thaw. On v2 it does not wait at all: it reads back the
// file that it has written, not the state.
//
// Sources: cgroup-v2.rst, "cgroup.freeze"; cgroup-v1/freezer-subsystem.rst.
func (c *Cgroup) Freeze(ctx context.Context) error {
	pids, err := c.Pids()
	if err != nil {
		return err
	}
	if err = refuseSelf(pids); err == nil {
		err = c.tree.freeze(ctx)
	}
	if err != nil {
		return fmt.Errorf("cannot freeze cgroup %s: %w", c.path, err)
	}
	return nil
}

// Thaw lets the processes run again, and returns when they do or when ctx ends. The cgroup stays frozen as long as one
// above it is.
func (c *Cgroup) Thaw(ctx context.Context) error {
	if err := c.tree.thaw(ctx); err != nil {
		return fmt.Errorf("cannot thaw cgroup %s: %w", c.path, err)
	}
	return nil
}

// Frozen reports whether all processes are stopped, by this cgroup's freezer or by one above.
func (c *Cgroup) Frozen() (bool, error) {
	frozen, err := c.tree.frozen()
	if err != nil {
		return false, fmt.Errorf("cannot tell whether cgroup %s is frozen: %w", c.path, err)
	}
	return frozen, nil
}

// poll calls done until it returns true or an error, or ctx ends, at intervals that grow from 50 µs to 10 ms.
func poll(ctx context.Context, done func(attempt int) (bool, error)) error {
	interval := 50 * time.Microsecond
	timer := time.NewTimer(interval)
	defer timer.Stop()
	for attempt := 1; ; attempt++ {
		if ok, err := done(attempt); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			interval = min(2*interval, 10*time.Millisecond)
			timer.Reset(interval)
		}
	}
}

// freeze writes FROZEN as long as the kernel answers FREEZING: the first write can miss a process that is forked, or
// moved in, while the others stop. An occasional thaw lets forks proceed that wait for a stopped process.
func (t *v1Tree) freeze(ctx context.Context) error {
	err := poll(ctx, func(attempt int) (bool, error) {
		if attempt%20 == 0 {
			if err := t.setState("THAWED"); err != nil {
				return false, err
			}
			return false, nil
		}
		if err := t.setState("FROZEN"); err != nil {
			return false, err
		}
		return t.frozen()
	})
	if err != nil {
		_ = t.setState("THAWED")
	}
	return err
}

func (t *v1Tree) thaw(ctx context.Context) error {
	if err := t.setState("THAWED"); err != nil {
		return err
	}
	return poll(ctx, func(int) (bool, error) {
		state, err := t.state()
		return state == "THAWED", err
	})
}

func (t *v1Tree) frozen() (bool, error) {
	state, err := t.state()
	return state == "FROZEN", err
}

func (t *v1Tree) state() (string, error) {
	dir := t.dir("freezer")
	if dir == "" {
		return "", fmt.Errorf("the freezer controller is not mounted: %w", errdefs.ErrNotImplemented)
	}
	state, err := readFile(filepath.Join(dir, "freezer.state"))
	return strings.TrimSpace(state), notFound(err)
}

func (t *v1Tree) setState(state string) error {
	return notFound(set(t.dir("freezer"), "freezer state", "freezer.state", state))
}

func (t *v2Tree) freeze(ctx context.Context) error {
	err := t.setFreeze("1")
	if err == nil {
		err = t.await(ctx, true)
	}
	if err != nil {
		_ = t.setFreeze("0")
	}
	return err
}

func (t *v2Tree) thaw(ctx context.Context) error {
	if err := t.setFreeze("0"); err != nil {
		return err
	}
	return t.await(ctx, false)
}

func (t *v2Tree) setFreeze(value string) error {
	return notFound(set(t.dir, "freezer state", "cgroup.freeze", value))
}

func (t *v2Tree) await(ctx context.Context, want bool) error {
	return poll(ctx, func(int) (bool, error) {
		frozen, err := t.frozen()
		return frozen == want, err
	})
}

func (t *v2Tree) frozen() (bool, error) {
	events, err := readFile(filepath.Join(t.dir, "cgroup.events"))
	if err != nil {
		return false, notFound(err)
	}
	frozen, _, err := keyedValue(events, "frozen")
	return frozen == 1, err
}
