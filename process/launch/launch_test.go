package launch

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
)

// start starts a command whose output is returned by the function.
func start(t *testing.T, cmd *exec.Cmd) (p *Program, output func() string) {
	t.Helper()
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := Start(cmd)
	proctest.Must(t, err)
	return p, func() string {
		proctest.Must(t, cmd.Wait())
		return out.String()
	}
}

// A program sees nothing of how it was started.
func TestProgramGetsWhatItIsToGet(t *testing.T) {
	proctest.NoLeakedFDs(t)
	dir := t.TempDir()
	extra, err := os.Open(os.DevNull)
	proctest.Must(t, err)
	defer extra.Close()
	cmd := exec.Command("/bin/sh", "-c", `tr '\0' '\n' </proc/$$/cmdline; tr '\0' '\n' </proc/$$/environ; pwd; for fd in 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$fd ] || echo $fd; done`, "", "a  b", "start")
	cmd.Args[0] = "its own name"
	cmd.Env = []string{"ONE=1", "GOMEMLIMIT=nonsense", "EMPTY="}
	cmd.Dir = dir
	cmd.ExtraFiles = []*os.File{extra}
	p, output := start(t, cmd)
	proctest.Must(t, p.Await())
	lines := strings.Split(output(), "\n")
	want := []string{"its own name", "-c", lines[2], "", "a  b", "start", "ONE=1", "GOMEMLIMIT=nonsense", "EMPTY=", dir}
	if got := strings.Join(lines[:len(want)], "|"); got != strings.Join(want, "|") {
		t.Errorf("got  %s\nwant %s", got, strings.Join(want, "|"))
	}
	if got := strings.Join(lines[len(want):], " "); got != "3 " {
		t.Errorf("its descriptors beyond the standard ones: %q", got)
	}
}

func TestProgramThatCannotBeExecuted(t *testing.T) {
	proctest.NoLeakedFDs(t)
	text := filepath.Join(t.TempDir(), "text")
	proctest.Must(t, os.WriteFile(text, nil, 0o600))
	for path, want := range map[string]error{"/no/such/program": os.ErrNotExist, text: os.ErrPermission} {
		cmd := exec.Command(path)
		p, err := Start(cmd)
		proctest.Must(t, err)
		if err := p.Await(); !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
			t.Errorf("got %v", err)
		}
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != failed {
			t.Errorf("its process: %v", err)
		}
	}
}

// Go's runtime can stop its threads although a program's file hangs.
func TestFileThatHangs(t *testing.T) {
	file := proctest.ServeFile(t, "#!/bin/sh\necho executed\n")
	file.Hang()
	p, output := start(t, exec.Command(file.Path))
	proctest.Eventually(t, "it hangs", func() bool { return len(file.Callers()) > 0 })
	runtime.GC()
	if len(file.Callers()) == 0 {
		t.Error("it has not hung for so long")
	}
	file.Resume()
	proctest.Must(t, p.Await())
	if got := output(); got != "executed\n" {
		t.Errorf("output: %q", got)
	}
}
