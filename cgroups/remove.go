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
//
// On a hybrid host, runc puts a container into the cgroup2 mount as well, at the same path. What it has left there, if
// it was killed, goes too, unless somebody else has a process in it: that mount is systemd's.
func (c *Cgroup) Remove(ctx context.Context) error {
	err := RemoveDirs(ctx, c.tree.dirs())
	if err == nil {
		err = removeIfEmpty(c.tree.shadow())
	}
	if err != nil {
		return fmt.Errorf("cannot remove cgroup %s: %w", c.path, err)
	}
	return nil
}

func removeIfEmpty(dir string) error {
	if dir == "" || !isDir(dir) {
		return nil
	}
	err := removeTree(dir)
	if isBusy(err) {
		return nil
	}
	return err
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
		if isBusy(err) {
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

func isBusy(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) }

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
