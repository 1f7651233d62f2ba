package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// joinCgroup puts the process pid into an existing cgroup, by option
// ShimCgroup; group is its path below the root of the hierarchy. On cgroup v1
// that is every hierarchy which has such a cgroup.
func joinCgroup(group string, pid int) error {
	roots, err := cgroupHierarchies()
	if err != nil {
		return fmt.Errorf("cannot find the hierarchies of shim cgroup %s: %w", group, err)
	}
	return joinCgroupBelow(roots, group, pid)
}

// cgroupHierarchies returns the mount points of the hierarchies that have
// controllers: the one of cgroup v2, or each of v1 once. The v2 hierarchy
// beside v1 ("hybrid") has none.
func cgroupHierarchies() ([]string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, &fs.PathError{Op: "statfs", Path: cgroupRoot, Err: err}
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupRoot}, nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		return nil, err
	}
	var roots []string
	seen := make(map[[2]int]bool) // A hierarchy may be mounted again elsewhere, as in containers.
	for _, m := range mounts {
		if device := [2]int{m.Major, m.Minor}; !seen[device] {
			seen[device] = true
			roots = append(roots, m.Mountpoint)
		}
	}
	return roots, nil
}

func joinCgroupBelow(roots []string, group string, pid int) error {
	joined := false
	for _, root := range roots {
		// Joined to "/" first, so that no ".." leads out of the hierarchy.
		path := filepath.Join(root, filepath.Join("/", group), "cgroup.procs")
		err := writeExisting(path, strconv.Itoa(pid))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("cannot join shim cgroup: %w", err)
		}
		joined = true
	}
	if !joined {
		return fmt.Errorf("cannot join shim cgroup %s: it exists below none of %q", group, roots)
	}
	return nil
}

func writeExisting(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
