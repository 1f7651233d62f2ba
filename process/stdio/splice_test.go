package stdio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
	"unsafe"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

func TestSpliceIsForPipes(t *testing.T) {
	proctest.NoLeakedFDs(t)
	r, w, err := os.Pipe()
	proctest.Must(t, err)
	defer CloseAll(r, w)
	_, err = w.WriteString("output")
	proctest.Must(t, err)
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	proctest.Must(t, err)
	defer file.Close()
	if splices(file, r) {
		t.Error("a file was taken for a pipe")
	}
	buf := make([]byte, 10)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "output" {
		t.Errorf("the pipe has %q, %v", buf[:n], err)
	}
}

// splices says whether both files were taken for pipes.
func splices(dst, src *os.File) bool { return !errors.Is(spliceStream(dst, src), errNoPipes) }

// The client has stopped reading, and the pipes are full.
func TestSpliceEndsWithItsFiles(t *testing.T) {
	proctest.NoLeakedFDs(t)
	r, w, err := os.Pipe()
	proctest.Must(t, err)
	dst, err := os.OpenFile(proctest.Mkfifo(t), os.O_RDWR|unix.O_NONBLOCK, 0)
	proctest.Must(t, err)
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 1<<20))
		written <- err
	}()
	done := make(chan bool, 1)
	go func() { done <- splices(dst, r) }()
	for unread(t, dst) == 0 {
		time.Sleep(time.Millisecond)
	}
	CloseAll(r, dst)
	if !<-done {
		t.Error("spliceStream has returned false for pipes")
	}
	if err := <-written; !errors.Is(err, unix.EPIPE) {
		t.Errorf("the writer sees %v", err)
	}
	w.Close()
}

// A container may read back its own output, before the shim moves it.
func TestSpliceOfNothing(t *testing.T) {
	proctest.NoLeakedFDs(t)
	src, _ := newPipe(t)
	_, dst := newPipe(t)
	in, err := src.SyscallConn()
	proctest.Must(t, err)
	out, err := dst.SyscallConn()
	proctest.Must(t, err)
	if n, err := splice(out, in); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("it moved %d bytes, error %v", n, err)
	}
}

// A slow reader must get all data in order. The pipes become larger for it, and smaller again
// when there is nothing to move.
func TestSpliceToASlowReader(t *testing.T) {
	proctest.NoLeakedFDs(t)
	src, w := newPipe(t)
	r, dst := newPipe(t)
	done := make(chan bool, 1)
	go func() {
		done <- splices(dst, src)
		CloseAll(src, dst)
	}()
	want := make([]byte, 4<<20)
	for i := 0; i < len(want); i += 4 {
		binary.NativeEndian.PutUint32(want[i:], uint32(i))
	}
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(want)
		written <- err
	}()
	var got []byte
	enlarged := false
	for buf := make([]byte, 4<<10); len(got) < len(want); {
		n, err := r.Read(buf)
		proctest.Must(t, err)
		got = append(got, buf[:n]...)
		if len(got) < len(want)/2 {
			time.Sleep(200 * time.Microsecond) // so that the pipes become full
			enlarged = enlarged || pipeCapacity(t, w) == largeSize && pipeCapacity(t, r) == largeSize
		}
	}
	proctest.Must(t, <-written)
	if !enlarged {
		t.Error("the pipes have kept their size")
	}
	for pipeCapacity(t, w) != pipeSize || pipeCapacity(t, r) != pipeSize {
		// A pipe that held too much to become smaller does so at a later write.
		_, err := w.WriteString("x")
		proctest.Must(t, err)
		_, err = r.Read(make([]byte, 1))
		proctest.Must(t, err)
		time.Sleep(time.Millisecond)
	}
	w.Close()
	if !<-done {
		t.Error("spliceStream has returned false for pipes")
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d, or they differ", len(got), len(want))
	}
}

