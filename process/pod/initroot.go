package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"containerd-shim-pause-v2/process/program"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// InitName is what ps(1) shows in the containers: that of the pause program.
const InitName = "/pause"

// MakeInitRoot mounts a file system that holds the init's program and nothing
// else: of its own, so that neither a mount option of the host (noexec) nor a
// file of the host can be met through it.
func MakeInitRoot(dir, label string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	code, err := program.PodInit()
	if err != nil {
		return err
	}
	data := "mode=755,size=16k,nr_inodes=8"
	if label != "" {
		data += fmt.Sprintf(",context=%q", label)
	}
	if err := unix.Mount("pause", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("cannot mount %s: %w", dir, err)
	}
	for _, name := range []string{"dev", "proc"} {
		path := filepath.Join(dir, name)
		// It is for any user, whatever the umask.
		if err := errors.Join(os.Mkdir(path, 0o555), os.Chmod(path, 0o555)); err != nil {
			return err
		}
	}
	if err := writeProgram(unix.AT_FDCWD, filepath.Join(dir, InitName), code); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("cannot make %s read-only: %w", dir, err)
	}
	return nil
}

// InitRootOf is where the root directory of a pod's init is to be. In the bundle
// of a task there is a place for it, which containerd unmounts when it removes that.
// The directory with the bundles of the Sandbox API is closed to all but root
// (plugins/sandbox/controller.go), and so to the root of a user namespace; for
// those there is one of the shim's own beside it, in containerd's state directory.
func InitRootOf(bundle, id string, isTask bool) string {
	if isTask {
		return filepath.Join(bundle, "rootfs")
	}
	namespace := filepath.Dir(filepath.Clean(bundle))
	state := filepath.Dir(filepath.Dir(namespace))
	return filepath.Join(state, "io.containerd.pause.v2", filepath.Base(namespace), id)
}

// RemoveInitRoot unmounts the root directory of an init, and removes it if it
// is not in a bundle.
func RemoveInitRoot(root, bundle string) error {
	if root == "" {
		return nil
	}
	if err := mount.UnmountRecursive(root, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot unmount %s: %w", root, err)
	}
	if filepath.Dir(root) == filepath.Clean(bundle) {
		return nil
	}
	if err := os.Remove(root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
