package integration

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestExec(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		p := c.exec("e1", nil, nil, "sh", "-c", "echo out; echo err >&2; exit 9")
		p.mustFinish(9)
		expectEqual(t, "stdout", p.out.String(), "out\n")
		expectEqual(t, "stderr", p.errOut.String(), "err\n")
		// A deleted exec's id may be used again.
		c.exec("e1", nil, nil, "true").mustFinish(0)
	})
}

func TestExecStdin(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		p := c.exec("e1", strings.NewReader("in\n"), nil, "cat")
		p.out.expect(t, "in\n")
		must(t, p.CloseIO(c.ctx, containerd.WithStdinCloser))
		p.mustFinish(0)
	})
}

func TestExecTerminal(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		stdin, in, err := os.Pipe()
		must(t, err)
		defer in.Close()
		p := c.exec("e1", stdin, func(s *specs.Process) { s.Terminal = true }, "sh", "-c", "read go; stty size; exit 3")
		must(t, p.Resize(c.ctx, 120, 30))
		_, err = in.WriteString("go\n")
		must(t, err)
		p.mustFinish(3)
		if !strings.Contains(p.out.String(), "30 120\r\n") {
			t.Errorf("output: %q", p.out.String())
		}
	})
}

func TestExecAsUserInDirectory(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		p := c.exec("e1", nil, func(s *specs.Process) {
			s.User = specs.User{UID: 65534, GID: 65534}
			s.Cwd = "/home"
			s.Env = append(s.Env, "COLOUR=blue")
		}, "sh", "-c", "echo $(id -u) $(pwd) $COLOUR")
		p.mustFinish(0)
		expectEqual(t, "output", p.out.String(), "65534 /home blue\n")
	})
}

func TestExecKill(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		p := c.exec("e1", nil, nil, "sleep", "1000")
		status, err := p.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
		must(t, p.Kill(c.ctx, syscall.SIGKILL))
		p.mustFinish(137)
	})
}

func TestExecIDInUseIsRefused(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		p := c.exec("e1", nil, nil, "sleep", "1000")
		if _, err := c.tryExec("e1", nil, nil, "true"); !errdefs.IsAlreadyExists(err) {
			t.Errorf("error %v is not of the kind AlreadyExists", err)
		}
		must(t, p.Kill(c.ctx, syscall.SIGKILL))
		p.mustFinish(137)
	})
}

func TestExecOfBadCommand(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		for _, tty := range []bool{false, true} {
			_, err := c.tryExec("e1", nil, func(s *specs.Process) { s.Terminal = tty }, "/no/such/program")
			if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
				t.Errorf("error does not name the program: %v", err)
			}
		}
		// Nothing of them is in the way.
		c.exec("e1", nil, nil, "true").mustFinish(0)
		pids, err := c.task.Pids(c.ctx)
		must(t, err)
		expectEqual(t, "number of processes", len(pids), 1)
	})
}

func TestManyExecsAtOnce(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		const n = 100
		errs := make([]error, n)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() { errs[i] = numberedExec(c, i) })
		}
		all.Wait()
		must(t, errors.Join(errs...))
	})
}

// numberedExec checks that an exec's exit code and output are its own.
func numberedExec(c *container, i int) error {
	p, err := c.tryExec(fmt.Sprintf("e%d", i), nil, nil, "sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i))
	if err != nil {
		return fmt.Errorf("exec %d: %w", i, err)
	}
	code, err := p.finish()
	if err != nil || code != uint32(i) || p.out.String() != fmt.Sprintf("%d\n", i) {
		return fmt.Errorf("exec %d: code %d, output %q, error %w", i, code, p.out.String(), err)
	}
	return nil
}

// An exec that is gone before Start has answered reports its exit all the same.
func TestExecExitsBeforeStartReturns(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		for range 20 {
			c.exec("e", nil, nil, "true").mustFinish(0)
		}
	})
}

func TestExecEndsWithInit(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		p := c.exec("e1", nil, nil, "sleep", "1000")
		must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
		expectEqual(t, "exit code of init", c.wait(), 137)
		p.mustFinish(137)
	})
}
