package entry

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

const linkerFlags = "-E containerd-shim-pause-v2/shim/entry.entry"

// hasEntry says whether there is an entry point for this architecture.
const hasEntry = runtime.GOARCH == "amd64" || runtime.GOARCH == "arm64"

// A program is the test binary, linked in one way.
type program struct {
	path   string
	linked bool // whether the program has our entry point
}

// A build is a way to make a program.
type build struct {
	name   string
	args   []string // of go test -c
	cgo    bool
	arch   string // "" for this one
	linked bool   // as in program
}

var builds = []build{
	{name: "static", args: []string{"-ldflags", linkerFlags}, linked: hasEntry},
	{name: "PIE", args: []string{"-buildmode=pie", "-ldflags", linkerFlags}, linked: hasEntry},
	{name: "with cgo", args: []string{"-ldflags", linkerFlags}, cgo: true, linked: hasEntry},
	// Go's linker does not choose the entry point then, so -E has no effect.
	{name: "by the external linker", args: []string{"-ldflags", "-linkmode=external " + linkerFlags}, cgo: true},
	{name: "without the flag"},
}

// crossBuilds are only made: the tests of arm64 run in a guest.
var crossBuilds = []build{
	{name: "arm64", arch: "arm64", args: []string{"-ldflags", linkerFlags}},
	{name: "arm64 PIE", arch: "arm64", args: []string{"-buildmode=pie", "-ldflags", linkerFlags}},
	{name: "amd64", arch: "amd64", args: []string{"-ldflags", linkerFlags}},
	{name: "amd64 PIE", arch: "amd64", args: []string{"-buildmode=pie", "-ldflags", linkerFlags}},
	{name: "riscv64", arch: "riscv64"},
}

var (
	// itself is this test binary, which may have been linked in any way.
	itself program

	// made are the programs made of builds, with their errors, by the builds' names.
	made   = map[string]func() (string, error){}
	madeIn string
)

// test runs the tests with what they need.
func test(m *testing.M) (code int, err error) {
	if itself.path, err = os.Executable(); err != nil {
		return 0, err
	}
	r, err := call(itself.command("exit 0", nil, "start"))
	if err != nil {
		return 0, err
	}
	itself.linked = r.Forked
	if _, err := exec.LookPath("go"); err != nil && hasEntry && !itself.linked {
		return 0, fmt.Errorf("cannot test anything: neither is this binary linked with %q, nor is there Go to make one that is: %w", linkerFlags, err)
	}
	if madeIn, err = os.MkdirTemp("", "entry"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(madeIn)
	for _, b := range builds {
		made[b.name] = sync.OnceValues(b.make)
	}
	return m.Run(), nil
}

// make makes the program, and returns its path.
func (b build) make() (string, error) {
	path := filepath.Join(madeIn, b.name+".test")
	cmd := exec.Command("go", append(append([]string{"test", "-c", "-o", path}, b.args...), ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b.cgo {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	}
	if b.arch != "" {
		cmd.Env = append(cmd.Env, "GOARCH="+b.arch)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot make the program: %w: %s", err, out)
	}
	return path, nil
}

// missing says what is missing here to make the program, as in a guest that has only this
// test binary; nil if nothing is.
func (b build) missing() error {
	_, err := exec.LookPath("go")
	if err == nil && b.cgo {
		_, err = exec.LookPath("gcc")
	}
	return err
}

// eachProgram runs a test with this binary and with what can be made here.
func eachProgram(t *testing.T, test func(t *testing.T, p program)) {
	t.Helper()
	t.Run("itself", func(t *testing.T) { test(t, itself) })
	eachMade(t, test, func(build) bool { return true })
}

// eachLinked is eachProgram for the programs that have our entry point.
func eachLinked(t *testing.T, test func(t *testing.T, p program)) {
	t.Helper()
	if itself.linked {
		t.Run("itself", func(t *testing.T) { test(t, itself) })
	}
	eachMade(t, test, func(b build) bool { return b.linked })
}

func eachMade(t *testing.T, test func(t *testing.T, p program), isMeant func(b build) bool) {
	t.Helper()
	for _, b := range builds {
		if !isMeant(b) || b.missing() != nil {
			continue
		}
		t.Run(b.name, func(t *testing.T) {
			path, err := made[b.name]()
			if err != nil {
				t.Fatal(err)
			}
			test(t, program{path: path, linked: b.linked})
		})
	}
}

func TestProgramCanBeMade(t *testing.T) {
	for _, b := range builds {
		t.Run(b.name, func(t *testing.T) {
			if err := b.missing(); err != nil {
				t.Skip(err)
			}
			if _, err := made[b.name](); err != nil {
				t.Error(err)
			}
		})
	}
	for _, b := range crossBuilds {
		t.Run("for "+b.name, func(t *testing.T) {
			if err := b.missing(); err != nil {
				t.Skip(err)
			}
			if _, err := b.make(); err != nil {
				t.Error(err)
			}
		})
	}
}
