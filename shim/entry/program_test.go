package entry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// modePrefix before a mode, in place of the program's name, makes the test binary the
// program under test; see behave. So each test is free to set the environment and the other
// arguments.
const modePrefix = "entry-test: "

func TestMain(m *testing.M) {
	if mode, ok := strings.CutPrefix(os.Args[0], modePrefix); ok {
		os.Exit(behave(mode))
	}
	code, err := test(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// report is what a program under test says about itself, in JSON.
type report struct {
	Forked      bool
	PID, Parent int
	Arguments   []string
	Environment []string
	Remaining   []string // the environment after GOMAXPROCS and GODEBUG have been unset
	Processors  int      // that Go uses
	PageSize    int
	Vector      [][2]uintptr // the auxiliary vector
	NoHugePages bool         // whether Go's heap uses none
}

// behave is the program under test. It reports what it is, and does what mode says.
func behave(mode string) int {
	verb, text, _ := strings.Cut(mode, " ")
	code, _ := strconv.Atoi(text)
	if verb == "limit" {
		if err := executeLimited("exit " + text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	_, _ = user.LookupId("0") // by libc, in a program with cgo
	r := report{
		Forked:      Starter() >= 0,
		PID:         os.Getpid(),
		Parent:      os.Getppid(),
		Arguments:   os.Args[1:],
		Environment: os.Environ(),
		Processors:  runtime.GOMAXPROCS(0),
		PageSize:    os.Getpagesize(),
	}
	os.Unsetenv("GOMAXPROCS")
	os.Unsetenv("GODEBUG")
	r.Remaining = os.Environ()
	var err1, err2 error
	r.Vector, err1 = unix.Auxv()
	r.NoHugePages, err2 = noHugePages()
	if err := errors.Join(err1, err2, json.NewEncoder(os.Stdout).Encode(r)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
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

// executeLimited executes the program again, with the action start, in a mode. Go's runtime
// raises the limit of open files when it starts; until then only one more can be opened.
func executeLimited(mode string) error {
	path, err := os.Executable()
	if err != nil {
		return err
	}
	fd := 0
	for isInherited(fd) {
		fd++
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	limit.Cur = uint64(fd) + 1
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	return unix.Exec(path, slices.Concat([]string{modePrefix + mode}, os.Args[1:], []string{"start"}), os.Environ())
}

// isInherited says whether fd is open and stays so when a program is executed.
func isInherited(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil && flags&unix.FD_CLOEXEC == 0
}

// noHugePages says whether the mapping of Go's heap has the flag of madvise(2) with
// MADV_NOHUGEPAGE: "nh" (https://docs.kernel.org/filesystems/proc.html).
func noHugePages() (bool, error) {
	heap := make([]byte, len(os.Args[0])) // of a size that the compiler does not know
	onHeap := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(heap))))
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return false, err
	}
	within := false
	for line := range strings.Lines(string(smaps)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x ", &from, &to); err == nil {
			within = from <= onHeap && onHeap < to
		} else if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && within {
			return slices.Contains(strings.Fields(flags), "nh"), nil
		}
	}
	return false, errors.New("cannot find Go's heap in /proc/self/smaps")
}

// command returns a call of the program.
func (p program) command(mode string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(p.path, args...)
	cmd.Args[0] = modePrefix + mode
	cmd.Env = append([]string{}, env...) // nil would be that of this process
	return cmd
}

// result is the outcome of a call of a program.
type result struct {
	report
	pid  int
	code int
}

// call runs cmd, a call of a program that ends after its report.
func call(cmd *exec.Cmd) (r result, err error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return r, err
	}
	_ = cmd.Wait() // The exit code says it.
	r.pid, r.code = cmd.Process.Pid, cmd.ProcessState.ExitCode()
	err = json.Unmarshal(stdout.Bytes(), &r.report)
	if stderr.Len() > 0 {
		err = errors.Join(err, errors.New(stderr.String()))
	}
	if err != nil {
		return r, fmt.Errorf("%.500q: %v, output %.2000q: %w", cmd.Args, cmd.ProcessState, &stdout, err)
	}
	return r, nil
}

// call runs the program in a mode, with an environment and arguments.
func (p program) call(t *testing.T, mode string, env []string, args ...string) result {
	t.Helper()
	r, err := call(p.command(mode, env, args...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}
