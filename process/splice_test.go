package process

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
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestSpliceIsForPipes(t *testing.T) {
	noLeakedFDs(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer closeAll(r, w)
	_, err = w.WriteString("output")
	must(t, err)
	file, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	must(t, err)
	defer file.Close()
	if spliceStream(file, r) {
		t.Error("a file was taken for a pipe")
	}
	buf := make([]byte, 10)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "output" {
		t.Errorf("the pipe has %q, %v", buf[:n], err)
	}
}

// The client has stopped to read, and the pipes are full.
func TestSpliceEndsWithItsFiles(t *testing.T) {
	noLeakedFDs(t)
	r, w, err := os.Pipe()
	must(t, err)
	dst, err := os.OpenFile(mkfifo(t), os.O_RDWR|unix.O_NONBLOCK, 0)
	must(t, err)
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 1<<20))
		written <- err
	}()
	done := make(chan bool, 1)
	go func() { done <- spliceStream(dst, r) }()
	for unread(t, dst) == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	closeAll(r, dst)
	if !<-done {
		t.Error("it says that there are no pipes")
	}
	if err := <-written; !errors.Is(err, unix.EPIPE) {
		t.Errorf("the writer sees %v", err)
	}
	w.Close()
}

// The container has read it back itself.
func TestSpliceOfNothing(t *testing.T) {
	noLeakedFDs(t)
	src, _ := newPipe(t)
	_, dst := newPipe(t)
	if got := splice(src.Fd(), dst.Fd()); got != drained {
		t.Errorf("the outcome is %d, want %d", got, drained)
	}
}

// The pipes become larger for a reader who lags behind, nothing gets lost or mixed up, and
// they become smaller again when the flood is over.
func TestFlood(t *testing.T) {
	noLeakedFDs(t)
	src, w := newPipe(t)
	r, dst := newPipe(t)
	done := make(chan bool, 1)
	go func() {
		done <- spliceStream(dst, src)
		closeAll(src, dst)
	}()
	written := make(chan uint32, 1)
	flooded := make(chan struct{})
	go func() {
		out := make([]byte, 32<<10)
		for count := uint32(0); ; {
			for i := 0; i < len(out); i += 4 {
				binary.NativeEndian.PutUint32(out[i:], count)
				count++
			}
			if _, err := w.Write(out); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-flooded:
				written <- count
				return
			default:
			}
		}
	}()
	in, want := make([]byte, 32<<10), uint32(0)
	check := func() {
		t.Helper()
		if _, err := io.ReadFull(r, in); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(in); i += 4 {
			if got := binary.NativeEndian.Uint32(in[i:]); got != want {
				t.Fatalf("got word %d, want %d", got, want)
			}
			want++
		}
	}
	for pipeCapacity(t, r) != floodSize || pipeCapacity(t, w) != floodSize {
		time.Sleep(time.Millisecond)
		check()
	}
	for range 2 * floodSize / len(in) { // more than both of them hold
		time.Sleep(time.Millisecond)
		check()
	}
	close(flooded)
	all, told := uint32(0), false
	for !told || want != all {
		select {
		case all = <-written:
			told = true
		default: // The writer waits for room.
			if unread(t, r) >= len(in) {
				check()
			} else {
				time.Sleep(time.Millisecond)
			}
		}
	}
	for pipeCapacity(t, r) != pipeSize || pipeCapacity(t, w) != pipeSize {
		time.Sleep(time.Millisecond)
	}
	w.Close()
	if !<-done {
		t.Error("it says that there are no pipes")
	}
	if n, err := r.Read(in); err != io.EOF {
		t.Errorf("at the end there are %d bytes more, %v", n, err)
	}
}

