package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// with makes and starts a container with streams.
func (n *node) with(sio stdio.Config, command string) *Task {
	n.t.Helper()
	r := n.request("c", containerSpec(n.t, "c", command))
	r.Stdio = sio
	task := n.make(r)
	_, err := task.init.Start(proctest.Context(n.t))
	proctest.Must(n.t, err)
	return task
}

func (n *node) remove(task *Task) {
	n.t.Helper()
	exitOf(n.t, task.init)
	_, err := task.Delete(proctest.Context(n.t), "")
	proctest.Must(n.t, err)
}

func fileText(t *testing.T, path ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(path...))
	proctest.Must(t, err)
	return string(text)
}

func openFifo(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	proctest.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestFifos(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	sio := stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t), Stderr: proctest.Mkfifo(t)}
	stdout, stderr := proctest.ReadFifo(t, sio.Stdout), proctest.ReadFifo(t, sio.Stderr)
	task := n.with(sio, "echo problem >&2; cat; echo end")
	in := openFifo(t, sio.Stdin)
	_, err := in.WriteString("hello\n")
	proctest.Must(t, err)
	proctest.Must(t, in.Close())
	// The input stays open until it is closed through the API.
	in = openFifo(t, sio.Stdin)
	_, err = in.WriteString("again\n")
	proctest.Must(t, err)
	proctest.Must(t, in.Close())
	task.init.CloseStdin()
	if got, want := stdout.All(), "hello\nagain\nend\n"; got != want {
		t.Errorf("output is %q, want %q", got, want)
	}
	if got := stderr.All(); got != "problem\n" {
		t.Errorf("error output is %q", got)
	}
	task.init.CloseStdin()
	n.remove(task)
}

func TestCloseOfStdinWaitsForWhatIsWritten(t *testing.T) {
	n := newNode(t)
	sio := stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t)}
	stdout := proctest.ReadFifo(t, sio.Stdout)
	task := n.with(sio, "sleep 0.1; cat")
	in := openFifo(t, sio.Stdin)
	text := strings.Repeat("0123456789abcde\n", 3000)
	_, err := in.WriteString(text)
	proctest.Must(t, err)
	task.init.CloseStdin()
	proctest.Must(t, in.Close())
	if got := stdout.All(); got != text {
		t.Errorf("got %d bytes, want %d", len(got), len(text))
	}
	n.remove(task)
}

func TestReaderThatComesLate(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", "echo hello"))
	r.Stdio.Stdout = proctest.Mkfifo(t)
	done := make(chan error)
	var task *Task
	go func() {
		var err error
		task, err = n.Create(proctest.Context(t), r)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("create has not waited for a reader, error %v", err)
	case <-time.After(20 * time.Millisecond): // it has begun to wait by now, or the test tests less
	}
	if calls := n.told("calls"); calls != "" {
		t.Errorf("calls are %q", calls)
	}
	stdout := proctest.ReadFifo(t, r.Stdio.Stdout)
	proctest.Must(t, <-done)
	n.adopt(task)
	_, err := task.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	if got := stdout.All(); got != "hello\n" {
		t.Errorf("output is %q", got)
	}
}

func TestNoReader(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Stdio = stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t), Stderr: proctest.Mkfifo(t)}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := n.Create(ctx, r)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "nobody reads") {
		t.Errorf("got %v", err)
	}
	if calls := n.told("calls"); calls != "" {
		t.Errorf("calls are %q", calls)
	}
}

func TestStreamsThatDoNotExist(t *testing.T) {
	proctest.NoLeakedFDs(t)
	missing := filepath.Join(t.TempDir(), "missing")
	for _, sio := range []stdio.Config{{Stdin: missing}, {Stdout: missing}, {Stderr: missing}, {Stdin: proctest.Mkfifo(t), Stdout: missing}} {
		n := newNode(t)
		r := n.request("c", containerSpec(t, "c", forever))
		r.Stdio = sio
		if _, err := n.Create(proctest.Context(t), r); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), missing) {
			t.Errorf("%+v: got %v", sio, err)
		}
	}
}

func TestUnknownSchemes(t *testing.T) {
	n := newNode(t)
	for _, stdout := range []string{"http://example.com/", "npipe:///x", "ftp:x", "%zz"} {
		r := n.request("c", containerSpec(t, "c", forever))
		r.Stdio.Stdout = stdout
		_, err := n.Create(proctest.Context(t), r)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), stdout) {
			t.Errorf("%s: got %v, want an invalid argument that names it", stdout, err)
		}
	}
}

