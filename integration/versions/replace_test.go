package versions

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// testReplacedShim replaces the program of the shim under pods and containers that
// run, as an update of its package does. programs is its directory.
func testReplacedShim(t *testing.T, programs string) {
	handlers := []string{"pause", sharedShim}
	if theNode.Version.AtLeast(2, 0) {
		handlers = append(handlers, sandboxHandler, sharedSandboxHandler)
	}
	version := 0
	replaced := func(test func(t *testing.T, handler string, replace func())) func(*testing.T, string) {
		return func(t *testing.T, handler string) {
			version++
			test(t, handler, func() { replaceShim(t, programs, fmt.Sprintf("v0.0.%d", version)) })
		}
	}
	runCases(t, []testCase{
		{"pod goes on", replaced(testReplacedUnderPod)},
		{"shim is killed", replaced(testReplacedAndKilled)},
		{"containerd is killed", replaced(testReplacedAndRestarted)},
	}, handlers...)
	runCases(t, []testCase{{"pod by hand", replaced(testReplacedUnderPodByHand)}}, "pause", sharedShim)
}

// replaceShim builds the shim with another version and puts it in the place of the
// one that is there.
func replaceShim(t *testing.T, programs, version string) {
	t.Helper()
	program, dir := filepath.Join(programs, shimProgram), filepath.Join(programs, "new")
	build := exec.Command("make", "-s", "-C", "../..", "build", "VERSION="+version, "BIN="+dir)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build: %v\n%s", err, out)
	}
	for _, name := range []string{shimProgram, sharedProgram} {
		must(t, os.Rename(filepath.Join(dir, name), filepath.Join(programs, name)))
	}
	must(t, os.Remove(dir))
	out, err := exec.Command(program, "-v").Output()
	must(t, err)
	if !strings.Contains(string(out), version) {
		t.Fatalf("the program in place is another one: %s", out)
	}
}

// expectOldProgram checks that a process runs a program that has been replaced.
func expectOldProgram(t *testing.T, pid int) {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	must(t, err)
	if !strings.HasSuffix(exe, " (deleted)") {
		t.Errorf("the shim runs %s, which has not been replaced", exe)
	}
}

func testReplacedUnderPod(t *testing.T, handler string, replace func()) {
	p := runPod(t, handler, nil)
	old, shim := p.startTrapping("old"), p.shimPid()
	replace()
	expectOldProgram(t, shim)
	fresh := p.start("new", "sleep 1000")
	expectEqual(t, "shim's pid", p.shimPid(), shim)
	p.expectJoined(fresh)
	p.expectServed(fresh)
	p.expectServed(old)
	must(t, theNode.StopContainer(p.ctx, old, 60))
	p.expectExited(old, 9)
	must(t, theNode.RemoveContainer(p.ctx, old))
	// A pod that is started now is served by the new program, even if the old shim has room.
	next := runPod(t, handler, nil)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", next.shimPid()))
	must(t, err)
	expectEqual(t, "program", filepath.Base(exe), shimProgram)
	p.remove()
	next.remove()
}

// The new program's `start` finds the old shim.
func testReplacedUnderPodByHand(t *testing.T, shim string, replace func()) {
	sandbox, app := newContainer(t, shim), newContainer(t, shim)
	sandbox.startInPod(sandbox.id, "sandbox")
	pid := sandbox.pid()
	replace()
	expectOldProgram(t, pid)
	app.startInPod(sandbox.id, "container", "sleep", "1000")
	expectEqual(t, "sandbox's pid", sandbox.pid(), pid)
	for _, kind := range []string{"net", "ipc", "uts"} {
		expectEqual(t, kind, namespace(t, app.pid(), kind), namespace(t, pid, kind))
	}
	for _, c := range []*container{app, sandbox} {
		c.ctr("task", "kill", "--signal", "SIGKILL", c.id)
		c.expectStatus("STOPPED")
		c.remove(137)
	}
}

// The new program's `delete` cleans up after the old shim.
func testReplacedAndKilled(t *testing.T, handler string, replace func()) {
	p := runPod(t, handler, sharedPid)
	init := p.containerPid(p.start("c", "sleep 1000"))
	shim := p.shimPid()
	replace()
	expectOldProgram(t, shim)
	must(t, unix.Kill(shim, unix.SIGKILL))
	p.expectNotReady()
	eventually(t, "init has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	p.removeInTheEnd()
}

func testReplacedAndRestarted(t *testing.T, handler string, replace func()) {
	needsRestart(t, handler)
	p := runPod(t, handler, nil)
	ends, shim := p.startTrapping("ends"), p.shimPid()
	init := p.containerPid(ends)
	must(t, theNode.Kill())
	replace()
	must(t, unix.Kill(init, unix.SIGTERM))
	eventually(t, "container has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	must(t, theNode.Restart(p.ctx))
	expectOldProgram(t, shim)
	p.expectExited(ends, 9)
	p.expectJoined(p.start("new", "sleep 1000"))
	p.remove()
}
