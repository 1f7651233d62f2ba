package integration

import (
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// What `go version -m` says of the program that is tested: who scans it for vulnerabilities
// must see the modules that go.mod names, as they are published.
func TestBuildIsOfPublishedModules(t *testing.T) {
	program, err := theNode.LookPath("containerd-shim-pause-v2")
	must(t, err)
	info, err := buildinfo.ReadFile(program)
	must(t, err)
	const gomod = "../go.mod"
	text, err := os.ReadFile(gomod)
	must(t, err)
	mod, err := modfile.Parse(gomod, text, nil)
	must(t, err)

	if len(mod.Replace) > 0 {
		t.Errorf("go.mod replaces %d modules", len(mod.Replace))
	}
	if want := mod.Module.Mod.Path + "/cmd/" + filepath.Base(program); info.Path != want {
		t.Errorf("the program is of package %s, want %s", info.Path, want)
	}
	if strings.Contains(info.GoVersion, "devel") || strings.Contains(info.GoVersion, " ") {
		t.Errorf("it is built with %s, which is no release", info.GoVersion)
	}
	versions := make(map[string]string)
	unused := make(map[string]bool) // required for what ships, but not in the program
	for _, r := range mod.Require {
		versions[r.Mod.Path] = r.Mod.Version
		unused[r.Mod.Path] = !r.Indirect && !forTests(r)
	}
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			t.Errorf("%s is replaced by %s", dep.Path, dep.Replace.Path)
		}
		if want := versions[dep.Path]; dep.Version != want {
			t.Errorf("%s is built in as %s, go.mod requires %q", dep.Path, dep.Version, want)
		}
		if dep.Sum == "" {
			t.Errorf("%s has no checksum", dep.Path)
		}
		delete(unused, dep.Path)
	}
	for path, required := range unused {
		if required {
			t.Errorf("%s is required, but not in the program", path)
		}
	}
}

// Who builds the program by no more than `go build` gets one that works, see docs/entry-point.md.
func TestPlainBuildServesPods(t *testing.T) {
	goCommand, err := exec.LookPath("go")
	if err != nil {
		t.Skip("there is no Go to build with")
	}
	dir := t.TempDir()
	cmd := exec.Command(goCommand, "build", "-o", dir, "./cmd/containerd-shim-pause-v2")
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	onNewNode(t, handlers(), []string{dir}, func(t *testing.T) {
		p := runPod(t, sandboxHandler, nil)
		id := p.start("c", "sleep 1000")
		expectEqual(t, "host name", p.exec(id, "hostname"), p.Config.Hostname)
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.sandboxPid()))
		must(t, err)
		expectEqual(t, "the program of the shim", exe, filepath.Join(dir, "containerd-shim-pause-v2"))
	})
}

// forTests says whether go.mod marks a requirement as one of tests.
func forTests(r *modfile.Require) bool {
	for _, c := range r.Syntax.Suffix {
		if strings.Contains(c.Token, "tests") {
			return true
		}
	}
	return false
}
