package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// PodFiles are the files that CRI mounts into all containers of a pod, in the
// directories where it looks for them. With the Sandbox API they are the
// sandbox's to make and to remove.
type PodFiles struct {
	Dir      string // of hostname, hosts and resolv.conf
	ShmDir   string // to mount the pod's /dev/shm on; empty if the pod uses the host's
	Hostname string // the host's name if empty
	DNS      *DNS   // nil for the host's resolv.conf

	mu sync.Mutex
	// shm is a second mount of the pod's /dev/shm, which is at no path: so what is
	// in it stays when the first goes. Guarded by mu; nil without.
	shm *os.File
}

// DNS is the content of a resolv.conf (resolv.conf(5)).
type DNS struct{ Servers, Searches, Options []string }

// shmSize is the size of a pod's /dev/shm in bytes, CRI's default (defaultShmSize
// in containerd's internal/cri/server/podsandbox).
const shmSize = 64 << 20

// make writes the files with the modes that CRI gives them. The directories must
// not exist yet, so nothing that is in them can lead elsewhere.
func (f *PodFiles) make() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.makeAll()
}

func (f *PodFiles) makeAll() error {
	dirs := f.dirs()
	for i, dir := range dirs {
		if err := makeDir(dir); err != nil {
			return joinErrors(err, removeDirs(dirs[:i]))
		}
	}
	err := f.write()
	if err == nil {
		err = f.mountShm()
	}
	if err != nil {
		return joinErrors(err, removeDirs(dirs))
	}
	return nil
}

func (f *PodFiles) write() error {
	hostname := f.Hostname
	if hostname == "" {
		var err error
		if hostname, err = os.Hostname(); err != nil {
			return err
		}
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return fmt.Errorf("cannot read the host's hosts file: %w", err)
	}
	resolv := []byte(f.DNS.String())
	if f.DNS == nil {
		if resolv, err = os.ReadFile("/etc/resolv.conf"); err != nil {
			return fmt.Errorf("cannot read the host's resolv.conf: %w", err)
		}
	}
	for name, data := range map[string][]byte{"hostname": []byte(hostname + "\n"), "hosts": hosts, "resolv.conf": resolv} {
		if err := writeNew(filepath.Join(f.Dir, name), data); err != nil {
			return err
		}
	}
	return nil
}

// String returns the content of a resolv.conf, empty for nil.
func (d *DNS) String() string {
	if d == nil {
		return ""
	}
	var b strings.Builder
	if len(d.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(d.Searches, " "))
	}
	for _, server := range d.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(d.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(d.Options, " "))
	}
	return b.String()
}

func (f *PodFiles) mountShm() error {
	if f.ShmDir == "" {
		return nil
	}
	if err := os.Mkdir(f.ShmDir, 0o700); err != nil {
		return err
	}
	if f.shm != nil {
		return f.moveShm()
	}
	options := fmt.Sprintf("mode=1777,size=%d", shmSize)
	if err := unix.Mount("shm", f.ShmDir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("cannot mount %s: %w", f.ShmDir, err)
	}
	return f.holdShm()
}

// holdShm keeps a mount of the pod's /dev/shm for moveShm. Linux before 5.2 has
// none that is at no path.
func (f *PodFiles) holdShm() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, f.ShmDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if errors.Is(err, unix.ENOSYS) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: f.ShmDir, Err: err}
	}
	f.shm = os.NewFile(uintptr(fd), f.ShmDir)
	return nil
}

// moveShm puts the mount that is held in the place of one that is gone.
func (f *PodFiles) moveShm() error {
	err := unix.MoveMount(int(f.shm.Fd()), "", unix.AT_FDCWD, f.ShmDir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "move_mount", Path: f.ShmDir, Err: err}
	}
	f.shm.Close()
	f.shm = nil
	return f.holdShm()
}

// restore makes the files again if they are gone: when it starts, CRI takes the
// directories of sandboxes that are no containers for orphans, and removes them
// (cleanupOrphanedIDDirs in containerd's internal/cri/server/restart.go).
func (f *PodFiles) restore() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, dir := range f.dirs() {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			return f.makeAll()
		}
	}
	return nil
}

// makeDir makes the directory of one sandbox, in the one of all.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755)
}

// writeNew writes a file that must not be there yet, not even as a link.
func writeNew(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Chmod(0o644), file.Close())
}

// unmount takes away what would keep CRI from removing the directories.
func (f *PodFiles) unmount() error {
	if f == nil || f.ShmDir == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	closeAll(f.shm)
	f.shm = nil
	err := mount.UnmountAll(f.ShmDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot unmount %s: %w", f.ShmDir, err)
	}
	return nil
}

// remove removes the files and their directories.
func (f *PodFiles) remove() error {
	if f == nil {
		return nil
	}
	if err := f.unmount(); err != nil {
		return err
	}
	return removeDirs(f.dirs())
}

// dirs are the directories that are this sandbox's alone.
func (f *PodFiles) dirs() []string {
	if f.ShmDir == "" {
		return []string{f.Dir}
	}
	return []string{f.Dir, filepath.Dir(f.ShmDir)}
}

func removeDirs(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return joinErrors(errs...)
}
