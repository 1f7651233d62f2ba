package cgroups

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Remove removes the cgroup with those below it, on v1 from every hierarchy; that it is not there is no error. As
// long as the kernel says that something is busy, which it also does for a moment after the last process died, Remove
// tries again, until ctx ends. It kills nothing. The library gives up after 150 ms, on v1 without the kernel's reason.
func (c *Cgroup) Remove(ctx context.Context) error {
	if err := RemoveDirs(ctx, c.tree.dirs()); err != nil {
		return fmt.Errorf("cannot remove cgroup %s: %w", c.path, err)
	}
	return nil
}

// RemoveDirs is Remove for a cgroup of which the directory in each hierarchy is known.
func RemoveDirs(ctx context.Context, dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		if err := removeDir(ctx, dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func removeDir(ctx context.Context, dir string) error {
	var busy error
	err := poll(ctx, func(int) (bool, error) {
		err := removeTree(dir)
		if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
			busy = err
			return false, nil
		}
		return true, err
	})
	if err != nil && busy != nil {
		return fmt.Errorf("%w: %w", err, busy)
	}
	return err
}

// removeTree tries once. The files in a cgroup's directory go with it.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	below, childErr := children(dir)
	if childErr != nil {
		if absent(childErr) {
			return nil
		}
		return childErr
	}
	for _, child := range below {
		if err := removeTree(child); err != nil {
			return err
		}
	}
	if len(below) > 0 {
		err = unix.Rmdir(dir)
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("cannot remove directory %s: %w", dir, err)
}
