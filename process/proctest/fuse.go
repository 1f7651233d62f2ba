package proctest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// ServedFile is a file system of one file or one empty directory, which the test serves (FUSE,
// linux/fuse.h). Reading the file always returns its text, whatever was written.
type ServedFile struct {
	Path  string
	text  string
	mode  uint32       // type and permissions, see stat(2)
	Polls atomic.Int64 // how often the kernel has polled the file

	device *os.File

	mu      sync.Mutex
	data    []byte   // guarded by mu: all that was written, in order
	hangs   bool     // guarded by mu
	waiting [][]byte // guarded by mu: requests that have no answer yet
}

// Operations of linux/fuse.h.
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetAttr     = 3
	fuseOpen        = 14
	fuseRead        = 15
	fuseWrite       = 16
	fuseStatFS      = 17
	fuseRelease     = 18
	fuseFlush       = 25
	fuseInit        = 26
	fuseOpenDir     = 27
	fuseReadDir     = 28
	fuseReleaseDir  = 29
	fuseInterrupt   = 36
	fusePoll        = 40
	fuseBatchForget = 42
)

// ServeFile mounts a file system with one file, which can be executed, until the end of the test.
func ServeFile(t *testing.T, text string) *ServedFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	Must(t, os.WriteFile(path, nil, 0o600))
	return serveAt(t, &ServedFile{Path: path, text: text, mode: unix.S_IFREG | 0o755})
}

// ServeDir mounts a file system with nothing in it until the end of the test.
func ServeDir(t *testing.T) *ServedFile {
	t.Helper()
	return serveAt(t, &ServedFile{Path: t.TempDir(), mode: unix.S_IFDIR | 0o755})
}

func serveAt(t *testing.T, f *ServedFile) *ServedFile {
	t.Helper()
	device, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		t.Skip("this kernel has no FUSE")
	}
	Must(t, err)
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0", device, f.mode)
	err = unix.Mount("test", f.Path, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options)
	f.device = os.NewFile(uintptr(device), "/dev/fuse")
	if err != nil {
		f.device.Close()
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		f.serve()
	}()
	t.Cleanup(func() {
		Must(t, unix.Unmount(f.Path, unix.MNT_DETACH))
		// Now all that wait for an answer get an error, wherever else it is mounted.
		f.device.Close()
		<-served
	})
	return f
}

// Hang leaves requests without an answer from now on. Who makes one sleeps until it is there, and
// not even SIGKILL ends that.
func (f *ServedFile) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangs = true
}

// Callers returns the thread IDs of those who wait for an answer.
func (f *ServedFile) Callers() (tids []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, request := range f.waiting {
		tids = append(tids, int(binary.NativeEndian.Uint32(request[32:])))
	}
	return tids
}

// Resume answers the requests that wait, and the following ones at once.
func (f *ServedFile) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hangs = false
	for _, request := range f.waiting {
		f.reply(request)
	}
	f.waiting = nil
}

func (f *ServedFile) serve() {
	buf := make([]byte, 1<<20)
	for {
		n, err := f.device.Read(buf)
		if errors.Is(err, unix.ENOENT) { // the caller was killed before the request was read
			continue
		}
		if err != nil {
			return
		}
		f.take(slices.Clone(buf[:n]))
	}
}

// take answers a request, now or later. Each begins with struct fuse_in_header: length, operation, number, inode,
// and 16 bytes about the caller.
func (f *ServedFile) take(request []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch binary.NativeEndian.Uint32(request[4:]) {
	case fuseForget, fuseBatchForget, fuseInterrupt: // they get no answer
	case fuseInit, fuseRelease, fuseReleaseDir:
		f.reply(request)
	default:
		if f.hangs {
			f.waiting = append(f.waiting, request)
			return
		}
		f.reply(request)
	}
}

// reply answers a request. The caller holds mu.
func (f *ServedFile) reply(request []byte) {
	operation, body := binary.NativeEndian.Uint32(request[4:]), request[40:]
	answer, errno := f.answer(operation, body)
	out := binary.NativeEndian.AppendUint32(nil, uint32(16+len(answer)))
	out = binary.NativeEndian.AppendUint32(out, uint32(-int32(errno)))
	out = append(append(out, request[8:16]...), answer...)
	_, _ = f.device.Write(out) // it fails if the caller was killed
}

// answer is the result of a request. The caller holds mu.
func (f *ServedFile) answer(operation uint32, body []byte) ([]byte, unix.Errno) {
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
		binary.NativeEndian.PutUint32(attr[60:], f.mode)
		binary.NativeEndian.PutUint32(attr[64:], 1) // links
		return out, 0
	case fuseLookup:
		return nil, unix.ENOENT
	case fuseOpen, fuseOpenDir:
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
	case fuseStatFS:
		out := make([]byte, 80)
		binary.NativeEndian.PutUint32(out[40:], 4096) // block size
		binary.NativeEndian.PutUint32(out[44:], 255)  // longest name
		return out, 0
	case fuseReadDir, fuseRelease, fuseReleaseDir, fuseFlush:
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