// A writer holds the lock of its pipe while the kernel copies from the writer's memory. That may
// take any time, if the memory is on a file system that hangs; here it is a page that nobody
// serves (userfaultfd(2)). Then only the thread that moves the output may wait, and Go must run
// other goroutines even with only one P.
func TestWriterWhoHoldsTheLockOfItsPipe(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	proctest.NoLeakedFDs(t)
	src, w := newPipe(t)
	r, dst := newPipe(t)
	in, err := src.SyscallConn()
	proctest.Must(t, err)
	out, err := dst.SyscallConn()
	proctest.Must(t, err)
	memory := newUnservedMemory(t)
	_, err = w.WriteString("output")
	proctest.Must(t, err)
	written, pipe := make(chan error), int(w.Fd())
	go func() {
		_, err := unix.Write(pipe, memory.page)
		written <- err
	}()
	memory.awaitAccess(t)
	tid, moved := make(chan int), make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid <- unix.Gettid()
		_, err := splice(out, in)
		moved <- err
	}()
	call, inSplice := fmt.Sprintf("/proc/self/task/%d/syscall", <-tid), fmt.Sprintf("%d ", unix.SYS_SPLICE)
	for {
		text, err := os.ReadFile(call)
		proctest.Must(t, err)
		if strings.HasPrefix(string(text), inSplice) {
			break
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-moved:
		t.Fatalf("the pipe is not locked: %v", err)
	default:
	}
	memory.serve(t)
	proctest.Must(t, <-written)
	proctest.Must(t, <-moved)
	w.Close()
	if !splices(dst, src) {
		t.Error("spliceStream has returned false for pipes")
	}
	dst.Close()
	got, err := io.ReadAll(r)
	proctest.Must(t, err)
	if want := append([]byte("output"), make([]byte, len(memory.page))...); !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
}

// unservedMemory is a page of memory. Access to it waits until serve is called.
type unservedMemory struct {
	fd   int
	page []byte
}

// userfaultfd's calls, from linux/userfaultfd.h.
const (
	uffdAPI      = 0xc018aa3f
	uffdRegister = 0xc020aa00
	uffdZeroPage = 0xc020aa04
)

func newUnservedMemory(t *testing.T) *unservedMemory {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		t.Fatalf("userfaultfd: %v", errno)
	}
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	proctest.Must(t, err)
	m := &unservedMemory{int(fd), page}
	t.Cleanup(func() {
		proctest.Must(t, unix.Close(m.fd)) // this ends all waits for the page
		proctest.Must(t, unix.Munmap(m.page))
	})
	m.ioctl(t, uffdAPI, &[3]uint64{0xaa})
	m.ioctl(t, uffdRegister, &[4]uint64{m.address(), uint64(len(m.page)), 1 /* missing pages */})
	return m
}

func (m *unservedMemory) address() uint64 { return uint64(uintptr(unsafe.Pointer(&m.page[0]))) }

func (m *unservedMemory) ioctl(t *testing.T, request uintptr, arg any) {
	t.Helper()
	var p unsafe.Pointer
	switch arg := arg.(type) {
	case *[3]uint64:
		p = unsafe.Pointer(arg)
	case *[4]uint64:
		p = unsafe.Pointer(arg)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.fd), request, uintptr(p)); errno != 0 {
		t.Fatalf("userfaultfd: ioctl %#x: %v", request, errno)
	}
}

// awaitAccess waits until a thread waits for the page.
func (m *unservedMemory) awaitAccess(t *testing.T) {
	t.Helper()
	proctest.Must(t, reap.IgnoringEINTR(func() error {
		_, err := unix.Read(m.fd, make([]byte, 32))
		return err
	}))
}

func (m *unservedMemory) serve(t *testing.T) {
	t.Helper()
	m.ioctl(t, uffdZeroPage, &[4]uint64{m.address(), uint64(len(m.page))})
}

// newPipe makes a pipe, which is closed at the end of the test at the latest.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	proctest.Must(t, err)
	t.Cleanup(func() { CloseAll(r, w) })
	return r, w
}

// pipeCapacity returns the size of a pipe in bytes.
func pipeCapacity(t *testing.T, f *os.File) (n int) {
	t.Helper()
	conn, err := f.SyscallConn()
	proctest.Must(t, err)
	proctest.Must(t, conn.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) }))
	proctest.Must(t, err)
	return n
}

// unread returns how many bytes are in a pipe (FIONREAD, pipe(7)).
func unread(t *testing.T, f *os.File) int {
	t.Helper()
	conn, err := f.SyscallConn()
	proctest.Must(t, err)
	n := 0
	proctest.Must(t, conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
	proctest.Must(t, err)
	return n
}
