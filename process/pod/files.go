package pod

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"containerd-shim-pause-v2/process/carry"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Files are the files that CRI mounts into all containers of a pod, in the
// directories where it looks for them. With the Sandbox API, the sandbox makes and
// removes them.
type Files struct {
	Dir      string // directory of hostname, hosts and resolv.conf
	ShmDir   string // mount point of the pod's /dev/shm; empty if the pod uses the host's
	Hostname string // empty means the host's name
	DNS      *DNS   // nil means the host's resolv.conf

	mu sync.Mutex
	// shm is a detached second mount of the pod's /dev/shm, which keeps its files when
	// somebody unmounts the first. Guarded by mu; nil if there is none.
	shm *os.File
}

// SavedFiles are Files as they can be written down.
type SavedFiles struct {
	*Files
	Shm int // number of the open file
}

// Save returns the files for Restore, and adds the one that is open to those that are taken
// along; nil if f is nil.
func (f *Files) Save(files *carry.Files) *SavedFiles {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return &SavedFiles{f, files.Add(f.shm)}
}

// Restore returns the files that were saved by the program before this one.
func (s *SavedFiles) Restore() *Files {
	if s == nil || s.Files == nil {
		return nil
	}
	s.Files.shm = carry.Take(s.Shm, s.Files.ShmDir)
	return s.Files
}

// DNS is the content of a resolv.conf (resolv.conf(5)).
type DNS struct{ Servers, Searches, Options []string }

// shmSize is the size of a pod's /dev/shm in bytes, CRI's default (defaultShmSize
// in containerd's internal/cri/server/podsandbox).
const shmSize = 64 << 20

// Make makes the directories and files, with the modes that CRI gives them, and mounts
// /dev/shm. It fails if a directory exists: a link in it could lead elsewhere.
func (f *Files) Make() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	dirs := f.dirs()
	for i, dir := range dirs {
		if err := makeDir(dir); err != nil {
			return errors.Join(err, removeDirs(dirs[:i]))
		}
	}
	if err := f.fill(); err != nil {
		return errors.Join(err, removeDirs(dirs))
	}
	return nil
}

// fill makes what is missing in the directories. It mounts last, so that after an error
// there are only files to undo.
func (f *Files) fill() error {
	for name, content := range map[string]func() ([]byte, error){"hostname": f.hostname, "hosts": hosts, "resolv.conf": f.resolvConf} {
		path := filepath.Join(f.Dir, name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		data, err := content()
		if err != nil {
			return err
		}
		if err := writeNew(path, data); err != nil {
			return err
		}
	}
	return f.mountShm()
}

func (f *Files) hostname() ([]byte, error) {
	name := f.Hostname
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	return []byte(name + "\n"), nil
}

func hosts() ([]byte, error) {
	data, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's hosts file: %w", err)
	}
	return data, nil
}

func (f *Files) resolvConf() ([]byte, error) {
	if f.DNS != nil {
		return []byte(f.DNS.String()), nil
	}
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, fmt.Errorf("cannot read the host's resolv.conf: %w", err)
	}
	return data, nil
}

// String returns the content of a resolv.conf; empty if d is nil.
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

// mountShm mounts the pod's /dev/shm, unless it is mounted.
func (f *Files) mountShm() error {
	if f.ShmDir == "" {
		return nil
	}
	if err := isDir(f.ShmDir, os.Mkdir(f.ShmDir, 0o700)); err != nil {
		return err
	}
	mounted, err := mountinfo.Mounted(f.ShmDir)
	if err != nil || mounted {
		return err
	}
	if f.shm != nil {
		err := f.moveShm()
		if err == nil {
			return nil
		}
		log.L.WithError(err).WithField("path", f.ShmDir).Warn("cannot restore the pod's /dev/shm: mounting a new one, which later containers do not share with earlier ones")
	}
	options := fmt.Sprintf("mode=1777,size=%d", shmSize)
	if err := unix.Mount("shm", f.ShmDir, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("cannot mount %s: %w", f.ShmDir, err)
	}
	f.holdShm()
	return nil
}

// holdShm keeps a detached mount of the pod's /dev/shm for moveShm, if it can: Linux has
// open_tree(2) since 5.2, and a seccomp filter may refuse it.
func (f *Files) holdShm() {
	closeFile(f.shm)
	f.shm = nil
	fd, err := unix.OpenTree(unix.AT_FDCWD, f.ShmDir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		log.L.WithError(err).WithField("path", f.ShmDir).Debug("cannot hold the pod's /dev/shm: it is lost if somebody unmounts it")
		return
	}
	f.shm = os.NewFile(uintptr(fd), f.ShmDir)
}

// moveShm attaches the detached mount where the first one is gone.
func (f *Files) moveShm() error {
	err := unix.MoveMount(int(f.shm.Fd()), "", unix.AT_FDCWD, f.ShmDir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return &os.PathError{Op: "move_mount", Path: f.ShmDir, Err: err}
	}
	f.holdShm()
	return nil
}

// Restore makes again the files and directories that are missing. When CRI starts, it
// mistakes the directories of a sandbox that is not a container for orphans, and removes
// them (cleanupOrphanedIDDirs in containerd's internal/cri/server/restart.go). It may have
// removed only one directory, or only a part of it.
func (f *Files) Restore() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, dir := range f.dirs() {
		if err := isDir(dir, makeDir(dir)); err != nil {
			return err
		}
	}
	return f.fill()
}

// isDir returns err, the error of making a directory, unless the directory exists. A link
// to a directory is an error.
func isDir(path string, err error) error {
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	st, err := os.Lstat(path)
	if err == nil && !st.IsDir() {
		err = &os.PathError{Op: "mkdir", Path: path, Err: unix.ENOTDIR}
	}
	return err
}

// makeDir makes a sandbox's directory, and the directory of all sandboxes if necessary.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	return os.Mkdir(dir, 0o755)
}

// writeNew writes a new file. It fails if anything is at the path, even a link.
func writeNew(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Chmod(0o644), file.Close())
}

// Unmount unmounts the pod's /dev/shm, so that CRI can remove the directories.
func (f *Files) Unmount() error {
	if f == nil || f.ShmDir == "" {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	closeFile(f.shm)
	f.shm = nil
	err := mount.UnmountAll(f.ShmDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot unmount %s: %w", f.ShmDir, err)
	}
	return nil
}

// Remove removes the files and their directories.
func (f *Files) Remove() error {
	if f == nil {
		return nil
	}
	if err := f.Unmount(); err != nil {
		return err
	}
	return removeDirs(f.dirs())
}

// dirs returns the directories that belong to this sandbox only.
func (f *Files) dirs() []string {
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
	return errors.Join(errs...)
}

// closeFile closes a file that may be nil.
func closeFile(f *os.File) {
	if f != nil {
		f.Close()
	}
}