func TestNoStreams(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	where := filepath.Join(t.TempDir(), "where")
	task := n.with(stdio.Config{}, "text=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo \"$text\" >"+where)
	exitOf(t, task.init)
	if got, want := fileText(t, where), "/dev/null\n/dev/null\n/dev/null\n"; got != want {
		t.Errorf("streams are %q, want %q", got, want)
	}
	n.remove(task)
}

func TestSomeStreams(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	sio := stdio.Config{Stderr: proctest.Mkfifo(t)}
	stderr := proctest.ReadFifo(t, sio.Stderr)
	task := n.with(sio, "echo lost; cat; echo problem >&2")
	if got := stderr.All(); got != "problem\n" {
		t.Errorf("error output is %q", got)
	}
	n.remove(task)
}

func TestOutputToAFile(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "deep", "er", "log")
	sio := stdio.Config{Stdout: "file://" + path, Stderr: "file://" + path}
	for range 2 {
		n.remove(n.with(sio, "echo out; echo err >&2"))
	}
	got := fileText(t, path)
	if strings.Count(got, "out\n") != 2 || strings.Count(got, "err\n") != 2 || len(got) != 16 {
		t.Errorf("the file is %q", got)
	}

	// A file that exists may be given by its path as well.
	plain := filepath.Join(dir, "plain")
	proctest.Must(t, os.WriteFile(plain, []byte("first\n"), 0o600))
	n.remove(n.with(stdio.Config{Stdout: plain}, "echo second"))
	if got := fileText(t, plain); got != "first\nsecond\n" {
		t.Errorf("the file is %q", got)
	}
}

func TestInputFromAFile(t *testing.T) {
	proctest.NoLeakedFDs(t)
	// Nobody can open this one for writing.
	busy, err := os.Executable()
	proctest.Must(t, err)
	plain := filepath.Join(t.TempDir(), "plain")
	proctest.Must(t, os.WriteFile(plain, []byte("hello\n"), 0o400))
	for _, path := range []string{plain, busy} {
		n := newNode(t)
		sio := stdio.Config{Stdin: path, Stdout: proctest.Mkfifo(t)}
		stdout := proctest.ReadFifo(t, sio.Stdout)
		task := n.with(sio, "wc -c")
		task.init.CloseStdin() // whose end comes by itself
		st, err := os.Stat(path)
		proctest.Must(t, err)
		if got, want := stdout.All(), fmt.Sprintln(st.Size()); got != want {
			t.Errorf("%s: it has read %q bytes, want %q", path, got, want)
		}
		n.remove(task)
	}
	for _, sio := range []stdio.Config{{Stdin: t.TempDir()}, {Stdout: t.TempDir()}} {
		n := newNode(t)
		r := n.request("c", containerSpec(t, "c", forever))
		r.Stdio = sio
		if _, err := n.Create(proctest.Context(t), r); !errors.Is(err, unix.EISDIR) {
			t.Errorf("%+v: got %v", sio, err)
		}
	}
}

// The shim must not poll such a file: the process that serves it may never answer.
func TestStreamsThatAProcessServes(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	file := proctest.ServeFile(t, "hello\n")
	for _, sio := range []stdio.Config{{Stdin: file.Path, Stdout: file.Path}, {Stdin: file.Path, Stdout: "file://" + file.Path}} {
		n.remove(n.with(sio, "cat"))
	}
	if got, want := file.Written(), "hello\nhello\n"; got != want {
		t.Errorf("%q was written, want %q", got, want)
	}
	if file.Polls.Load() > 0 {
		t.Error("it was polled")
	}
}

// A log that is a fifo may have no reader yet.
func TestLogFileThatIsAFifo(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Stdio.Stdout = "file://" + proctest.Mkfifo(t)
	if _, err := n.Create(proctest.Context(t), r); !errors.Is(err, unix.ENXIO) {
		t.Errorf("got %v", err)
	}
}

func loggerURI(t *testing.T, scheme string, query ...string) (uri, dir string) {
	t.Helper()
	script, err := filepath.Abs("testdata/logger.sh")
	proctest.Must(t, err)
	dir = t.TempDir()
	values := url.Values{"dir": {dir}}
	for i := 0; i < len(query); i += 2 {
		values.Set(query[i], query[i+1])
	}
	return (&url.URL{Scheme: scheme, Path: script, RawQuery: values.Encode()}).String(), dir
}

