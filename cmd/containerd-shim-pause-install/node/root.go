package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// root is the directory below which the files of the host are, "/" on the host itself.
// Paths of the host begin with a slash and go through [root.resolve].
type root string

// maxLinks is the kernel's limit of symbolic links in one path (path_resolution(7)).
const maxLinks = 40

// resolve returns where a file of the host is for this process. It follows the symbolic links
// in the path as the host would, so that none leads out of the root, but not one at its end.
func (r root) resolve(name string) (string, error) {
	done, rest, links := "/", path.Clean("/"+name), 0
	for rest != "/" && rest != "" {
		part, next, more := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		if !more {
			return filepath.Join(string(r), done, part), nil
		}
		rest = next
		target, err := os.Readlink(filepath.Join(string(r), done, part))
		if err != nil { // No link, or nothing: whoever opens the path finds out.
			done = path.Join(done, part)
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("cannot resolve %s: too many symbolic links", name)
		}
		if !path.IsAbs(target) {
			target = path.Join(done, target)
		}
		done, rest = "/", path.Join(target, rest)
	}
	return filepath.Join(string(r), done), nil
}

// follow resolves a path of the host to its end: its last part is no symbolic link, unless it
// dangles.
func (r root) follow(name string) (string, error) {
	for range maxLinks {
		resolved, err := r.resolve(name)
		if err != nil {
			return "", err
		}
		target, err := os.Readlink(resolved)
		if err != nil {
			return resolved, nil //nolint:nilerr // it is no link
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(r.name(resolved)), target)
		}
		name = target
	}
	return "", fmt.Errorf("cannot resolve %s: too many symbolic links", name)
}

// name is the host's name of a path that was resolved.
func (r root) name(resolved string) string {
	return path.Join("/", strings.TrimPrefix(resolved, string(r)))
}

// isFile says whether the host has a regular file of that name.
func (r root) isFile(name string) bool {
	resolved, err := r.follow(name)
	if err != nil {
		return false
	}
	info, err := os.Stat(resolved)
	return err == nil && info.Mode().IsRegular()
}

func (r root) isDir(name string) bool {
	resolved, err := r.follow(name)
	if err != nil {
		return false
	}
	info, err := os.Stat(resolved)
	return err == nil && info.IsDir()
}

// lock locks a directory of the host, unless another process has locked it.
func (r root) lock(name string) (unlock func(), err error) {
	resolved, err := r.follow(name)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(resolved)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the host: %w", err)
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		dir.Close()
		return nil, fmt.Errorf("cannot lock %s of the host: another installer is at work: %w", name, err)
	}
	return func() { dir.Close() }, nil
}

// files are contents of files of the host, by their paths; nil is no file.
type files map[string][]byte

// run runs a program of the host in its root, and returns its output. What it prints to stderr
// becomes part of the error. If supposed is not empty, the program sees those files in place of
// the ones that are there, and nobody else does.
func (r root) run(ctx context.Context, supposed files, argv ...string) (string, error) {
	if !path.IsAbs(argv[0]) {
		return "", fmt.Errorf("cannot run %s: give its absolute path", argv[0])
	}
	// With pipes, a daemon that the program leaves running would be waited for.
	stdout, err := memoryFile()
	if err != nil {
		return "", err
	}
	defer stdout.Close()
	stderr, err := memoryFile()
	if err != nil {
		return "", err
	}
	defer stderr.Close()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LC_ALL=C",
		// systemctl would do nothing in what it takes for a chroot, and report success.
		"SYSTEMD_IGNORE_CHROOT=1",
	}
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: string(r), Pdeathsig: unix.SIGKILL}
	ended := make(chan error, 1)
	go func() {
		// The thread that has left the others' namespaces ends with this goroutine. That
		// of a child may not end before the child, for the sake of Pdeathsig.
		runtime.LockOSThread()
		if len(supposed) > 0 {
			if err := r.suppose(supposed); err != nil {
				ended <- err
				return
			}
		}
		ended <- cmd.Run()
	}()
	failed := <-ended
	output, err := printed(stdout)
	if err != nil {
		return "", err
	}
	if failed != nil {
		if reason, _ := printed(stderr); reason != "" {
			failed = fmt.Errorf("%w: %s", failed, lastLines(reason))
		}
		return output, fmt.Errorf("cannot run %q on the host: %w", strings.Join(argv, " "), failed)
	}
	return output, nil
}

func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "output of a program"), nil
}

func printed(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	text, err := io.ReadAll(f)
	return string(text), err
}

// lastLines cuts what a program has printed to its end, where the reason is.
func lastLines(text string) string {
	const most = 2000
	text = strings.TrimSpace(text)
	if len(text) > most {
		text = "..." + text[len(text)-most:]
	}
	return text
}

// suppose gives the calling thread a mount namespace of its own, in which the files are on the
// host. Each directory that has one of them is covered by a copy in memory, which goes with the
// namespace. The goroutine must be locked to its thread, and the thread must not be used again.
func (r root) suppose(supposed files) error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("cannot make a mount namespace to try a configuration in: %w; the installer must be privileged", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(supposed)) {
		if err := r.supposeFile(name, supposed[name]); err != nil {
			return fmt.Errorf("cannot try a configuration with another %s: %w", name, err)
		}
	}
	return nil
}

func (r root) supposeFile(name string, content []byte) error {
	resolved, err := r.follow(name)
	if err != nil {
		return err
	}
	dir := filepath.Dir(resolved)
	for { // the first directory that is there
		_, err := os.Stat(dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if content == nil {
			return nil
		}
		dir = filepath.Dir(dir)
	}
	if err := cover(dir); err != nil {
		return err
	}
	if content == nil {
		if err := os.Remove(resolved); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(resolved), 0o755); err != nil {
		return err
	}
	return os.WriteFile(resolved, content, 0o600)
}

// cover mounts a copy of a directory over it, unless it is such a copy.
func cover(dir string) error {
	const tmpfsMagic = unix.TMPFS_MAGIC
	marker := filepath.Join(dir, ".supposed-by-containerd-shim-pause-install")
	var at unix.Statfs_t
	if err := unix.Statfs(dir, &at); err != nil {
		return err
	}
	if _, err := os.Stat(marker); err == nil && at.Type == tmpfsMagic {
		return nil
	}
	old, err := os.OpenRoot(dir) // what is below the mount
	if err != nil {
		return err
	}
	defer old.Close()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("cannot mount a tmpfs: %w", err)
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return err
	}
	return copyTree(old, dir)
}

// copyTree copies directories, files and symbolic links, and nothing else.
func copyTree(from *os.Root, to string) error {
	return fs.WalkDir(from.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch e.Type() {
		case fs.ModeDir:
			return os.MkdirAll(target, 0o755)
		case fs.ModeSymlink:
			link, err := from.Readlink(name)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case 0:
			return copyFile(from, name, target)
		}
		return nil
	})
}

func copyFile(from *os.Root, name, target string) error {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
