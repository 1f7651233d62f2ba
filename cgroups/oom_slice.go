package cgroups

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
)

// systemd removes a scope after its last process has ended, possibly before the watch has read the scope's
// memory.events. But the kernel counts a kill in every cgroup above, too, and before it kills (memory.events is
// hierarchical, cgroup-v2.rst). So kills that the slice around the scope has counted, and no watch below the slice, are
// those of the removed scope.

// slice is a systemd slice with scopes whose kills this process watches.
type slice struct {
	dir   string
	seen  atomic.Uint64        // kills that the watches have seen
	units map[*oomWatch]string // the unit that each watch is for
}

// watchedSlices are the slices with watches. The lock is held while a watch begins and while it ends, and is taken
// before the lock of any watch.
var watchedSlices struct {
	sync.Mutex
	byDir map[string]*slice
}

// unitWatch ties a watch to its slice.
type unitWatch struct {
	*slice
	before  uint64 // kills in the slice that no watch had seen when this one began
	grouped bool   // a group kill has been seen: later kills are the rest of the group
}

// enroll ties a watch to the slice around its cgroup, if there is one. It is called after the first count of the watch,
// and before the watch runs.
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
	return &unitWatch{slice: s, before: kills - s.seen.Load()}
}

// sliceOf returns the directory of the innermost slice that holds a cgroup, and the name of the unit there. The cgroup
// may be further down in the unit: crun, for one, makes cgroups there.
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

// lost reports whether the unit, which is gone, had kills that the watch has not seen. If other units of the slice have
// processes and no watch here, the kills could be theirs, and the answer is no; in a pod's slice there are none. The
// caller holds the locks of watchedSlices and of w.
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
	unseen := growth(u.before, now-u.seen.Load())
	if unseen == 0 || u.othersRun() {
		return false
	}
	u.seen.Add(unseen)
	return !u.grouped
}

// othersRun reports whether the slice has processes in units that are not watched.
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
