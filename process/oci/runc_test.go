package oci

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// waitingInit starts a child that does with a fifo what runc's init does.
func waitingInit(t *testing.T, script string) (fifo string, init *reap.Child) {
	t.Helper()
	fifo = filepath.Join(t.TempDir(), "exec.fifo")
	proctest.Must(t, unix.Mkfifo(fifo, 0o622))
	cmd := exec.Command("/bin/sh", "-c", "printf 'runc:[2:INIT]' >/proc/$$/comm; "+script, "init", fifo)
	defer reaper.Hold()()
	proctest.Must(t, cmd.Start())
	init = reaper.Claim(cmd.Process.Pid)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = init.Wait()
	}()
	t.Cleanup(func() {
		_ = init.Signal(unix.SIGKILL)
		<-ended
	})
	proctest.Eventually(t, "it is called what runc's init is", func() bool {
		return isInitOfRunc(init.Pid) || proctest.ProcessState(init.Pid) == "Z" || proctest.ProcessState(init.Pid) == ""
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
			if err := OpenExecFifo(proctest.Context(t), fifo, init); err != nil {
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
	proctest.Must(t, err)
	defer other.Close()
	if err := OpenExecFifo(proctest.Context(t), fifo, init); err != nil {
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
			err := OpenExecFifo(proctest.Context(t), fifo, init)
			proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
			if err == nil || !strings.Contains(err.Error(), "already dead") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestOpenExecFifoEndsWithItsContext(t *testing.T) {
	fifo, init := waitingInit(t, "kill -STOP $$")
	ctx, cancel := context.WithTimeout(proctest.Context(t), 10*time.Millisecond)
	defer cancel()
	if err := OpenExecFifo(ctx, fifo, init); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// Once the init has written its byte, the start succeeds even if the client goes away.
func TestOpenExecFifoWhenTheClientGoesAfterTheStart(t *testing.T) {
	told := filepath.Join(t.TempDir(), "told")
	fifo, init := waitingInit(t, `exec 3>"$1"; printf 0 >&3; echo >`+told+`; sleep 0.3; exec 3>&-; exec sleep 1000`)
	ctx, cancel := context.WithCancel(proctest.Context(t))
	go func() {
		defer cancel()
		for ctx.Err() == nil {
			if _, err := os.Lstat(told); err == nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	proctest.Must(t, OpenExecFifo(ctx, fifo, init))
	if ctx.Err() == nil {
		t.Error("the context has not ended")
	}
	if isInitOfRunc(init.Pid) {
		t.Error("it has not executed its program")
	}
}

// A start that gives up may have read the byte. The next start finds a container that runs.
func TestOpenExecFifoOfAContainerThatRuns(t *testing.T) {
	fifo, init := waitingInit(t, `while [ ! -e "$1.go" ]; do sleep 0.01; done; exec sleep 1000`)
	proctest.Must(t, os.WriteFile(fifo+".go", nil, 0o600))
	proctest.Eventually(t, "it has executed its program", func() bool { return !isInitOfRunc(init.Pid) })
	proctest.Must(t, OpenExecFifo(proctest.Context(t), fifo, init))
}

func TestStartedProcessHasExecutedItsProgram(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	_, init := waitingInit(t, `echo >`+ready+`; sleep 0.3; exec sleep 1000`)
	proctest.Eventually(t, "it is ready", func() bool { _, err := os.Lstat(ready); return err == nil })
	r := &Runtime{Options: Options{BinaryName: "/no/such/runtime"}}
	awaitProgram(init.Pid, r.isInit)
	if r.isInit(init.Pid) {
		t.Error("it has not executed its program")
	}
	// crun's init executes crun's own file.
	r.Options.BinaryName = "/bin/sleep"
	if !r.isInit(init.Pid) {
		t.Error("a process that executes the OCI runtime's file is not taken for an init")
	}
	start := time.Now()
	awaitProgram(init.Pid, r.isInit) // it must return, though the process stays an init
	if took := time.Since(start); took < programTimeout {
		t.Errorf("it gave up after %v", took)
	}
	if r.isInit(1 << 30) {
		t.Error("a process that does not exist is taken for an init")
	}
}

func wrapper(t *testing.T, name, runc string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), name)
	proctest.Must(t, os.WriteFile(path, []byte("#!/bin/sh\nexec "+runc+" \"$@\"\n"), 0o700))
	return path
}

// The content of the file counts, not its name.
func TestRuncIsKnownByWhatItIs(t *testing.T) {
	runc := proctest.GoProgram(t, "runtime", proctest.RuncModule)
	link := filepath.Join(t.TempDir(), "runc")
	proctest.Must(t, os.Symlink(runc, link))
	replaced := proctest.GoProgram(t, "runc", proctest.RuncModule)
	for _, tc := range []struct {
		path string
		is   bool
	}{
		{runc, true},
		{link, true},
		{replaced, true},
		{proctest.GoProgram(t, "runc", proctest.RuncPackage), true},
		{proctest.GoProgram(t, "runc", strings.Replace(proctest.RuncModule, "v1.5.2", "(devel)", 1)), true},
		{proctest.GoProgram(t, "runc", strings.Replace(proctest.RuncModule, "v1.5.2", "v0.0.0-20260101000000-0123456789ab", 1)), true},
		{proctest.GoProgram(t, "runc", strings.Replace(proctest.RuncModule, "v1.5.2", "v2.0.0", 1)), false},
		{proctest.GoProgram(t, "runc", "path\tgithub.com/someone/runc\n"), false},
		{proctest.GoProgram(t, "runc", "path\tgithub.com/someone/wrapper\ndep\tgithub.com/opencontainers/runc\tv1.5.2\n"), false},
		{wrapper(t, "runc", runc), false},
		{wrapper(t, "runc-audit", runc), false},
		{"/bin/sh", false},
		{"/no/such/runc", false},
	} {
		for range 2 {
			if is := (&Runtime{Options: Options{BinaryName: tc.path}}).isRunc(); is != tc.is {
				t.Errorf("isRunc of %s is %t, want %t", tc.path, is, tc.is)
			}
		}
		if (&Runtime{Options: Options{BinaryName: tc.path, AlwaysCallRuntime: true}}).isRunc() {
			t.Errorf("isRunc of %s is true though AlwaysCallRuntime is set", tc.path)
		}
	}
	if installed, err := exec.LookPath("runc"); err == nil && !isRuncProgram(installed) {
		t.Errorf("%s is not taken for runc", installed)
	}
	proctest.Must(t, os.Rename(wrapper(t, "other", runc), replaced))
	if (&Runtime{Options: Options{BinaryName: replaced}}).isRunc() {
		t.Error("the program that has replaced runc is taken for runc")
	}
	t.Setenv("PATH", filepath.Dir(link))
	if !(&Runtime{}).isRunc() {
		t.Error("runc is not found by its name")
	}
}

func TestExecFifoIsRuncsOnly(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "ns", "c")
	proctest.Must(t, os.MkdirAll(dir, 0o700))
	runc := proctest.GoProgram(t, "runtime", proctest.RuncModule)
	fifoOf := func(binary string) string {
		r := &Runtime{Options: Options{BinaryName: binary, Root: root}, Namespace: "ns"}
		return r.ExecFifo("c")
	}
	want := func(step, binary string, is bool) {
		t.Helper()
		if got := fifoOf(binary); (got == filepath.Join(dir, "exec.fifo")) != is || (got == "") == is {
			t.Errorf("%s, %q: %q", step, binary, got)
		}
	}
	want("no fifo", runc, false)
	proctest.Must(t, os.WriteFile(filepath.Join(dir, "exec.fifo"), nil, 0o600))
	proctest.Must(t, os.WriteFile(filepath.Join(dir, "state.json"), nil, 0o600))
	want("a file", runc, false)
	proctest.Must(t, os.Remove(filepath.Join(dir, "exec.fifo")))
	proctest.Must(t, unix.Mkfifo(filepath.Join(dir, "exec.fifo"), 0o622))
	want("created", runc, true)
	want("created", wrapper(t, "runc", runc), false)
	proctest.Must(t, os.Remove(filepath.Join(dir, "state.json")))
	want("no state", runc, false)
}

func TestRemoveContainerOfRunc(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "ns", "c")
	cgroup := t.TempDir()
	runc := proctest.GoProgram(t, "runtime", proctest.RuncModule)
	try := func(o Options, state string) bool {
		t.Helper()
		proctest.Must(t, os.MkdirAll(dir, 0o700))
		proctest.Must(t, os.MkdirAll(filepath.Join(cgroup, "made", "below"), 0o700))
		if state != "" {
			proctest.Must(t, os.WriteFile(filepath.Join(dir, "state.json"), []byte(state), 0o600))
		}
		o.Root = root
		r := &Runtime{Options: o, Namespace: "ns"}
		done := r.RemoveContainer(proctest.Context(t), "c")
		for _, path := range []string{dir, filepath.Join(cgroup, "made")} {
			if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) != done {
				t.Errorf("%+v, %s: %v, and %s: %v", o, state, done, path, err)
			}
		}
		proctest.Must(t, os.RemoveAll(dir))
		return done
	}
	usual := `{"cgroup_paths": {"memory": "` + filepath.Join(cgroup, "made") + `"}, "config": {"cgroups": {"Systemd": false}, "Hooks": {"poststop": null}}}`
	if !try(Options{BinaryName: runc}, usual) {
		t.Error("the usual container is not removed")
	}
	for name, o := range map[string]Options{
		"wrapper": {BinaryName: wrapper(t, "runc-audit", runc)}, "switched off": {BinaryName: runc, AlwaysCallRuntime: true},
	} {
		if try(o, usual) {
			t.Errorf("%s: removed", name)
		}
	}
	for _, state := range []string{
		"", "{", `{}`,
		strings.Replace(usual, "{", `{"intel_rdt_path": "/sys/fs/resctrl/x", `, 1),
		strings.Replace(usual, "false", "true", 1),
		strings.Replace(usual, "null", `[{"path": "/bin/true"}]`, 1),
	} {
		if try(Options{BinaryName: runc}, state) {
			t.Errorf("%s: removed", state)
		}
	}
}
