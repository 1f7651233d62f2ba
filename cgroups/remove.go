package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Remove removes the cgroup and those below it, on v1 from every hierarchy. A cgroup that does not exist is no error.
// While the kernel says that something is busy, as it also does for a moment after the last process has died, Remove
// retries until ctx ends. It kills nothing. The library gives up after 150 ms, on v1 without the kernel's reason.
//
// On a hybrid host, runc puts a container into the cgroup2 mount as well, at the same path. If runc was killed, Remove
// also removes what it left there, unless another process is in it: that mount is systemd's.
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

// RemoveDirs is Remove for a cgroup whose directory in each hierarchy is known.
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

// removeTree tries once to remove a directory and those below. The kernel removes a cgroup's files with its directory.
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
	return &os.PathError{Op: "rmdir", Path: dir, Err: err}
}
