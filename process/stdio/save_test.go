package stdio

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/carry"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// handOver passes streams on as if another program went on with them: only what is written
// down, and the open files by their numbers.
func handOver(t *testing.T, s *Streams, sio Config) *Streams {
	t.Helper()
	proctest.Must(t, s.Suspend(t.Context()))
	var files carry.Files
	data, err := json.Marshal(s.Save(&files))
	proctest.Must(t, err)
	saved := new(SavedStreams)
	proctest.Must(t, json.Unmarshal(data, saved))
	duplicate := func(fd *int) {
		if *fd == carry.None {
			return
		}
		n, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, 0)
		proctest.Must(t, err)
		*fd = n
	}
	flows := []*savedFlow{}
	if saved.In != nil {
		flows = append(flows, saved.In)
	}
	for i := range saved.Outputs {
		flows = append(flows, &saved.Outputs[i])
	}
	for _, f := range flows {
		duplicate(&f.Src)
		duplicate(&f.Dst)
		duplicate(&f.Keep)
	}
	duplicate(&saved.TTY)
	s.Close()
	next := Restore(saved, sio, reap.NewReaper(t.Context()))
	next.Continue()
	return next
}

// numbered is data in which every loss and every repetition shows.
func numbered(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		b.WriteString(time.Unix(int64(i), 0).UTC().Format(time.RFC3339))
	}
	return b.Bytes()[:size]
}

// Output is spliced, and input is read and written. The pipes are full most of the time, so
// that copies are suspended in the middle.
func TestStreamsAreHandedOverByteForByte(t *testing.T) {
	proctest.NoLeakedFDs(t)
	sio := Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t)}
	out, err := os.OpenFile(sio.Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
	proctest.Must(t, err)
	defer out.Close()
	s, err := Open(t.Context(), sio, nil, Owner{})
	proctest.Must(t, err)
	fromInput, toOutput := dup(t, s.Child[0]), dup(t, s.Child[1])
	defer fromInput.Close()
	s.Start()
	in, err := os.OpenFile(sio.Stdin, os.O_WRONLY, 0)
	proctest.Must(t, err)
	want := numbered(4 << 20)
	for _, f := range []*os.File{in, toOutput} {
		go func() {
			defer f.Close()
			_, _ = f.Write(want) // a loss shows in what is read
		}()
	}
	results := make(chan []byte, 2)
	for _, f := range []*os.File{fromInput, out} {
		go func() {
			var got []byte
			for buf := make([]byte, 5000); len(got) < len(want); time.Sleep(50 * time.Microsecond) {
				n, err := f.Read(buf)
				if err != nil {
					break
				}
				got = append(got, buf[:n]...)
			}
			results <- got
		}()
	}
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		s = handOver(t, s, sio)
	}
	for range 2 {
		if got := <-results; !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, want the %d that were written", len(got), len(want))
		}
	}
	s.Close()
	s.runs.Wait()
}

func dup(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	proctest.Must(t, err)
	proctest.Must(t, unix.SetNonblock(fd, true))
	return os.NewFile(uintptr(fd), f.Name())
}

// A file system that does not answer must not be waited for.
func TestSuspendGivesUp(t *testing.T) {
	proctest.NoLeakedFDs(t)
	served := proctest.ServeFile(t, "")
	dst, err := openFile(served.Path, os.O_WRONLY)
	proctest.Must(t, err)
	r, w, err := os.Pipe()
	proctest.Must(t, err)
	s := &Streams{outputs: []*output{{flow: flow{src: r, dst: dst}}}}
	s.Start()
	served.Hang()
	_, err = w.WriteString("output")
	proctest.Must(t, err)
	proctest.Eventually(t, "a write that hangs", func() bool { return len(served.Callers()) > 0 })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Suspend(ctx); err == nil {
		t.Error("no error, though a write hangs")
	}
	s.Continue()
	served.Resume()
	_, err = w.WriteString(" and more")
	proctest.Must(t, err)
	proctest.Eventually(t, "all output in the file", func() bool { return served.Written() == "output and more" })
	w.Close()
	s.copies.Wait()
}