func TestLoggingPrograms(t *testing.T) {
	for _, scheme := range []string{"binary", "binary-v2"} {
		t.Run(scheme, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			uri, dir := loggerURI(t, scheme)
			task := n.with(stdio.Config{Stdout: uri, Stderr: uri}, "echo out; echo err >&2")
			execURI, execDir := loggerURI(t, scheme)
			exitOf(t, task.init)
			n.remove(task)
			for name, want := range map[string]string{"out": "out\n", "err": "err\n", "id": "test/c\n", "ended": ""} {
				if got := fileText(t, dir, name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}

			task = n.container("d", forever)
			p := execute(t, task, "e", "echo out", stdio.Config{Stdout: execURI})
			exitOf(t, p)
			_, err := task.Delete(proctest.Context(t), "e")
			proctest.Must(t, err)
			if id, out := fileText(t, execDir, "id"), fileText(t, execDir, "out"); id != "test/e\n" || out != "out\n" {
				t.Errorf("an exec's: id is %q, out is %q", id, out)
			}
		})
	}
}

func TestLoggingProgramsThatAreNotReady(t *testing.T) {
	for _, tc := range []struct {
		name, scheme string
		query        []string
		ok           bool
	}{
		{"dies", "binary-v2", []string{"die", "now"}, false},
		{"gives no sign", "binary-v2", []string{"sign", "no"}, false},
		// There, the end of descriptor 5 is the sign.
		{"gives no sign, of the first version", "binary", []string{"sign", "no"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			r := n.request("c", containerSpec(t, "c", "echo out"))
			r.Stdio.Stdout, _ = loggerURI(t, tc.scheme, tc.query...)
			task, err := n.Create(proctest.Context(t), r)
			if tc.ok {
				proctest.Must(t, err)
				n.adopt(task)
				return
			}
			if err == nil || !strings.Contains(err.Error(), "logger.sh") {
				t.Errorf("got %v and error %v", task, err)
			}
			if calls := n.told("calls"); calls != "" {
				t.Errorf("calls are %q", calls)
			}
		})
	}
	t.Run("does not exist", func(t *testing.T) {
		proctest.NoLeakedFDs(t)
		n := newNode(t)
		r := n.request("c", containerSpec(t, "c", "echo out"))
		r.Stdio.Stdout = "binary:///nonexistent/logger"
		if _, err := n.Create(proctest.Context(t), r); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/nonexistent/logger") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("hangs", func(t *testing.T) {
		proctest.NoLeakedFDs(t)
		n := newNode(t)
		r := n.request("c", containerSpec(t, "c", "echo out"))
		r.Stdio.Stdout = "binary:///bin/sleep?100000=0"
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		if _, err := n.Create(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestLargeOutput(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	var want strings.Builder
	for i := range 600_000 {
		fmt.Fprintln(&want, i+1)
	}
	fifo, err := proctest.Mkfifo(t), proctest.Mkfifo(t)
	stdout, stderr := proctest.ReadFifo(t, fifo), proctest.ReadFifo(t, err)
	task := n.with(stdio.Config{Stdout: fifo, Stderr: err}, "seq 600000 & seq 600000 >&2; wait")
	for name, got := range map[string]string{"output": stdout.All(), "error output": stderr.All()} {
		if got != want.String() {
			t.Errorf("%s differs: %d bytes, want %d", name, len(got), want.Len())
		}
	}
	n.remove(task)
}

// Output that the process wrote before its end must reach the client, even if the client reads late.
func TestDeleteLetsTheOutputGoItsWay(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	path := proctest.Mkfifo(t)
	reader := openPage(t, path)
	// More than the fifo holds, no more than it and the pipe do.
	task := n.with(stdio.Config{Stdout: path}, "head -c 50000 /dev/zero")
	exitOf(t, task.init)
	done := make(chan error, 1)
	go func() {
		_, err := task.Delete(proctest.Context(t), "")
		done <- err
	}()
	got, buf := 0, make([]byte, 4096)
	for {
		n, err := reader.Read(buf)
		got += n
		if err != nil {
			break
		}
	}
	proctest.Must(t, <-done)
	if got != 50_000 {
		t.Errorf("got %d bytes, want 50000", got)
	}
}

// A client that stops reading when it learns of the exit loses the output in flight. So the exit waits for that output.
func TestExitIsHeldBackUntilOutputIsTaken(t *testing.T) {
	for name, start := range map[string]func(*node, stdio.Config, string) *Process{
		"init": func(n *node, sio stdio.Config, command string) *Process { return n.with(sio, command).init },
		"exec": func(n *node, sio stdio.Config, command string) *Process {
			return execute(t, n.container("c", forever), "e", command, sio)
		},
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			sio := stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t)}
			reader, err := os.OpenFile(sio.Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
			proctest.Must(t, err)
			defer reader.Close()
			p := start(newNode(t), sio, "read go; head -c 105536 /dev/zero")
			p.mu.Lock()
			p.streams.Patience = 2 * proctest.Deadline
			p.mu.Unlock()
			_, err = openFifo(t, sio.Stdin).WriteString("go\n")
			proctest.Must(t, err)
			proctest.Eventually(t, "it is reaped", func() bool { return proctest.ProcessState(p.Status().Pid) == "" })
			// All but 64 kB and one byte.
			_, err = io.ReadFull(reader, make([]byte, 39_999))
			proctest.Must(t, err)
			time.Sleep(20 * time.Millisecond) // or the test tests less
			select {
			case <-p.exited:
				t.Error("the exit is reported too early")
			default:
			}
			_, err = io.ReadFull(reader, make([]byte, 1))
			proctest.Must(t, err)
			exitOf(t, p)
		})
	}
}

// Once the reader has gone, nobody needs the output, and a delete must not wait.
func TestDeleteWaitsForNobodyWhoHasGone(t *testing.T) {
	for name, tc := range map[string]struct {
		command string
		unread  int // bytes that are left when the reader goes
	}{
		"output is left":                  {"head -c 50000 /dev/zero", 50_000},
		"a child holds the output open":   {"sleep 100000 & echo up", len("up\n")},
		"a child goes on with its output": {"while :; do echo y; done &", 50_000},
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			sio := stdio.Config{Stdout: proctest.Mkfifo(t)}
			reader := openPage(t, sio.Stdout)
			p := execute(t, n.container("c", forever), "e", tc.command, sio)
			exitOf(t, p)
			proctest.Eventually(t, "the output is there", func() bool { return p.streams.InFlight() >= tc.unread })
			proctest.Must(t, reader.Close())
			proctest.Must(t, p.closeStreams(proctest.Context(t)))
		})
	}
}

