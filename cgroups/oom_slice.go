package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// systemd removes a scope once the last process of it has ended, which may be before the watch has looked at the
// scope's memory.events. The kernel has counted the kill in every cgroup above, too, before it killed (memory.events is
// hierarchical, cgroup-v2.rst). So what the slice around the scope has counted, and no watch below the slice has, is
// the removed scope's.

// slice is a systemd slice with scopes whose kills are watched by this process.
type slice struct {
	dir   string
	told  atomic.Uint64        // kills that the watches have seen
	units map[*oomWatch]string // the unit in the slice that each watches
}

// watchedSlices are those with watches. The lock is held while a watch begins and while it ends, and is taken before any
// watch's own.
var watchedSlices struct {
	sync.Mutex
	byDir map[string]*slice
}

// unitWatch ties a watch to its slice.
type unitWatch struct {
	*slice
	before  uint64 // kills in the slice at first that no watch has seen
	grouped bool   // a group kill has been seen: what is counted after it is the rest of the group
}

// enroll ties a watch of the cgroup to the slice that it is in, if there is one. It is for a watch that has taken its
// first count and is not running yet.
func (w *oomWatch) enroll(dir string) *unitWatch {
	sliceDir, unit := sliceOf(dir)
	if sliceDir == "" {
		return nil
	}
	watchedSlices.Lock()
	defer watchedSlices.Unlock()
	s := watchedSlices.byDir[sliceDir]
	if s == nil {
		s = &slice{dir: sliceDir, units: map[*oomWatch]string{}}
	}
	kills, err := s.kills()
	if err != nil {
		return nil // the root cgroup counts nothing, and neither does one without the controller
	}
	if watchedSlices.byDir == nil {
		watchedSlices.byDir = map[string]*slice{}
	}
	watchedSlices.byDir[sliceDir] = s
	s.units[w] = unit
	return &unitWatch{slice: s, before: kills - s.told.Load()}
}

// sliceOf returns the directory of the innermost slice that holds a cgroup, and the name of the unit there. The OCI
// runtime may have made cgroups in the unit, as crun does.
func sliceOf(dir string) (sliceDir, unit string) {
	for {
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", ""
		}
		if strings.HasSuffix(parent, ".slice") {
			return parent, filepath.Base(dir)
		}
		dir = parent
	}
}

func (s *slice) kills() (uint64, error) {
	text, err := readFile(filepath.Join(s.dir, "memory.events"))
	if err != nil {
		return 0, err
	}
	kills, _, err := keyedValue(text, "oom_kill")
	return kills, err
}

// lost says whether there were kills in the unit, which is gone, that the watch has not seen. Where processes are
// beside it that nobody here watches, they could be theirs, and the answer is no: a pod's slice has none. The caller
// holds the locks of watchedSlices and of w.
func (u *unitWatch) lost(w *oomWatch) bool {
	for other := range u.units {
		if other != w {
			_, _ = other.check() // it may be over, or gone itself
		}
	}
	now, err := u.kills()
	if err != nil {
		return false
	}
	unseen := growth(u.before, now-u.told.Load())
	if unseen == 0 || u.othersRun() {
		return false
	}
	u.told.Add(unseen)
	return !u.grouped
}

// othersRun says whether there are processes in the slice in units that are not watched.
func (u *unitWatch) othersRun() bool {
	watched := map[string]bool{}
	for _, unit := range u.units {
		watched[unit] = true
	}
	entries, err := os.ReadDir(u.dir)
	if err != nil {
		return true
	}
	for _, entry := range entries {
		if !entry.IsDir() || watched[entry.Name()] {
			continue
		}
		text, err := readFile(filepath.Join(u.dir, entry.Name(), "cgroup.events"))
		if absent(err) {
			continue
		}
		if populated, _, err := keyedValue(text, "populated"); err != nil || populated > 0 {
			return true
		}
	}
	return false
}

// leave forgets a watch that ends. The caller holds the lock of watchedSlices.
func (u *unitWatch) leave(w *oomWatch) {
	delete(u.units, w)
	if len(u.units) == 0 {
		delete(watchedSlices.byDir, u.dir)
	}
}
