package shim

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// defaultSocketDir is where containerd before 2.3 expects the sockets of
	// shims, and later versions unless they name another directory.
	defaultSocketDir = "/run/containerd/s"

	// maxSocketPath is the stock shim's limit in bytes. The kernel's is 107
	// and a NUL (unix(7), sun_path).
	maxSocketPath = 106

	unixScheme = "unix://"

	// addressFile in the bundle holds the address of the shim that serves the
	// bundle's container, without a newline. containerd up to 1.7 reads it to
	// find shims after a restart (loadShim in runtime/v2/shim.go), and `delete`
	// reads it to find the socket that a killed shim has left.
	addressFile = "address"
)

// socketAddress returns the address of the shim of a group. It is computed as in
// the stock shim (CreateSocketAddress in containerd's pkg/shim/util_unix.go),
// because tools find shims that way.
func socketAddress(dir, grpcAddress, namespace, group string) string {
	sum := sha256.Sum256([]byte(filepath.Join(grpcAddress, namespace, group)))
	return fmt.Sprintf("%s%s/%x", unixScheme, dir, sum)
}

// claimSocket binds the socket of a group and listens on it. It returns a file
// named path, or nil and no error if another process listens there. That process
// is the group's shim, even if it has not called accept yet.
//
// claimSocket locks the directory. Otherwise, of two processes that find the same
// stale socket, the slower would remove the socket that the faster has just bound.
func claimSocket(path string) (*os.File, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("cannot listen on %s: the path has %d bytes, and only %d are allowed", path, len(path), maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot create socket directory: %w", err)
	}
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	l, err := listen(path)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return l, err
	}
	alive, err := isServed(path)
	if err != nil || alive {
		return nil, err
	}
	if err := unlinkSocket(path); err != nil {
		return nil, err
	}
	return listen(path)
}

// removeStaleSocket removes the socket at path unless a process listens on it.
func removeStaleSocket(path string) error {
	return locked(path, func() error {
		if alive, err := isServed(path); err != nil || alive {
			return err
		}
		return unlinkSocket(path)
	})
}

// removeSocket removes a socket on which the caller itself listens, so no other
// process can have replaced it.
func removeSocket(path string) error {
	return locked(path, func() error { return unlinkSocket(path) })
}

// locked calls f while the directory of path is locked. It does nothing if there is no such
// directory.
func locked(path string, f func() error) error {
	unlock, err := lockDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	return f()
}

// lockDir takes the lock under which sockets in dir are created and removed. The
// lock is on the directory itself, so no lock file is left behind. The kernel
// releases it if the process that has it dies.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot lock socket directory: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock socket directory %s: %w", dir, err)
	}
	return func() {
		// Unlock explicitly: a process forked at this moment shares the open
		// file, and so the lock, until it execs.
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN)
		f.Close()
	}, nil
}

// listen binds a socket at path that only the owner may connect to, and listens on it. The
// mode is set before bind(2), which gives it to the new file; if it were set afterwards,
// others could connect in between. Package net could listen too, but takes ten times as
// long to start, and containerd waits. A client that connects before package net has taken
// over the socket waits in the backlog.
func listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, os.NewSyscallError("socket", err))
	}
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		if err = unix.Listen(fd, backlog); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, errors.Join(err, unix.Close(fd)))
	}
	return os.NewFile(uintptr(fd), path), nil
}

// backlog is the default of /proc/sys/net/core/somaxconn, which limits it.
const backlog = 4096

// isServed says whether a process listens on the socket at path.
func isServed(path string) (bool, error) {
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		conn.Close()
		return true, nil
	case errors.Is(err, syscall.EAGAIN): // Its backlog is full (connect(2)).
		return true, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return false, nil
	}
	return false, fmt.Errorf("cannot probe shim socket: %w", err)
}

// unlinkSocket removes the socket at path, if there is one. It refuses to remove
// anything but a socket, since that is not the shim's.
func unlinkSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		err = fmt.Errorf("%s is not a socket", path)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return fmt.Errorf("cannot remove shim socket: %w", err)
	}
	return nil
}

// writeAddress records address in the bundle, whole or not at all.
func writeAddress(bundle, address string) error {
	if err := replaceFile(filepath.Join(bundle, addressFile), []byte(address)); err != nil {
		return fmt.Errorf("cannot record shim address: %w", err)
	}
	return nil
}

// replaceFile writes a file for the owner only, whole or not at all.
func replaceFile(path string, data []byte) error {
	temporary := path + ".tmp"
	err := os.WriteFile(temporary, data, 0o600)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		os.Remove(temporary)
	}
	return err
}

// readAddress returns the path of the socket that is recorded in the bundle, or
// "" if none is recorded.
func readAddress(bundle string) (path string, err error) {
	address, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read shim address: %w", err)
	}
	path, ok := strings.CutPrefix(string(address), unixScheme)
	if !ok || !filepath.IsAbs(path) {
		return "", fmt.Errorf("cannot read shim address: %q in %s is not unix:// and an absolute path", address, filepath.Join(bundle, addressFile))
	}
	return path, nil
}
