package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

func sh(ctx context.Context, t *testing.T, command string, stdio [3]*os.File) (string, error) {
	t.Helper()
	defer reaper.Hold()()
	return RunToEnd(ctx, nil, []string{"sh", "-c", command}, stdio, nil)
}

func TestRunToEnd(t *testing.T) {
	for command, want := range map[string]string{
		"exit 0":                  "",
		"exit 3":                  "exit status 3",
		"kill -9 $$":              "signal 9",
		"cat; [ ! -t 0 ]; exit 4": "exit status 4",
	} {
		_, err := sh(proctest.Context(t), t, command, [3]*os.File{})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", command, err, want)
		}
	}
	_, err := RunToEnd(proctest.Context(t), nil, []string{"no-such-program"}, [3]*os.File{}, nil)
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("got %v", err)
	}
}

func TestRunToEndReturnsMessages(t *testing.T) {
	out, err := sh(proctest.Context(t), t, "echo one; echo two >&2; exit 1", [3]*os.File{})
	if err == nil || out != "one\ntwo\n" {
		t.Errorf("got %q, %v", out, err)
	}
	out, _ = sh(proctest.Context(t), t, "yes | head -c 100000; exit 1", [3]*os.File{})
	if len(out) != 4<<10 {
		t.Errorf("got %d bytes", len(out))
	}
}

func TestRunToEndWithFiles(t *testing.T) {
	in, err := scratchFile("in", []byte("text"))
	proctest.Must(t, err)
	defer in.Close()
	r, w, err := os.Pipe()
	proctest.Must(t, err)
	defer r.Close()
	out, err := sh(proctest.Context(t), t, "cat; echo lost >&2", [3]*os.File{in, w, nil})
	proctest.Must(t, err)
	w.Close()
	var buf [10]byte
	n, err := r.Read(buf[:])
	proctest.Must(t, err)
	if got := string(buf[:n]); got != "text" || out != "" {
		t.Errorf("got %q, and messages %q", got, out)
	}
}

func TestRunToEndIsKilledWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(proctest.Context(t), 50*time.Millisecond)
	defer cancel()
	_, err := sh(ctx, t, "exec sleep 1000", [3]*os.File{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// The kernel kills a runtime when the thread ends that has forked, which may be any of Go's.
func TestRuntimeOutlivesTheThreadOfItsCaller(t *testing.T) {
	defer reaper.Hold()()
	in, w, err := os.Pipe()
	proctest.Must(t, err)
	defer in.Close()
	defer w.Close()
	pidFile, proof := filepath.Join(t.TempDir(), "pid"), filepath.Join(t.TempDir(), "proof")
	caller := make(chan int, 1)
	go func() {
		runtime.LockOSThread()
		command := "echo $$ >" + pidFile + "; read line; echo $line >" + proof
		_, _ = RunToEnd(proctest.Context(t), NewStarter(), []string{"sh", "-c", command}, [3]*os.File{in}, func() {
			proctest.Eventually(t, "the runtime runs", func() bool { text, err := os.ReadFile(pidFile); return err == nil && len(text) > 0 })
			caller <- unix.Gettid()
			runtime.Goexit() // and so does the thread, to which the goroutine is locked
		})
	}()
	thread := filepath.Join("/proc/self/task", strconv.Itoa(<-caller))
	proctest.Eventually(t, "the caller's thread has ended", func() bool { _, err := os.Stat(thread); return errors.Is(err, os.ErrNotExist) })
	_, err = w.WriteString("alive\n")
	proctest.Must(t, err)
	text, err := os.ReadFile(pidFile)
	proctest.Must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	proctest.Must(t, err)
	var status unix.WaitStatus
	_, err = unix.Wait4(pid, &status, 0, nil)
	proctest.Must(t, err)
	if got, _ := os.ReadFile(proof); string(got) != "alive\n" {
		t.Errorf("the runtime ended with %#x, and read %q", status, got)
	}
}

// What a runtime that is killed has started would stay for ever, if it waits for the runtime.
// A process of a container is in a session of its own.
func TestWhatAKilledRuntimeHasStartedIsKilled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(proctest.Context(t))
	defer cancel()
	pidIn := func(name string) (pid int) {
		proctest.Eventually(t, name+" runs", func() bool {
			text, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil {
				pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
			}
			return err == nil
		})
		return pid
	}
	done := make(chan error)
	go func() {
		_, err := sh(ctx, t, "cd "+dir+`; sh -c 'kill -STOP $$' & echo $! >helper
			setsid sh -c 'echo $$ >container; exec sleep 1000' & wait`, [3]*os.File{})
		done <- err
	}()
	helper, container := pidIn("helper"), pidIn("container")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	proctest.Eventually(t, "the helper has ended", func() bool { return errors.Is(unix.Kill(helper, 0), unix.ESRCH) })
	if err := unix.Kill(container, unix.SIGKILL); err != nil {
		t.Errorf("the container's process: %v", err)
	}
}

func TestRuntimeEnvironment(t *testing.T) {
	for _, tc := range []struct{ env, want []string }{
		{[]string{"A=b", "NOTIFY_SOCKET=/run/x"}, []string{"A=b", "GOGC=400"}},
		{[]string{"GOGC=50", "A=b"}, []string{"GOGC=50", "A=b"}},
		{nil, []string{"GOGC=400"}},
	} {
		if got := runtimeEnvironment(tc.env); !slices.Equal(got, tc.want) {
			t.Errorf("%q: got %q, want %q", tc.env, got, tc.want)
		}
	}
}
