package node

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

// guardEnv tells this program that it is to be a guard, and for which directory.
const guardEnv = "PAUSE_NODE_GUARD="

// guard is a second process of this program. It removes a node whose owner has
// died without doing so: by a panic, by the timeout of go test, by SIGKILL.
type guard struct {
	cmd  *exec.Cmd
	pipe io.WriteCloser // at its end, this process has died
}

func init() {
	dir := os.Getenv(guardEnv[:len(guardEnv)-1])
	if dir == "" {
		return
	}
	word, err := io.ReadAll(os.Stdin)
	if err == nil && len(word) > 0 {
		os.Exit(0)
	}
	// Who has read the standard error may be dead as well.
	signal.Ignore(syscall.SIGPIPE)
	fmt.Fprintf(os.Stderr, "node: removing %s, which was left behind\n", dir)
	if err := purge(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func startGuard(dir string) (*guard, error) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), guardEnv+dir)
	cmd.Stderr = os.Stderr
	// Signals from the terminal are not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start the guard of %s: %w", dir, err)
	}
	return &guard{cmd: cmd, pipe: pipe}, nil
}

// dismiss ends the guard, with nothing left for it to do.
func (g *guard) dismiss() {
	if g == nil {
		return
	}
	io.WriteString(g.pipe, "done") //nolint:errcheck // then it ends as well
	g.pipe.Close()
	g.cmd.Wait() //nolint:errcheck // likewise
}

func (g *guard) pid() int {
	if g == nil {
		return 0
	}
	return g.cmd.Process.Pid
}
