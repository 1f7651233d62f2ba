package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// AnnounceMove prepares the kernel for a process that is to be moved into a cgroup by another program, and returns when
// it is ready. To move one takes a lock whose other side are the fork, exec and end of any process. These pass without
// taking it, until somebody wants to move: then the kernel waits for a grace period of RCU, 7 to 20 ms, but not once
// more within some milliseconds. AnnounceMove is the one who waits, while the other program still gets ready: it moves
// the process that calls it to the cgroup in which it is.
//
// One that is called while another waits returns at once: it is done by that. If somebody else moves the process in the
// microseconds between the look at where it is and the move, it is moved back.
//
// Source: cgroup_attach_lock in kernel/cgroup/cgroup.c, rcu_sync_enter in kernel/rcu/sync.c. Without the lock's quick
// side (the mount option favordynmods) there is nothing to wait for, and this takes no time.
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

// announcing is held while the kernel is waited for, in a system call that holds a thread: many would each keep theirs.
var announcing sync.Mutex

// own returns the directory of a cgroup in which a process is, in any hierarchy. That may be the root.
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
