package entry

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStartForksIfItIsLinked(t *testing.T) {
	eachProgram(t, func(t *testing.T, p program) {
		r := p.call(t, "exit 3", nil, "start")
		if r.Forked != p.linked || (r.Parent == r.pid) != p.linked || (r.PID == r.pid) == p.linked || r.code != 3 {
			t.Errorf("%d has executed the program, linked: %v; it is %+v, and exit code %d", r.pid, p.linked, r.report, r.code)
		}
	})
}

func TestStarterEndsWhenItIsTold(t *testing.T) {
	eachLinked(t, func(t *testing.T, p program) {
		for _, code := range []int{0, 7, 255} {
			cmd := p.command(fmt.Sprintf("tell %d", code), nil, "-id", "x", "start")
			stdin, in, err := os.Pipe() // which Wait does not close
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
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
			var r report
			if err := json.Unmarshal(text, &r); err != nil || !r.Forked || r.Parent != cmd.Process.Pid || !slices.Equal(r.Arguments, cmd.Args[1:]) {
				t.Errorf("the child said %q, its parent is %d: %v", text, cmd.Process.Pid, err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != code {
				t.Errorf("exit code %d, want %d", got, code)
			}
			// The child goes on.
			if err := unix.Kill(r.PID, 0); err != nil {
				t.Errorf("the child has ended: %v", err)
			}
		}
	})
}

func TestStarterEndsAsItsChild(t *testing.T) {
	eachLinked(t, func(t *testing.T, p program) {
		for mode, want := range map[string]int{"exit 0": 0, "exit 3": 3, "kill": 128 + 9} {
			if r := p.call(t, mode, nil, "start"); r.code != want || !r.Forked {
				t.Errorf("%s: exit code %d, want %d; the child said %+v", mode, r.code, want, r.report)
			}
		}
	})
}

func TestChildLearnsThatItsStarterIsDead(t *testing.T) {
	eachLinked(t, func(t *testing.T, p program) {
		cmd := p.command("tell-later 0", nil, "start")
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
	})
}

// manyVariables are about as many bytes as a stack of 8 MiB lets an environment have.
func manyVariables() []string {
	var env []string
	for i := range 15 {
		env = append(env, fmt.Sprintf("LONG%d=%s", i, strings.Repeat("x", 100_000)))
	}
	for i := range 10_000 {
		env = append(env, fmt.Sprintf("SHORT%d=%d", i, i))
	}
	return env
}

func TestEnvironmentOfAChild(t *testing.T) {
	const godebug, one = "GODEBUG=disablethp=1", "GOMAXPROCS=1"
	many := manyVariables()
	cases := []struct {
		name      string
		env, want []string
	}{
		{"none", nil, []string{godebug, one}},
		{"another variable", []string{"A=b"}, []string{godebug, one, "A=b"}},
		{"more processors", []string{"A=b", "GOMAXPROCS=4", "C=d"}, []string{godebug, one, "A=b", "C=d"}},
		{"one processor", []string{"GOMAXPROCS=1"}, []string{godebug, one}},
		{"no number of processors", []string{"GOMAXPROCS="}, []string{godebug, one}},
		{"processors twice", []string{"GOMAXPROCS=2", "GOMAXPROCS=3"}, []string{godebug, one}},
		{"an own GODEBUG", []string{"A=b", "GODEBUG=netdns=go", "GOMAXPROCS=2"}, []string{one, "A=b", "GODEBUG=netdns=go"}},
		{"an own GODEBUG with huge pages", []string{"GODEBUG=disablethp=0"}, []string{one, "GODEBUG=disablethp=0"}},
		{"an own GODEBUG without huge pages", []string{"GODEBUG=netdns=go,disablethp=1"}, []string{one, "GODEBUG=netdns=go,disablethp=1"}},
		{"an empty GODEBUG", []string{"GODEBUG="}, []string{one, "GODEBUG="}},
		{"names that begin alike", []string{"GODEBUGS=x", "GOMAXPROCSES=5", "GODEBU=x"}, []string{godebug, one, "GODEBUGS=x", "GOMAXPROCSES=5", "GODEBU=x"}},
		{"no names", []string{"GODEBUG", "GOMAXPROCS", "G", ""}, []string{godebug, one, "GODEBUG", "GOMAXPROCS", "G"}},
		{"many variables", many, append([]string{godebug, one}, many...)},
		{"GODEBUG behind many variables", slices.Concat(many, []string{"GODEBUG=a=1"}), slices.Concat([]string{one}, many, []string{"GODEBUG=a=1"})},
	}
	eachLinked(t, func(t *testing.T, p program) {
		for _, tc := range cases {
			t.Run(tc.name, func(t *testing.T) {
				r := p.call(t, "exit 3", tc.env, "-id", "x", "start")
				if !r.Forked || !slices.Equal(r.Environment, tc.want) {
					t.Errorf("it became %.500q, want %.500q", r.Environment, tc.want)
				}
				if r.Processors != 1 {
					t.Errorf("Go uses %d processors", r.Processors)
				}
				remaining := slices.DeleteFunc(slices.Clone(tc.env), func(v string) bool {
					return v == "" || strings.HasPrefix(v, "GODEBUG=") || strings.HasPrefix(v, "GOMAXPROCS=")
				})
				if !slices.Equal(r.Remaining, remaining) {
					t.Errorf("there remained %.500q, want %.500q", r.Remaining, remaining)
				}
			})
		}
	})
}

func TestArgumentsOfAChild(t *testing.T) {
	var many []string
	for i := range 5000 {
		many = append(many, fmt.Sprintf("-argument-%d", i))
	}
	eachProgram(t, func(t *testing.T, p program) {
		for _, args := range [][]string{{}, {""}, {"", "", ""}, {"-id", "x"}, {"-namespace", "a b", "-id", "x", "-address", "/run/c.sock"}, {"start"}, many} {
			args = append(slices.Clone(args), "start")
			for _, env := range [][]string{nil, {"A=b"}, {"GODEBUG=a=1", "A=b"}} {
				if r := p.call(t, "exit 3", env, args...); !slices.Equal(r.Arguments, args) || r.Forked != p.linked || r.code != 3 {
					t.Errorf("%.200q with %q: exit code %d, the program said %.500q", args, env, r.code, r.Arguments)
				}
			}
		}
	})
}

func TestAuxiliaryVectorOfAChild(t *testing.T) {
	// Its addresses differ from process to process.
	kinds := func(vector [][2]uintptr) (kinds []uintptr) {
		for _, pair := range vector {
			kinds = append(kinds, pair[0])
		}
		return kinds
	}
	eachProgram(t, func(t *testing.T, p program) {
		left, forked := p.call(t, "exit 3", nil, "-v"), p.call(t, "exit 3", nil, "start")
		if len(left.Vector) == 0 || !slices.Equal(kinds(left.Vector), kinds(forked.Vector)) {
			t.Errorf("it is %v, want one like %v", forked.Vector, left.Vector)
		}
		if forked.PageSize != os.Getpagesize() {
			t.Errorf("pages are %d bytes, want %d", forked.PageSize, os.Getpagesize())
		}
	})
}

func TestHeapOfAChildHasNoHugePages(t *testing.T) {
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel has none: ", err)
	}
	eachProgram(t, func(t *testing.T, p program) {
		for _, tc := range []struct {
			env  []string
			arg  string
			want bool
		}{
			{nil, "start", p.linked},
			{[]string{"GODEBUG=netdns=go"}, "start", false},
			{[]string{"GODEBUG=disablethp=1"}, "start", true},
			{nil, "-v", false},
		} {
			if r := p.call(t, "exit 3", tc.env, tc.arg); r.NoHugePages != tc.want {
				t.Errorf("%s with %q: without huge pages: %v, want %v", tc.arg, tc.env, r.NoHugePages, tc.want)
			}
		}
	})
}

func TestStartIsLeftToTheProgramIfItCannotFork(t *testing.T) {
	env := []string{"A=b", "GOMAXPROCS=2"}
	eachProgram(t, func(t *testing.T, p program) {
		r := p.call(t, "limit 4", env, "-id", "x") // of files: a pipe takes two
		if r.Forked || r.PID != r.pid || r.code != 4 || !slices.Equal(r.Arguments, []string{"-id", "x", "start"}) || !slices.Equal(r.Environment, env) {
			t.Errorf("exit code %d, the program said %+v", r.code, r.report)
		}
	})
}

func TestOtherCallsAreLeftToTheProgram(t *testing.T) {
	env := []string{"A=b", "GOMAXPROCS=4", "C="}
	eachProgram(t, func(t *testing.T, p program) {
		for _, args := range []string{"", "star", "started", "restart", "start -v", "-v", "delet", "deleted", "delete"} {
			args := strings.Fields(args)
			r := p.call(t, "exit 3", env, args...)
			if r.code != 3 || r.Forked || r.PID != r.pid || !slices.Equal(r.Arguments, args) || !slices.Equal(r.Environment, env) {
				t.Errorf("%q: exit code %d, the program said %+v", args, r.code, r.report)
			}
		}
	})
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
	type answer struct {
		name string
		args []string
		want int // bytes; 0 if the program is to answer
	}
	var answers []answer
	for _, tc := range []struct {
		name string
		put  func(path string) error
		want int
	}{
		{"one byte", file(1), 1},
		{"511 bytes", file(511), 511},
		{"512 bytes", file(512), 0},
		{"an empty file", file(0), 0},
		{"no file", func(string) error { return nil }, 0},
		{"a directory", func(path string) error { return os.Mkdir(path, 0o700) }, 0},
		{"a link", func(path string) error { return os.Symlink(filepath.Join(dir, "one byte", AnswerFile), path) }, 0},
	} {
		answers = append(answers, answer{tc.name, []string{"-id", "x", "-bundle", bundle(tc.name, tc.put), "delete"}, tc.want})
	}
	present := filepath.Join(dir, "one byte")
	for _, args := range [][]string{{"delete"}, {"-bundle", "delete"}, {"-bundle=" + present, "delete"}, {"-bundle", filepath.Join(dir, "none"), "delete"}, {"-bundles", present, "delete"}} {
		answers = append(answers, answer{strings.Join(args, " "), args, 0})
	}
	env := []string{"GOMAXPROCS=4", "A=b"}

	eachProgram(t, func(t *testing.T, p program) {
		for _, a := range answers {
			cmd := p.command("exit 3", env, a.args...)
			cmd.Dir = dir
			if a.want > 0 && p.linked {
				out, err := cmd.Output()
				if err != nil || string(out) != strings.Repeat("a", a.want) {
					t.Errorf("%s: answer %q, error %v", a.name, out, err)
				}
				continue
			}
			r, err := call(cmd)
			if err != nil || r.code != 3 || r.Forked || !slices.Equal(r.Environment, env) || !slices.Equal(r.Arguments, a.args) {
				t.Errorf("%s: exit code %d, the program said %+v, error %v", a.name, r.code, r.report, err)
			}
		}
	})
}

func TestAnswerToDeleteThatNobodyGets(t *testing.T) {
	bundle := t.TempDir()
	if err := os.WriteFile(filepath.Join(bundle, AnswerFile), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	eachLinked(t, func(t *testing.T, p program) {
		cmd := p.command("exit 3", nil, "-bundle", bundle, "delete")
		cmd.Stdout = full
		if _ = cmd.Run(); cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("exit code %d, though the answer could not be written", cmd.ProcessState.ExitCode())
		}
	})
}
