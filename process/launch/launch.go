// Package launch starts programs whose files may hang when they are read, as on a network file
// system that has no server.
//
// Go's runtime waits in the fork until the new process has executed its program, and meanwhile can
// neither collect garbage nor stop its threads for anything else: a file that hangs would soon stop
// the whole shim, with all of its pods. So what is forked executes the shim's own program first,
// whose file does not hang, and that executes the other.
package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// name is the argv[0] that has the shim's program execute another. The arguments are the
// descriptor of a pipe for the error, the other program's path, the number of its arguments, these,
// its environment, and end.
const name = "containerd-shim-pause-launch"

// end is the last argument, which must not be one of those that package entry looks for.
const end = "launch"

// self is the program of the calling process, even if its file has been replaced.
const self = "/proc/self/exe"

// failed is the exit status of a process that could not execute its program, as in sh(1).
const failed = 127

func init() {
	if len(os.Args) > 5 && os.Args[0] == name {
		execute(os.Args[1:])
	}
}

// execute executes the program that the arguments name, and does not return.
func execute(args []string) {
	pipe, err := strconv.Atoi(args[0])
	path := args[1]
	n, nerr := strconv.Atoi(args[2])
	rest := args[3 : len(args)-1]
	if err != nil || nerr != nil || n < 0 || n > len(rest) {
		os.Exit(failed)
	}
	unix.CloseOnExec(pipe)
	var errno syscall.Errno
	errors.As(syscall.Exec(path, rest[:n], rest[n:]), &errno)
	report := os.NewFile(uintptr(pipe), "report")
	_, _ = fmt.Fprint(report, int(errno)) // without a reader there is nobody to tell
	os.Exit(failed)
}

// Program is a program that has been started.
type Program struct {
	path   string
	report *os.File
}

// Start starts a command, as [exec.Cmd.Start] does, but does not wait until the program is
// executed. The caller must call Await, or Close.
func Start(cmd *exec.Cmd) (*Program, error) {
	report, wr, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe for %s: %w", cmd.Path, err)
	}
	defer wr.Close()
	p := &Program{path: cmd.Path, report: report}
	const firstExtra = 3 // descriptor of the first of ExtraFiles
	args := []string{name, strconv.Itoa(firstExtra + len(cmd.ExtraFiles)), cmd.Path, strconv.Itoa(len(cmd.Args))}
	args = slices.Concat(args, cmd.Args, cmd.Env, []string{end})
	cmd.ExtraFiles = append(slices.Clone(cmd.ExtraFiles), wr)
	cmd.Path, cmd.Args, cmd.Env = self, args, []string{} // nil would mean the shim's environment
	if err := cmd.Start(); err != nil {
		report.Close()
		return nil, err
	}
	return p, nil
}

// Await waits until the program is executed, or its process has ended, and closes p. It fails
// if the program could not be executed; the process has then ended, or is about to.
func (p *Program) Await() error {
	defer p.Close()
	text, err := io.ReadAll(p.report)
	if err != nil {
		return fmt.Errorf("cannot learn whether %s is executed: %w", p.path, err)
	}
	if len(text) == 0 {
		return nil
	}
	errno, err := strconv.Atoi(string(text))
	if err != nil {
		return fmt.Errorf("cannot execute %s: %q", p.path, text)
	}
	return &os.PathError{Op: "fork/exec", Path: p.path, Err: syscall.Errno(errno)}
}

// Run runs a command to its end, as [exec.Cmd.Run] does.
func Run(cmd *exec.Cmd) error {
	program, err := Start(cmd)
	if err != nil {
		return err
	}
	err = program.Await()
	ended := cmd.Wait()
	if err != nil {
		return err
	}
	return ended
}

// Close lets go of the program, which goes on.
func (p *Program) Close() { p.report.Close() }
