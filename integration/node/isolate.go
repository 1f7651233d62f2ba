package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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
func Isolate() error {
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
	if err == nil {
		err = replaceRun()
	}
	if err == nil {
		err = syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), isolatedEnv+"=1"))
	}
	return fmt.Errorf("cannot isolate %s: %w", runDir, err)
}

func isolated() bool { return os.Getenv(isolatedEnv) != "" }

// replaceRun mounts a /run of which all but runDir is bound to the old one's. The
// host's need not have a runDir to mount something on.
func replaceRun() error {
	run := filepath.Dir(runDir)
	old, err := unix.Open(run, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	source := fmt.Sprintf("/proc/self/fd/%d", old)
	entries, err := os.ReadDir(run)
	if err != nil {
		return err
	}
	if err := unix.Mount("run", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == filepath.Base(runDir) {
			continue
		}
		if err := bind(filepath.Join(source, e.Name()), filepath.Join(run, e.Name()), e.Type()); err != nil {
			return err
		}
	}
	return os.Mkdir(runDir, 0o711)
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
