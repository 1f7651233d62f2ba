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

// InitName is the name of the pod init that ps(1) shows in the containers: the same as that
// of Kubernetes' pause program.
const InitName = "/pause"

// MakeInitRoot mounts a new, read-only file system on dir, with the pod init's program. The
// file system is new so that no mount option of the host (noexec) applies to it, and no
// file of the host can be reached through it. The label is SELinux's; it may be empty.
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
		// With chmod the umask does not matter: any user must have access.
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

// InitRootOf returns the path of the pod init's root directory. A task's is rootfs in its
// bundle, which containerd unmounts when it removes the bundle. Bundles of the Sandbox API
// are in a directory that only the host's root may enter (plugins/sandbox/controller.go),
// and not the root of a user namespace: theirs is in a directory that the shim makes beside
// that one, in containerd's state directory.
func InitRootOf(bundle, id string, isTask bool) string {
	if isTask {
		return filepath.Join(bundle, "rootfs")
	}
	namespace := filepath.Dir(filepath.Clean(bundle))
	state := filepath.Dir(filepath.Dir(namespace))
	return filepath.Join(state, "io.containerd.pause.v2", filepath.Base(namespace), id)
}

// RemoveInitRoot unmounts the root directory of a pod init, and removes it if it is not in
// the bundle.
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
