package entry

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// modeEnv makes the test binary the program under test, see behave.
const modeEnv = "ENTRY_TEST_MODE"

const linkerFlags = "-E containerd-shim-pause-v2/shim/entry.entry"

// program is a test binary that has been linked with linkerFlags.
var program string

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeEnv); mode != "" {
		os.Exit(behave(mode))
	}
	code, err := test(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// test finds the program, or makes it, and runs the tests.
func test(m *testing.M) (int, error) {
	var err error
	if program, err = os.Executable(); err != nil {
		return 0, err
	}
	cmd := command("exit 0", "start")
	if out, err := cmd.Output(); err != nil || !bytes.HasPrefix(out, []byte("forked")) {
		dir, err := os.MkdirTemp("", "entry")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "program")
		build := exec.Command("go", "test", "-c", "-ldflags", linkerFlags, "-o", program, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w: %s", err, out)
		}
	}
	return m.Run(), nil
}

// behave is the program under test. It tells what it is, and does what mode says.
func behave(mode string) int {
	what := "not forked"
	if Starter() >= 0 {
		what = "forked"
	}
	fmt.Println(what, os.Getpid(), os.Getppid(), os.Getenv("GOMAXPROCS"), strings.Join(os.Args[1:], " "))
	verb, text, _ := strings.Cut(mode, " ")
	code, _ := strconv.Atoi(text)
	switch verb {
	case "tell":
		os.Stdout.Close()
		if err := Tell(Starter(), byte(code)); err != nil {
			return 1
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "tell-later":
		_, _ = io.Copy(io.Discard, os.Stdin)
		fmt.Println(Tell(Starter(), byte(code)))
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	return code
}

func command(mode string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), modeEnv+"="+mode)
	return cmd
}

func TestStarterEndsWhenItIsTold(t *testing.T) {
	for _, code := range []int{0, 7, 255} {
		cmd := command(fmt.Sprintf("tell %d", code), "-id", "x", "start")
		stdin, in, err := os.Pipe() // which Wait does not close
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = stdin
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stdin.Close()
		text, err := io.ReadAll(out)
		if err != nil {
			t.Fatal(err)
		}
		var pid, parent int
		if _, err := fmt.Sscanf(string(text), "forked %d %d", &pid, &parent); err != nil || parent != cmd.Process.Pid || !strings.HasSuffix(string(text), " -id x start\n") {
			t.Errorf("the child said %q, its parent is %d", text, cmd.Process.Pid)
		}
		_ = cmd.Wait()
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("exit code %d, want %d", got, code)
		}
		// The child goes on.
		if err := unix.Kill(pid, 0); err != nil {
			t.Errorf("the child has ended: %v", err)
		}
		in.Close()
	}
}

func TestStarterEndsAsItsChild(t *testing.T) {
	for mode, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill": 128 + 9} {
		cmd := command(mode, "start")
		out, _ := cmd.Output()
		if got := cmd.ProcessState.ExitCode(); got != want || !bytes.HasPrefix(out, []byte("forked")) {
			t.Errorf("%s: exit code %d, want %d; the child said %q", mode, got, want, out)
		}
	}
}

func TestChildLearnsThatItsStarterIsDead(t *testing.T) {
	cmd := command("tell-later 0", "start")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	in.Close()
	if line, err := lines.ReadString('\n'); err != nil || line != unix.EPIPE.Error()+"\n" {
		t.Errorf("it was told %q, error %v", line, err)
	}
}

func TestGOMAXPROCSOfAChild(t *testing.T) {
	for entry, want := range map[string]string{"GOMAXPROCS=2": "1", "GOMAXPROCS=128": "1", "GOMAXPROCS=": "", "GOMAXPROCSES=5": ""} {
		cmd := command("exit 0", "start")
		cmd.Env = append([]string{"A=", "GOMAXPRO"}, append(cmd.Env, entry, "GOGC=100")...)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Split(string(out), " ")[3]; got != want {
			t.Errorf("%s became %q, want %q", entry, got, want)
		}
	}
}

func TestOtherCallsAreLeftToTheProgram(t *testing.T) {
	for _, args := range []string{"", "star", "started", "restart", "start -v", "-v", "delet", "deleted", "delete"} {
		cmd := command("exit 3", strings.Fields(args)...)
		out, _ := cmd.Output()
		if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.HasPrefix(string(out), "not forked ") || !strings.HasSuffix(string(out), " "+args+"\n") {
			t.Errorf("%q: exit code %d, the program said %q", args, code, out)
		}
	}
}

func TestAnswerToDelete(t *testing.T) {
	dir := t.TempDir()
	bundle := func(name string, put func(path string) error) string {
		bundle := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(bundle, 0o700), put(filepath.Join(bundle, AnswerFile))); err != nil {
			t.Fatal(err)
		}
		return bundle
	}
	file := func(size int) func(path string) error {
		return func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("a"), size), 0o600) }
	}
	for _, tc := range []struct {
		name   string
		put    func(path string) error
		answer int // bytes; 0 if the program is to answer
	}{
		{"one byte", file(1), 1},
		{"511 bytes", file(511), 511},
		{"512 bytes", file(512), 0},
		{"an empty file", file(0), 0},
		{"no file", func(string) error { return nil }, 0},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }, 0},
		{"a link", func(path string) error { return os.Symlink(filepath.Join(dir, "one byte", AnswerFile), path) }, 0},
	} {
		cmd := command("exit 3", "-id", "x", "-bundle", bundle(tc.name, tc.put), "delete")
		out, _ := cmd.Output()
		code := cmd.ProcessState.ExitCode()
		if tc.answer > 0 && (code != 0 || string(out) != strings.Repeat("a", tc.answer)) || tc.answer == 0 && (code != 3 || !bytes.HasPrefix(out, []byte("not forked"))) {
			t.Errorf("%s: exit code %d, answer %q", tc.name, code, out)
		}
	}

	present := filepath.Join(dir, "one byte")
	for _, args := range [][]string{{"delete"}, {"-bundle", "delete"}, {"-bundle=" + present, "delete"}, {"-bundle", filepath.Join(dir, "none"), "delete"}, {"-bundles", present, "delete"}} {
		cmd := command("exit 3", args...)
		cmd.Dir = dir
		if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 3 {
			t.Errorf("%v: the program was not asked", args)
		}
	}

	// An answer that nobody gets is none.
	cmd := command("exit 3", "-bundle", present, "delete")
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	cmd.Stdout = full
	if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d, though the answer could not be written", cmd.ProcessState.ExitCode())
	}
}
