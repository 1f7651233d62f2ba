package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Pids returns the ids of the processes in the cgroup and all below it, as our PID namespace numbers them, sorted, each
// once. On v1 it lists one hierarchy: the freezer's or, if that is not mounted, the first mounted of devices, pids and
// memory. Processes that our PID namespace does not see are left out. A cgroup that is gone is ErrNotFound.
//
// The library lists such processes as 0, and fails if a cgroup below is threaded, or vanishes meanwhile.
func (c *Cgroup) Pids() ([]int, error) {
	var pids []int
	err := walk(c.tree.procs(), func(dir string) error {
		return readPids(dir, &pids)
	})
	if absent(err) {
		err = errdefs.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list processes of cgroup %s: %w", c.path, err)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// readPids appends the ids in a directory's cgroup.procs. The kernel shows a process outside of the reader's PID
// namespace as 0, which must never be taken for an id: kill(2) takes 0 for the caller's process group.
func readPids(dir string, pids *[]int) error {
	file := filepath.Join(dir, "cgroup.procs")
	text, err := readFile(file)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// A threaded cgroup (v2): its processes are those of the domain above.
		return nil
	}
	if err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return fmt.Errorf("cannot parse %s: %w", file, err)
		}
		if pid > 0 {
			*pids = append(*pids, pid)
		}
	}
	return nil
}

// walk calls f for a directory and then for all below it. It skips one below that vanishes meanwhile.
func walk(dir string, f func(dir string) error) error {
	if err := f(dir); err != nil {
		return err
	}
	below, err := children(dir)
	if err != nil {
		return err
	}
	for _, child := range below {
		if err := walk(child, f); err != nil && !absent(err) {
			return err
		}
	}
	return nil
}

// children returns the subdirectories of a directory. A link count of 2 says that there are none, and saves reading a
// list of some 60 files; a file system that keeps no such count reports 1.
func children(dir string) ([]string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			dirs = append(dirs, filepath.Join(dir, e.Name()))
		}
	}
	return dirs, nil
}

// refuseSelf returns an error if the caller's pid is among pids: a shim that froze itself would never thaw.
func refuseSelf(pids []int) error {
	if slices.Contains(pids, os.Getpid()) {
		return fmt.Errorf("the caller is in it: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
