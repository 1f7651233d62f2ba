package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// hierarchy makes a tree of cgroups of which one has a file cgroup.procs.
func hierarchy(t *testing.T, cgroup string) (root, procs string) {
	t.Helper()
	root = t.TempDir()
	procs = filepath.Join(root, cgroup, "cgroup.procs")
	if err := os.MkdirAll(filepath.Dir(procs), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(procs, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return root, procs
}

func TestShimJoinsItsCgroupInEachHierarchyThatHasIt(t *testing.T) {
	cpu, cpuProcs := hierarchy(t, "/shims/pause")
	memory, memoryProcs := hierarchy(t, "/shims/pause")
	pids, pidsProcs := hierarchy(t, "/other")
	if err := joinCgroupBelow([]string{cpu, memory, pids}, "shims/pause", 4711); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{cpuProcs: "4711", memoryProcs: "4711", pidsProcs: ""} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s is %q, want %q; error %v", path, got, want, err)
		}
	}
}

func TestShimCgroupThatCannotBeJoined(t *testing.T) {
	root, procs := hierarchy(t, "/shims")
	for _, tc := range []struct{ name, group, want string }{
		{"it does not exist", "/missing", "/missing"},
		{"it is outside of the hierarchy", "../" + filepath.Base(root) + "/shims", filepath.Base(root)},
	} {
		err := joinCgroupBelow([]string{root}, tc.group, 1)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got error %v, want one with %q", tc.name, err, tc.want)
		}
	}
	// A directory in place of the file: to write it fails.
	if err := os.Remove(procs); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(procs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := joinCgroupBelow([]string{root}, "/shims", 1); err == nil || !strings.Contains(err.Error(), procs) {
		t.Errorf("got error %v, want one with %s", err, procs)
	}
}

func TestCgroupHierarchiesOfThisHost(t *testing.T) {
	roots, err := cgroupHierarchies()
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) == 0 {
		t.Fatal("there are none")
	}
	for _, root := range roots {
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			t.Errorf("%s is not the root of a hierarchy: %v", root, err)
		}
	}
}
