package proctest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// ServedFile is a file system with one file, which the test serves (FUSE, linux/fuse.h).
// Reading the file always returns its text, whatever was written.
type ServedFile struct {
	Path  string
	text  string
	Polls atomic.Int64 // how often the kernel has polled the file

	mu   sync.Mutex
	data []byte // guarded by mu: all that was written, in order
}

// Operations of linux/fuse.h.
const (
	fuseGetAttr = 3
	fuseOpen    = 14
	fuseRead    = 15
	fuseWrite   = 16
	fuseRelease = 18
	fuseFlush   = 25
	fuseInit    = 26
	fusePoll    = 40
)

// ServeFile mounts a file system with one file until the end of the test.
func ServeFile(t *testing.T, text string) *ServedFile {
	t.Helper()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		t.Skip("this kernel has no FUSE")
	}
	Must(t, err)
	f := &ServedFile{Path: filepath.Join(t.TempDir(), "file"), text: text}
	Must(t, os.WriteFile(f.Path, nil, 0o600))
	options := fmt.Sprintf("fd=%d,rootmode=100644,user_id=0,group_id=0", device)
	Must(t, unix.Mount("test", f.Path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options))
	served := make(chan struct{})
	go func() {
		defer close(served)
		f.serve(device)
	}()
	t.Cleanup(func() {
		Must(t, unix.Unmount(f.Path, unix.MNT_DETACH))
		<-served // reading fails when the file system is gone
		unix.Close(device)
	})
	return f
}

func (f *ServedFile) serve(device int) {
	buf := make([]byte, 1<<20)
	for {
		n, err := unix.Read(device, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		// struct fuse_in_header: length, operation, number, and 24 bytes about the caller.
		operation, body := binary.NativeEndian.Uint32(buf[4:]), buf[40:n]
		answer, errno := f.answer(operation, body)
		out := binary.NativeEndian.AppendUint32(nil, uint32(16+len(answer)))
		out = binary.NativeEndian.AppendUint32(out, uint32(-int32(errno)))
		out = append(append(out, buf[8:16]...), answer...)
		_, _ = unix.Write(device, out) // it fails if the caller was killed
	}
}

func (f *ServedFile) answer(operation uint32, body []byte) ([]byte, unix.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u32, u64 := binary.NativeEndian.Uint32, binary.NativeEndian.Uint64
	switch operation {
	case fuseInit:
		out := make([]byte, 64)
		binary.NativeEndian.PutUint32(out, 7)          // major version
		binary.NativeEndian.PutUint32(out[4:], 31)     // minor version
		binary.NativeEndian.PutUint32(out[20:], 1<<16) // largest write in bytes
		return out, 0
	case fuseGetAttr:
		out := make([]byte, 16+88)
		attr := out[16:]
		binary.NativeEndian.PutUint64(attr, 1) // inode
		binary.NativeEndian.PutUint64(attr[8:], uint64(len(f.text)))
		binary.NativeEndian.PutUint32(attr[60:], unix.S_IFREG|0o644)
		binary.NativeEndian.PutUint32(attr[64:], 1) // links
		return out, 0
	case fuseOpen:
		out := make([]byte, 16)
		binary.NativeEndian.PutUint32(out[8:], 1) // FOPEN_DIRECT_IO: nothing is cached
		return out, 0
	case fuseRead:
		from := min(u64(body[8:]), uint64(len(f.text)))
		to := min(from+uint64(u32(body[16:])), uint64(len(f.text)))
		return []byte(f.text[from:to]), 0
	case fuseWrite:
		size := u32(body[16:])
		f.data = append(f.data, body[40:40+size]...)
		out := make([]byte, 8)
		binary.NativeEndian.PutUint32(out, size)
		return out, 0
	case fuseRelease, fuseFlush:
		return nil, 0
	case fusePoll:
		f.Polls.Add(1)
	}
	return nil, unix.ENOSYS
}

// Written returns all that was written to the file.
func (f *ServedFile) Written() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.data)
}
