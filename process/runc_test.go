package process

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// waitingInit is a child that does with a fifo what the init of runc's containers does.
func waitingInit(t *testing.T, script string) (fifo string, init *child) {
	t.Helper()
	fifo = filepath.Join(t.TempDir(), "exec.fifo")
	must(t, unix.Mkfifo(fifo, 0o622))
	cmd := exec.Command("/bin/sh", "-c", script, "init", fifo)
	reaper.hold()
	defer reaper.release()
	must(t, cmd.Start())
	init = reaper.claim(cmd.Process.Pid)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = init.wait()
	}()
	t.Cleanup(func() {
		_ = init.signal(unix.SIGKILL)
		<-ended
	})
	return fifo, init
}

func TestOpenExecFifo(t *testing.T) {
	for name, script := range map[string]string{
		"the init waits":          `printf 0 >"$1"; exec sleep 1000`,
		"it comes later":          `sleep 0.3; printf 0 >"$1"; exec sleep 1000`,
		"it ends at once":         `printf 0 >"$1"`,
		"it takes time to exec":   `exec 3>"$1"; printf 0 >&3; sleep 0.3; exec 3>&-; exec sleep 1000`,
		"it writes for ever":      `exec 3>"$1"; while printf 0 >&3; do :; done`,
		"it dies after the start": `exec 3>"$1"; printf 0 >&3; sleep 0.3; kill -9 $$`,
	} {
		t.Run(name, func(t *testing.T) {
			fifo, init := waitingInit(t, script)
			if err := openExecFifo(testContext(t), fifo, init); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(fifo); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the fifo is left: %v", err)
			}
		})
	}
}

func TestOpenExecFifoThatAnotherHoldsOpen(t *testing.T) {
	fifo, init := waitingInit(t, `printf 0 >"$1"; sleep 0.3; exit 0`)
	other, err := os.OpenFile(fifo, os.O_RDWR, 0)
	must(t, err)
	defer other.Close()
	if err := openExecFifo(testContext(t), fifo, init); err != nil {
		t.Error(err)
	}
}

func TestOpenExecFifoOfADeadInit(t *testing.T) {
	for name, script := range map[string]string{
		"before it opens it": "exit 1",
		"with nothing said":  `exec 3>"$1"; exit 1`,
	} {
		t.Run(name, func(t *testing.T) {
			fifo, init := waitingInit(t, script)
			err := openExecFifo(testContext(t), fifo, init)
			wantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
			if err == nil || !strings.Contains(err.Error(), "already dead") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOpenExecFifoEndsWithItsContext(t *testing.T) {
	fifo, init := waitingInit(t, "exec sleep 1000")
	ctx, cancel := context.WithTimeout(testContext(t), 10*time.Millisecond)
	defer cancel()
	if err := openExecFifo(ctx, fifo, init); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestExecFifoIsRuncsOnly(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "ns", "c")
	must(t, os.MkdirAll(dir, 0o700))
	fifoOf := func(binary string) string {
		r := &ociRuntime{options: Options{BinaryName: binary, Root: root}, namespace: "ns"}
		return r.execFifo("c")
	}
	want := func(step, binary string, is bool) {
		t.Helper()
		if got := fifoOf(binary); (got == filepath.Join(dir, "exec.fifo")) != is || (got == "") == is {
			t.Errorf("%s, %q: %q", step, binary, got)
		}
	}
	want("no fifo", "runc", false)
	must(t, os.WriteFile(filepath.Join(dir, "exec.fifo"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "state.json"), nil, 0o600))
	want("a file", "runc", false)
	must(t, os.Remove(filepath.Join(dir, "exec.fifo")))
	must(t, unix.Mkfifo(filepath.Join(dir, "exec.fifo"), 0o622))
	for _, binary := range []string{"", "runc", "/opt/runc-1.5", "/usr/sbin/runc"} {
		want("created", binary, true)
	}
	for _, binary := range []string{"crun", "/usr/bin/youki", "/opt/runc/wrapper"} {
		want("created", binary, false)
	}
	must(t, os.Remove(filepath.Join(dir, "state.json")))
	want("no state", "runc", false)
}

func TestRemoveContainerOfRunc(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "ns", "c")
	cgroup := t.TempDir()
	try := func(binary, state string) bool {
		t.Helper()
		must(t, os.MkdirAll(dir, 0o700))
		must(t, os.MkdirAll(filepath.Join(cgroup, "made", "below"), 0o700))
		if state != "" {
			must(t, os.WriteFile(filepath.Join(dir, "state.json"), []byte(state), 0o600))
		}
		r := &ociRuntime{options: Options{BinaryName: binary, Root: root}, namespace: "ns"}
		done := r.removeContainer(testContext(t), "c")
		for _, path := range []string{dir, filepath.Join(cgroup, "made")} {
			if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) != done {
				t.Errorf("%q, %s: %v, and %s: %v", binary, state, done, path, err)
			}
		}
		must(t, os.RemoveAll(dir))
		return done
	}
	usual := `{"cgroup_paths": {"memory": "` + filepath.Join(cgroup, "made") + `"}}`
	for _, binary := range []string{"", "runc", "/opt/runc-1.5"} {
		if !try(binary, usual) {
			t.Errorf("%q has to remove the usual container", binary)
		}
	}
	for state, binary := range map[string]string{
		usual: "crun",
		"":    "runc",
		"{":   "runc",
		`{}`:  "runc",
		strings.Replace(usual, "{", `{"intel_rdt_path": "/sys/fs/resctrl/x", `, 1): "runc",
	} {
		if try(binary, state) {
			t.Errorf("%s, %q: removed", binary, state)
		}
	}
}
