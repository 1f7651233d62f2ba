package shim

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openFifo makes a fifo and opens it as openLog does.
func openFifo(t *testing.T) (path string, fd int) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "log")
	if err := unix.Mkfifo(path, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return path, fd
}

func TestFullLogLosesMessagesInsteadOfBlocking(t *testing.T) {
	path, fd := openFifo(t)
	w := &logWriter{fd: fd}
	line := []byte(strings.Repeat("x", 1023) + "\n")
	const lines = 200 // More than the 64 KiB of a pipe.
	for range lines {
		if n, err := w.Write(line); n != len(line) || err != nil {
			t.Fatalf("wrote %d bytes, error %v", n, err)
		}
	}
	if w.lost == 0 {
		t.Fatal("nothing was lost, so the pipe was not full")
	}
	lost := w.lost

	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	in := bufio.NewReader(reader)
	for i := range lines - lost {
		got, err := in.ReadString('\n')
		if err != nil || got != string(line) {
			t.Fatalf("line %d is torn: %d bytes, error %v", i, len(got), err)
		}
	}
	if _, err := w.Write([]byte("after\n")); err != nil {
		t.Fatal(err)
	}
	note, err := in.ReadString('\n')
	if err != nil || !strings.Contains(note, "log messages were lost") {
		t.Errorf("no note of the loss but %q, error %v", note, err)
	}
	if got, err := in.ReadString('\n'); err != nil || got != "after\n" {
		t.Errorf("then came %q, error %v", got, err)
	}
	if w.lost != 0 {
		t.Errorf("%d messages still count as lost", w.lost)
	}
}

// A message that is longer than PIPE_BUF may be cut. The next one begins a line of its own.
func TestMessageAfterATornOneBeginsALine(t *testing.T) {
	path, fd := openFifo(t)
	w := &logWriter{fd: fd}
	long := strings.Repeat("x", 100<<10) + "\n"
	if n, err := w.Write([]byte(long)); n != len(long) || err != nil {
		t.Fatalf("wrote %d bytes, error %v", n, err)
	}
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	fragment := make([]byte, 64<<10)
	if _, err := io.ReadFull(reader, fragment); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("after\n")); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(reader)
	for _, want := range []string{"\n", "level=warning msg=\"1 log messages were lost\"\n", "after\n"} {
		if got, err := in.ReadString('\n'); err != nil || got != want {
			t.Errorf("read %q, error %v, want %q", got, err, want)
		}
	}
}

// The stacks of a shared shim are longer than a pipe holds.
func TestLongDumpWaitsForItsReader(t *testing.T) {
	path, fd := openFifo(t)
	w := &logWriter{fd: fd}
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	var dump strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&dump, "line %d of a dump that is longer than a pipe\n", i)
	}
	written := make(chan struct{})
	go func() {
		w.writeAll([]byte(dump.String()), time.Minute)
		close(written)
	}()
	got := make([]byte, dump.Len())
	if _, err := io.ReadFull(reader, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != dump.String() {
		t.Error("something else has arrived")
	}
	<-written
}

func TestDumpThatNobodyReadsEnds(t *testing.T) {
	_, fd := openFifo(t)
	w := &logWriter{fd: fd}
	w.writeAll([]byte(strings.Repeat("a line\n", 20_000)), time.Millisecond) // or the test does not end
	if w.torn {
		t.Error("a part of it was written in part")
	}
}

func TestLogWaitsForTheNextReader(t *testing.T) {
	path, fd := openFifo(t)
	w := &logWriter{fd: fd}
	first, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if _, err := w.Write([]byte("nobody reads\n")); err != nil {
		t.Fatal(err)
	}
	second, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if got, err := bufio.NewReader(second).ReadString('\n'); err != nil || got != "nobody reads\n" {
		t.Errorf("got %q, error %v", got, err)
	}
}