// openPage opens a fifo for reading, and makes it hold no more than one page.
func openPage(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	proctest.Must(t, err)
	t.Cleanup(func() { f.Close() })
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, os.Getpagesize())
	proctest.Must(t, err)
	return f
}

// A restarted containerd opens the fifos again. Output written meanwhile must not be lost.
func TestReaderWhoComesBack(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	sio := stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t)}
	reader, err := os.OpenFile(sio.Stdout, os.O_RDONLY|unix.O_NONBLOCK, 0)
	proctest.Must(t, err)
	task := n.with(sio, "read go; seq 50000; read go")
	proctest.Must(t, reader.Close())
	in := openFifo(t, sio.Stdin)
	_, err = in.WriteString("go\n")
	proctest.Must(t, err)
	const pipes = 2 * 64 << 10 // pipe(7), "Pipe capacity"
	proctest.Eventually(t, "the pipes are full", func() bool { return task.init.streams.InFlight() == pipes })
	stdout := proctest.ReadFifo(t, sio.Stdout)
	_, err = in.WriteString("go\n")
	proctest.Must(t, err)
	want := run(t, "seq", "50000") + "\n"
	if got := stdout.All(); got != want {
		t.Errorf("got %d bytes, want %d", len(got), len(want))
	}
	n.remove(task)
}

func TestPipesBelongToTheUserOfTheOptions(t *testing.T) {
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", "stat -Lc %u:%g /proc/self/fd/0 /proc/self/fd/2 >&2"))
	r.Options.IoUID, r.Options.IoGID = 1234, 5678
	r.Stdio = stdio.Config{Stdin: proctest.Mkfifo(t), Stderr: proctest.Mkfifo(t)}
	stderr := proctest.ReadFifo(t, r.Stdio.Stderr)
	task := n.make(r)
	_, err := task.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	if got, want := stderr.All(), "1234:5678\n1234:5678\n"; got != want {
		t.Errorf("owners are %q, want %q", got, want)
	}
}
