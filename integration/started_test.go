package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A program that calls runc is to see all that runc is asked for, whatever it is called.
func TestWrapperOfRuncSeesEachCommand(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for _, name := range []string{"runc", "runc-audit"} {
			f := newFakeRuntime(t, "none")
			path := filepath.Join(filepath.Dir(f.path), name)
			must(t, os.Rename(f.path, path))
			f.path = path
			c := startContainer(t, shim, f.config("exit 2"))
			expectEqual(t, "exit code", c.wait(), 2)
			c.remove()
			for _, verb := range []string{"create", "start", "delete"} {
				if len(f.called(verb)) == 0 {
					t.Errorf("%s: %s was not called", name, verb)
				}
			}
		}
	})
}

// A client may stop a container as soon as it has started: the signal must meet its program, not the OCI runtime
// that is about to execute it.
func TestStartReturnsWhenTheProgramRuns(t *testing.T) {
	withPause(t, func(t *testing.T) {
		wrapper := newFakeRuntime(t, "none") // gets the command start
		for what, cfg := range map[string]config{"runc": sh("exec sleep 1000"), "wrapper": wrapper.config("exec sleep 1000")} {
			for range 10 {
				c := newContainer(t, "pause", cfg)
				c.create(c.detached(false))
				must(t, c.task.Start(c.ctx))
				expectProgram(t, what+": start", c.task.Pid())
				for i := range 2 {
					p := c.exec(fmt.Sprintf("exec%d", i), nil, nil, "sleep", "1000")
					expectProgram(t, what+": exec", p.Pid())
				}
				c.remove()
			}
		}
	})
}

// expectProgram fails the test if a process executes anything but the image's program now.
func expectProgram(t *testing.T, what string, pid uint32) {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	must(t, err)
	name := strings.TrimSpace(readFile(t, fmt.Sprintf("/proc/%d/comm", pid)))
	if filepath.Base(exe) != "busybox" || strings.HasPrefix(name, "runc:") {
		t.Errorf("%s: the process executes %s, and is called %s", what, exe, name)
	}
}