// Streams beyond those that may keep a thread are moved as well.
func TestManyFloods(t *testing.T) {
	noLeakedFDs(t)
	var wg sync.WaitGroup
	for range 3 * maxFloods {
		src, w := newPipe(t)
		r, dst := newPipe(t)
		wg.Go(func() {
			spliceStream(dst, src)
			closeAll(src, dst)
		})
		wg.Go(func() {
			_, err := w.Write(make([]byte, 8<<20))
			if err != nil {
				t.Error(err)
			}
			w.Close()
		})
		wg.Go(func() {
			buf, n := make([]byte, 16<<10), 0
			for {
				got, err := r.Read(buf)
				n += got
				if err != nil {
					break
				}
				time.Sleep(50 * time.Microsecond)
			}
			if n != 8<<20 {
				t.Errorf("got %d bytes", n)
			}
			r.Close()
		})
	}
	wg.Wait()
	if n := floods.Load(); n != 0 {
		t.Errorf("%d floods are left", n)
	}
}

// The naps follow the reader, until half of the pipe is read in each.
func TestNapsFollowTheReader(t *testing.T) {
	noLeakedFDs(t)
	src, w := newPipe(t)
	r, dst := newPipe(t)
	fill(t, dst)
	fill(t, w)
	f := &flood{size: pipeSize}
	// Nobody reads.
	if got := f.run(src.Fd(), dst.Fd()); got != stuck || f.nap != longestNap {
		t.Errorf("the outcome is %d after naps up to %d, want %d and %d", got, f.nap, stuck, longestNap)
	}
	for name, c := range map[string]struct {
		read      int
		nap, want int64
		large     bool
		outcome   outcome
	}{
		"as much as it should be":  {pipeSize / 2, 1_000_000, 1_000_000, false, slow},
		"too little":               {pipeSize / 4, 1_000_000, 2_000_000, false, slow},
		"far too little":           {4096, 1_000_000, 4_000_000, false, slow},
		"too much":                 {pipeSize, 1_000_000, 500_000, false, slow},
		"faster than a nap can be": {pipeSize, shortestNap, shortestNap / 2, false, stuck},
	} {
		_, err := io.ReadFull(r, make([]byte, c.read))
		must(t, err)
		f.nap, f.large = c.nap, c.large
		if got := f.run(src.Fd(), dst.Fd()); got != c.outcome || f.nap != c.want {
			t.Errorf("%s: the outcome is %d and the nap %d, want %d and %d", name, got, f.nap, c.outcome, c.want)
		}
		fill(t, w)
	}
	_, err := io.ReadFull(src, make([]byte, pipeSize))
	must(t, err)
	_, err = io.ReadFull(r, make([]byte, 4096))
	must(t, err)
	if got := f.run(src.Fd(), dst.Fd()); got != drained {
		t.Errorf("the outcome is %d without anything to move, want %d", got, drained)
	}
	w.Close()
	if got := f.run(src.Fd(), dst.Fd()); got != ended {
		t.Errorf("the outcome is %d at the end, want %d", got, ended)
	}
}

// More than the usual size is left to read when the flood is over.
func TestPipesBecomeSmaller(t *testing.T) {
	noLeakedFDs(t)
	src, w := newPipe(t)
	r, dst := newPipe(t)
	p := &pipes{src: src, dst: dst, flood: flood{size: pipeSize, nap: 1_000_000}}
	p.enlarge()
	if a, b := pipeCapacity(t, src), pipeCapacity(t, dst); a != floodSize || b != floodSize || p.nap != 4_000_000 {
		t.Errorf("the pipes have %d and %d bytes and the nap is %d, want %d and 4000000", a, b, p.nap, floodSize)
	}
	_, err := dst.Write(make([]byte, 2*pipeSize))
	must(t, err)
	ready := make(chan bool)
	go func() { ready <- p.awaitSource() }()
	_, err = io.ReadFull(r, make([]byte, 2*pipeSize))
	must(t, err)
	for pipeCapacity(t, dst) != pipeSize || pipeCapacity(t, src) != pipeSize {
		time.Sleep(time.Millisecond)
	}
	_, err = w.Write([]byte("x"))
	must(t, err)
	if !<-ready || p.large || p.nap != 0 || p.size != pipeSize {
		t.Errorf("it does not begin anew: %+v", p)
	}
}

