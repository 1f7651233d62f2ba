package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// runDir is where containerd before 2.3 has the sockets of shims, and ctr its FIFOs,
// whatever their configuration says (defaults.DefaultStateDir, defaults.DefaultFIFODir).
const runDir = "/run/containerd"

// isolatedEnv tells this program that it is isolated.
const isolatedEnv = "PAUSE_NODE_ISOLATED"

// Isolate executes this program again, in a mount namespace of its own, in which
// all that is in /run is the host's but for /run/containerd, which is empty. A node
// needs it if its containerd cannot be told to keep out of there. It is to be called
// first of all, and returns nil in the program that is isolated.
func Isolate() error { return Isolation{Hide: []string{runDir}}.Enter() }

// Isolation says what of the host a program has of its own.
type Isolation struct {
	// Hide are directories, instead of which the program has empty ones. The host need
	// not have them, but those that they are in.
	Hide []string

	// Network gives it a network of its own, in which there is only the loopback interface.
	Network bool
}

// Enter executes this program again, isolated. It is to be called first of all, and
// returns nil in the program that is isolated.
func (i Isolation) Enter() error {
	if isolated() {
		return nil
	}
	// The program that is executed has the namespaces of the thread that calls
	// execve(2), and only those of this one are changed.
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil && i.Network {
		err = replaceNetwork()
	}
	if err == nil {
		err = hide(i.Hide)
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolatedEnv+"=1"))
	}
	return fmt.Errorf("cannot isolate this program: %w", err)
}

// replaceNetwork gives the thread a network of its own, and a sysfs that shows it
// (sysfs(5)): it has the interfaces of who mounts it.
func replaceNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	const cgroups = "/sys/fs/cgroup"
	old, err := unix.Open(cgroups, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", old), cgroups, "", unix.MS_BIND|unix.MS_REC, "")
}

func isolated() bool { return os.Getenv(isolatedEnv) != "" }

// hide replaces directories by empty ones.
func hide(dirs []string) error {
	names := map[string][]string{} // by the directory that they are in
	for _, dir := range dirs {
		parent := filepath.Dir(dir)
		names[parent] = append(names[parent], filepath.Base(dir))
	}
	for parent, hidden := range names {
		if err := replace(parent, hidden); err != nil {
			return fmt.Errorf("%s: %w", parent, err)
		}
	}
	return nil
}

// replace mounts a directory of which all but what is hidden is bound to the old one's.
// The host need not have what is hidden to mount something on.
func replace(dir string, hidden []string) error {
	old, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	source := fmt.Sprintf("/proc/self/fd/%d", old)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if err := unix.Mount("run", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		if slices.Contains(hidden, e.Name()) {
			continue
		}
		if err := bind(filepath.Join(source, e.Name()), filepath.Join(dir, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	for _, name := range hidden {
		if err := os.Mkdir(filepath.Join(dir, name), 0o711); err != nil {
			return err
		}
	}
	return nil
}

// bind shows what is at source at target, too, where nothing is yet.
func bind(source, target string, kind os.FileMode) error {
	var err error
	switch {
	case kind&os.ModeSymlink != 0:
		var to string
		if to, err = os.Readlink(source); err == nil {
			err = os.Symlink(to, target)
		}
		return err
	case kind.IsDir():
		err = os.Mkdir(target, 0o755)
	default:
		err = os.WriteFile(target, nil, 0o600)
	}
	if err == nil {
		err = unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, "")
	}
	if errors.Is(err, os.ErrNotExist) { // it has gone in the meantime
		return os.Remove(target)
	}
	return err
}
