package cgroups

// Reads and writes of the kernel's files.

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func readFile(path string) (string, error) {
	text, err := os.ReadFile(path)
	return string(text), err
}

// openFile opens a file for reading and keeps it away from Go's poller.
func openFile(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// writeFile writes a value in one call, as cgroup files require. It never creates the file: where the kernel lacks one,
// os.WriteFile would try to, and fail with a misleading "permission denied".
func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

func exists(path string) bool {
	return unix.Access(path, unix.F_OK) == nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// absent reports whether an error means that a file does not exist: it never did, or its cgroup was removed after it
// was opened (ENODEV, from kernfs).
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// notFound adds ErrNotFound to an error that means that a file is absent.
func notFound(err error) error {
	if absent(err) && !errors.Is(err, errdefs.ErrNotFound) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	return err
}

// set writes the value of a resource. dir is empty if the controller is not mounted.
func set(dir, resource, file, value string) error {
	if dir == "" {
		return fmt.Errorf("cannot set %s to %q: no controller for %s is mounted: %w",
			resource, value, file, errdefs.ErrNotImplemented)
	}
	if err := writeFile(filepath.Join(dir, file), value); err != nil {
		return fmt.Errorf("cannot set %s to %q: %w", resource, value, err)
	}
	return nil
}

// keyedValue finds a key in lines of the form "key number"; false if it is not there.
func keyedValue(text, key string) (uint64, bool, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			v, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return v, err == nil, err
		}
	}
	return 0, false, nil
}
