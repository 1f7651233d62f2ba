package cgroups

// Saved is a Cgroup as it can be written down for another process on the same host.
type Saved struct {
	Path string `json:"path"`
	// Dirs are the cgroup's directories: one on v2, one per hierarchy on v1.
	Dirs []SavedDir `json:"dirs"`
	// Unified is the directory in the cgroup2 mount of a hybrid host; empty if there is none.
	Unified string `json:"unified,omitempty"`
}

// SavedDir is a directory of a Cgroup. Controllers is empty on v2.
type SavedDir struct {
	Root        string   `json:"root"`
	Dir         string   `json:"dir"`
	Controllers []string `json:"controllers,omitempty"`
}

// Save returns what Restore makes the same Cgroup of, even if a directory has been removed by then.
func (c *Cgroup) Save() *Saved {
	saved := &Saved{Path: c.path}
	switch t := c.tree.(type) {
	case *v1Tree:
		saved.Unified = t.unified
		for _, g := range t.groups {
			saved.Dirs = append(saved.Dirs, SavedDir{g.root, g.dir, g.controllers})
		}
	case *v2Tree:
		saved.Dirs = []SavedDir{{Root: t.root, Dir: t.dir}}
	}
	return saved
}

// Restore returns the Cgroup that was saved.
func (s *Saved) Restore() *Cgroup {
	if len(s.Dirs) == 1 && len(s.Dirs[0].Controllers) == 0 {
		return &Cgroup{path: s.Path, tree: &v2Tree{root: s.Dirs[0].Root, dir: s.Dirs[0].Dir}}
	}
	t := &v1Tree{unified: s.Unified}
	for _, d := range s.Dirs {
		t.groups = append(t.groups, v1Group{d.Root, d.Dir, d.Controllers})
	}
	return &Cgroup{path: s.Path, tree: t}
}
