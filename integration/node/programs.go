package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Program is a program of the node that runs beside containerd.
type Program struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has been waited for
}

// StartProgram starts a program that goes on until it is stopped or the node is closed. It is looked up as the
// daemon is, and writes into <name>.log in the node's directory.
func (n *Node) StartProgram(name string, args ...string) (*Program, error) {
	path, err := n.LookPath(name)
	if err != nil {
		return nil, err
	}
	p := &Program{name: name, log: filepath.Join(n.Dir, name+".log"), done: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Env = n.Dir, n.env()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() { p.cmd.Wait(); close(p.done) }() //nolint:errcheck // how it ended is in its log
	nodes.Lock()
	n.programs = append(n.programs, p)
	nodes.Unlock()
	return p, nil
}

// Pid is the pid of the program.
func (p *Program) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// Running says whether the program has not ended yet.
func (p *Program) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// End sends the program a signal and waits for its end, for which it has a minute.
func (p *Program) End(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot stop %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(time.Minute):
		p.cmd.Process.Kill() //nolint:errcheck // it has ended, or it cannot be helped
		<-p.done
		return fmt.Errorf("%s did not end within a minute after %s\n%s", p.name, signal, p.LogTail(20))
	}
}

// LogTail returns the last lines of the program's log.
func (p *Program) LogTail(lines int) string { return tail(p.log, lines) }

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