// A reader who has stopped must not keep the process from its end.
func TestLargePipesEndWithTheirFiles(t *testing.T) {
	noLeakedFDs(t)
	src, _ := newPipe(t)
	_, dst := newPipe(t)
	p := &pipes{src: src, dst: dst, flood: flood{size: pipeSize, large: true}}
	p.resize(floodSize)
	_, err := dst.Write(make([]byte, 2*pipeSize))
	must(t, err)
	ready := make(chan bool)
	go func() { ready <- p.awaitSource() }()
	time.Sleep(20 * time.Millisecond)
	src.Close()
	if <-ready {
		t.Error("a closed pipe is readable")
	}
}

// A writer holds the lock of its pipe while the kernel copies from its memory. If that memory
// is on a file system that has stopped, or as here is served by nobody (userfaultfd(2)), then
// only the thread that moves its output waits, though Go has no other P to run the rest.
func TestWriterWhoHoldsTheLockOfItsPipe(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for name, move := range map[string]func(from, to uintptr) outcome{
		"splice": splice,
		"flood":  (&flood{size: pipeSize}).run,
	} {
		t.Run(name, func(t *testing.T) {
			noLeakedFDs(t)
			src, w := newPipe(t)
			r, dst := newPipe(t)
			memory := newUnservedMemory(t)
			_, err := w.WriteString("output")
			must(t, err)
			written, from, to, pipe := make(chan error), src.Fd(), dst.Fd(), int(w.Fd())
			go func() {
				_, err := unix.Write(pipe, memory.page)
				written <- err
			}()
			memory.awaitAccess(t)
			tid, moved := make(chan int), make(chan outcome)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				tid <- unix.Gettid()
				moved <- move(from, to)
			}()
			call, inSplice := fmt.Sprintf("/proc/self/task/%d/syscall", <-tid), fmt.Sprintf("%d ", unix.SYS_SPLICE)
			for {
				text, err := os.ReadFile(call)
				must(t, err)
				if strings.HasPrefix(string(text), inSplice) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			select {
			case o := <-moved:
				t.Fatalf("the pipe is not locked: the outcome is %d", o)
			case <-time.After(10 * time.Millisecond):
			}
			memory.serve(t)
			must(t, <-written)
			if o := <-moved; o != drained {
				t.Errorf("the outcome is %d, want %d", o, drained)
			}
			w.Close()
			for splice(from, to) != ended {
			}
			dst.Close()
			got, err := io.ReadAll(r)
			must(t, err)
			if want := append([]byte("output"), make([]byte, len(memory.page))...); !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

// unservedMemory is a page that is not there until it is served.
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
	must(t, err)
	m := &unservedMemory{int(fd), page}
	t.Cleanup(func() {
		must(t, unix.Close(m.fd)) // which lets those go on who wait
		must(t, unix.Munmap(m.page))
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

// awaitAccess waits until somebody waits for the page.
func (m *unservedMemory) awaitAccess(t *testing.T) {
	t.Helper()
	must(t, ignoringEINTR(func() error {
		_, err := unix.Read(m.fd, make([]byte, 32))
		return err
	}))
}

func (m *unservedMemory) serve(t *testing.T) {
	t.Helper()
	m.ioctl(t, uffdZeroPage, &[4]uint64{m.address(), uint64(len(m.page))})
}

// newPipe makes a pipe that is closed at the end of the test, if not before.
func newPipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { closeAll(r, w) })
	return r, w
}

// fill fills a pipe.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	conn, err := w.SyscallConn()
	must(t, err)
	page := make([]byte, os.Getpagesize())
	must(t, conn.Write(func(fd uintptr) bool {
		for err == nil {
			_, err = unix.Write(int(fd), page)
		}
		return true
	}))
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("the pipe cannot be filled: %v", err)
	}
}

func pipeCapacity(t *testing.T, f *os.File) (n int) {
	t.Helper()
	conn, err := f.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) { n, err = unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0) }))
	must(t, err)
	return n
}

// unread is how many bytes are in a pipe (FIONREAD, pipe(7)).
func unread(t *testing.T, f *os.File) int {
	t.Helper()
	conn, err := f.SyscallConn()
	must(t, err)
	n := 0
	must(t, conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
	must(t, err)
	return n
}
