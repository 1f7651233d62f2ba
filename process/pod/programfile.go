package pod

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Programs of package program are executed from a new file system, because a host may not
// allow it elsewhere: directories may be mounted with noexec, and executable files in memory
// may be refused (vm.memfd_noexec, sysctl/vm.rst).

// programFile returns an executable file that has no path.
func programFile(name string, code []byte) (*os.File, error) {
	dir, err := tmpfs()
	if err != nil {
		return nil, fmt.Errorf("cannot make a file system for the program %s: %w", name, err)
	}
	defer dir.Close()
	if err := writeProgram(int(dir.Fd()), name, code); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the program %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// writeProgram writes a file that any user may execute; dir and path are those of
// openat(2). It keeps other goroutines from forking: a forked process would hold the file
// open for writing until its execve(2), and meanwhile nobody could execute the file
// (ETXTBSY).
func writeProgram(dir int, path string, code []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := unix.Openat(dir, path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o555)
	if err != nil {
		return fmt.Errorf("cannot make the program %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.Write(code)
	if err := errors.Join(err, f.Chmod(0o555), f.Close()); err != nil { // with chmod the umask does not matter
		return fmt.Errorf("cannot write the program %s: %w", path, err)
	}
	return nil
}

// tmpfsOptions are the mount options of a file system for one small program.
var tmpfsOptions = map[string]string{"mode": "755", "size": "64k", "nr_inodes": "8"}

// tmpfs returns the root directory of a new file system, which is mounted nowhere. The
// kernel frees it with its last open file.
func tmpfs() (*os.File, error) {
	dir, err := detachedTmpfs()
	if err == nil {
		return dir, nil
	}
	// Linux has fsmount(2) since 5.2, and a seccomp filter may refuse it.
	dir, mountErr := mountedTmpfs()
	if mountErr != nil {
		return nil, errors.Join(err, mountErr)
	}
	return dir, nil
}

func detachedTmpfs() (*os.File, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for key, value := range tmpfsOptions {
		if err := unix.FsconfigSetString(fs, key, value); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	dir, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	return os.NewFile(uintptr(dir), "tmpfs"), nil
}

// mountedTmpfs is detachedTmpfs for old kernels: it mounts the file system at a path for a
// moment.
func mountedTmpfs() (_ *os.File, err error) {
	path, err := os.MkdirTemp("", "pause-program-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.Remove(path) }() // nothing is in it
	var data string
	for key, value := range tmpfsOptions {
		data += "," + key + "=" + value
	}
	if err := unix.Mount("pause", path, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, data[1:]); err != nil {
		return nil, &os.PathError{Op: "mount", Path: path, Err: err}
	}
	dir, err := os.Open(path)
	if uerr := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); uerr != nil {
		closeFile(dir)
		return nil, errors.Join(err, &os.PathError{Op: "unmount", Path: path, Err: uerr})
	}
	return dir, err
}
