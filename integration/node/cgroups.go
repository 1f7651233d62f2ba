package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// CgroupsPath is the path of a container's cgroup for its OCI spec, in the form
// that the node's cgroup driver wants.
func (n *Node) CgroupsPath(container string) string {
	if n.options.SystemdCgroup {
		return sliceOf(n.ID) + ":node:" + container
	}
	return "/" + n.ID + "/" + container
}

// cgroupParent is that of all pods, as kubelet gives it: also with systemd it is the
// path of a directory.
func (n *Node) cgroupParent() string {
	if n.options.SystemdCgroup {
		return SlicePath(sliceOf(n.ID))
	}
	return "/" + n.ID
}

// SlicePath is the path of a slice's cgroup: each dash in the name is a level
// (systemd.slice(5)).
func SlicePath(slice string) string {
	levels := strings.Split(strings.TrimSuffix(slice, ".slice"), "-")
	path := "/"
	for i := range levels {
		path = filepath.Join(path, strings.Join(levels[:i+1], "-")+".slice")
	}
	return path
}

// sliceOf is the systemd slice of a node. By its dashes it is in others
// (systemd.slice(5)), which systemd makes.
func sliceOf(id string) string { return id + ".slice" }

// isCgroupOf says whether the path of a cgroup is that of a node, or below it.
func isCgroupOf(id, path string) bool {
	names := strings.Split(path, "/")
	return slices.Contains(names, id) || slices.Contains(names, sliceOf(id))
}

// startSlice makes the slice of the pods, as kubelet does before it makes them.
func startSlice(ctx context.Context, id string) error {
	return systemctl(ctx, "start", sliceOf(id))
}

// stopSlice ends what there is of a node's slice.
func stopSlice(ctx context.Context, id string) error {
	isSlice := func(cgroup string) bool { return filepath.Base(cgroup) == sliceOf(id) }
	if !slices.ContainsFunc(cgroups(id), isSlice) {
		return nil
	}
	return systemctl(ctx, "stop", sliceOf(id))
}

func systemctl(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// cgroups returns the cgroups of a node, in all hierarchies, children first.
func cgroups(id string) []string {
	roots, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for _, root := range roots {
		filepath.WalkDir(root.Mountpoint, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // a cgroup may go during the walk
			if err == nil && d.IsDir() && isCgroupOf(id, path) {
				found = append([]string{path}, found...)
			}
			return nil
		})
	}
	return found
}

// thaw lets processes of a frozen cgroup take their SIGKILL. It is no error if
// the cgroup is of another version or controller.
func thaw(cgroup string) {
	for name, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
		f, err := os.OpenFile(filepath.Join(cgroup, name), os.O_WRONLY, 0)
		if err == nil {
			f.WriteString(value) //nolint:errcheck // processes that stay are reported
			f.Close()
		}
	}
}

// removeCgroup waits for the kernel to take the last process out.
func removeCgroup(path string) (err error) {
	for start := time.Now(); time.Since(start) < 10*time.Second; time.Sleep(10 * time.Millisecond) {
		err = unix.Rmdir(path)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
	}
	return fmt.Errorf("cannot remove cgroup %s: %w", path, err)
}
