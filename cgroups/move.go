package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// AnnounceMove prepares the kernel for a process that another program is about to move into a cgroup, and returns when
// the kernel is ready. A move takes a lock against the fork, exec and exit of all processes. These pass without taking
// it until somebody wants to move; then the kernel waits for a grace period of RCU, 7 to 20 ms, but not again for moves
// within some milliseconds after that. AnnounceMove does this waiting while the other program is still getting ready:
// it moves the calling process to the cgroup in which it already is.
//
// A call during another one returns at once, as the other one does the work for both. If somebody else moves the
// process in the microseconds between the look-up of its cgroup and the move, it is moved back.
//
// Source: cgroup_attach_lock in kernel/cgroup/cgroup.c, rcu_sync_enter in kernel/rcu/sync.c. With the mount option
// favordynmods, fork, exec and exit always take the lock: there is nothing to wait for, and AnnounceMove takes no time.
func AnnounceMove() error {
	if !announcing.TryLock() {
		return nil
	}
	defer announcing.Unlock()
	l, err := hostLayout()
	if err != nil {
		return err
	}
	text, err := readFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("cannot find the cgroup of this process: %w", err)
	}
	lines, err := parseProcCgroup("/proc/self/cgroup", text)
	if err != nil {
		return err
	}
	dir, err := l.own(lines)
	if err != nil {
		return err
	}
	// 0 is the process that writes.
	return writeFile(filepath.Join(dir, "cgroup.procs"), "0")
}

// announcing is held while AnnounceMove waits for the kernel, in a system call that occupies a thread: without it, each
// of many calls would occupy one.
var announcing sync.Mutex

// own returns the directory of the cgroup in which a process is, in the first hierarchy that has one. It may be the
// root.
func (l *layout) own(lines []procCgroup) (string, error) {
	hierarchies := l.v1
	if l.unified != nil {
		hierarchies = []hierarchy{*l.unified}
	}
	for _, h := range hierarchies {
		for _, line := range lines {
			if line.deleted || line.unified() != (l.unified != nil) || l.unified == nil && !slices.Contains(line.controllers, h.controllers[0]) {
				continue
			}
			rest, ok := strings.CutPrefix(line.path, strings.TrimSuffix(h.root, "/"))
			if ok && (rest == "" || rest[0] == '/') && !slices.Contains(strings.Split(rest, "/"), "..") {
				return filepath.Join(h.mountpoint, rest), nil
			}
		}
	}
	return "", errors.New("cannot find the cgroup of this process in a mounted hierarchy")
}
