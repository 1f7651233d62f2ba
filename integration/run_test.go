package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestExitCode(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for _, tc := range []struct {
			script string
			code   uint32
		}{
			{"exit 0", 0},
			{"exit 7", 7},
			{"exit 255", 255},
			{"kill -9 $$; exit 1", 1}, // an init is immune to signals from inside
		} {
			c := startContainer(t, shim, sh(tc.script))
			expectEqual(t, tc.script, c.wait(), tc.code)
			status, err := c.task.Status(c.ctx)
			must(t, err)
			expectEqual(t, "status", status.Status, containerd.Stopped)
			expectEqual(t, "status after "+tc.script, status.ExitStatus, tc.code)
			deleted, err := c.task.Delete(c.ctx)
			must(t, err)
			expectEqual(t, "deletion after "+tc.script, deleted.ExitCode(), tc.code)
		}
	})
}

func TestSignalEndsTask(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for _, tc := range []struct {
			script string
			signal syscall.Signal
			code   uint32
		}{
			{"echo up; sleep 1000", syscall.SIGKILL, 137},
			{"trap 'exit 3' TERM; echo up; while :; do sleep 0.1; done", syscall.SIGTERM, 3},
		} {
			c := startContainer(t, shim, sh(tc.script))
			c.out.expect(t, "up")
			must(t, c.task.Kill(c.ctx, tc.signal))
			expectEqual(t, tc.signal.String(), c.wait(), tc.code)
		}
	})
}

// The exit of a container that is gone before Start has answered must not be lost.
func TestExitBeforeStartReturns(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for range 10 {
			c := startContainer(t, shim, config{args: []string{"true"}})
			expectEqual(t, "exit code", c.wait(), 0)
			c.remove()
		}
	})
}

func TestWaitAfterExit(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("exit 5"))
		c.wait()
		again, err := c.task.Wait(c.ctx)
		must(t, err)
		expectEqual(t, "exit code", exitCode(t, again), 5)
	})
}

func TestOutputByFIFO(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("echo to stdout; echo to stderr >&2"))
		c.wait()
		expectEqual(t, "stdout", c.out.String(), "to stdout\n")
		expectEqual(t, "stderr", c.errOut.String(), "to stderr\n")
	})
}

// All output of a container that ends at once arrives, more than pipes hold.
func TestMuchOutput(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		const size = 4 << 20
		c := startContainer(t, shim, sh("head -c 4194304 /dev/zero"))
		expectEqual(t, "exit code", c.wait(), 0)
		expectEqual(t, "bytes", len(c.out.String()), size)
	})
}

func TestStdinIsPassedAndClosed(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, config{args: []string{"cat"}})
		c.run(c.streams(strings.NewReader("what goes in\n")))
		c.out.expect(t, "what goes in\n")
		must(t, c.task.CloseIO(c.ctx, containerd.WithStdinCloser))
		expectEqual(t, "exit code", c.wait(), 0)
	})
}

func TestNullIO(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("echo lost; read nothing; exit 4"))
		c.run(cio.NullIO)
		expectEqual(t, "exit code", c.wait(), 4)
	})
}

func TestOutputToFile(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		file := filepath.Join(t.TempDir(), "deep", "log")
		c := newContainer(t, shim, sh("echo one; echo two >&2; sleep 1000"))
		c.run(cio.LogFile(file))
		eventually(t, "both lines are in the log", func() bool {
			got, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(got), "one\n") && strings.Contains(string(got), "two\n")
		})
	})
}

// The stock shim may end before it has copied what came last.
func TestOutputToFileIsCompleteOnDelete(t *testing.T) {
	withPause(t, func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "deep", "log")
		c := newContainer(t, "pause", sh("echo one; echo two >&2"))
		c.run(cio.LogFile(file))
		c.wait()
		c.remove()
		got, err := os.ReadFile(file)
		must(t, err)
		for _, line := range []string{"one\n", "two\n"} {
			if !strings.Contains(string(got), line) {
				t.Errorf("log has no %q: %q", line, got)
			}
		}
	})
}

// A logger reads file descriptors 3 and 4, and closes 5 when it is ready
// (containerd, core/runtime/v2, "binary" log URIs). When the task is deleted it
// gets a SIGTERM, and time to finish.
const loggerScript = `#!/bin/sh
trap '' TERM
exec 5>&-
echo "$CONTAINER_NAMESPACE $CONTAINER_ID $*" >"$2/args"
cat <&4 >"$2/err" &
cat <&3 >"$2/out"
wait
echo done >"$2/end"
`

func TestOutputToBinary(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		dir := t.TempDir()
		logger := script(t, loggerScript)
		c := newContainer(t, shim, sh("echo one; echo two >&2"))
		c.run(cio.BinaryIO(logger, map[string]string{"dir": dir}))
		c.wait()
		c.remove()
		// The logger has all output when the task has been deleted.
		for name, want := range map[string]string{
			"args": theNode.ID + " " + c.ID() + " dir " + dir + "\n",
			"out":  "one\n",
			"err":  "two\n",
			"end":  "done\n",
		} {
			got, err := os.ReadFile(filepath.Join(dir, name))
			must(t, err)
			expectEqual(t, name, string(got), want)
		}
	})
}

func TestLoggerThatFails(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("echo lost"))
		if _, err := c.NewTask(c.ctx, cio.BinaryIO(filepath.Join(t.TempDir(), "absent"), nil)); err == nil {
			t.Error("a logger that does not exist: no error")
		}
	})
}

func TestTerminal(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("read go; stty size; tty; exit 6")
		cfg.spec = []oci.SpecOpts{oci.WithTTY}
		c := newContainer(t, shim, cfg)
		stdin, in, err := os.Pipe()
		must(t, err)
		defer in.Close()
		c.run(c.terminal(stdin))
		must(t, c.task.Resize(c.ctx, 123, 45))
		_, err = in.WriteString("go\n")
		must(t, err)
		expectEqual(t, "exit code", c.wait(), 6)
		for _, want := range []string{"45 123\r\n", "/dev/"} {
			if !strings.Contains(c.out.String(), want) {
				t.Errorf("output has no %q: %q", want, c.out.String())
			}
		}
	})
}

func TestTerminalSizeFromSpec(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("stty size")
		cfg.spec = []oci.SpecOpts{oci.WithTTY, oci.WithTTYSize(99, 33)}
		c := newContainer(t, shim, cfg)
		c.run(c.terminal(nil))
		c.wait()
		expectEqual(t, "size", c.out.String(), "33 99\r\n")
	})
}

func TestTerminalOutputToBinary(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		dir := t.TempDir()
		cfg := sh("tty >&2")
		cfg.spec = []oci.SpecOpts{oci.WithTTY}
		c := newContainer(t, shim, cfg)
		c.run(cio.TerminalBinaryIO(script(t, loggerScript), map[string]string{"dir": dir}))
		c.wait()
		c.remove()
		expectEqual(t, "end", readFile(t, filepath.Join(dir, "end")), "done\n")
		if out := readFile(t, filepath.Join(dir, "out")); !strings.HasPrefix(out, "/dev/") {
			t.Errorf("output: %q", out)
		}
	})
}

func TestAttach(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for _, tty := range []bool{false, true} {
			cfg := sh("read a; echo first $a; read b; echo second $b; exit 2")
			if tty {
				cfg.spec = []oci.SpecOpts{oci.WithTTY}
			}
			c := newContainer(t, shim, cfg)
			c.run(c.detached(tty))
			stdin, in, err := os.Pipe()
			must(t, err)
			opts := []cio.Opt{cio.WithStreams(stdin, &c.out, &c.errOut)}
			if tty {
				opts = append(opts, cio.WithTerminal)
			}
			attached, err := c.Task(c.ctx, cio.NewAttach(opts...))
			must(t, err)
			c.letGo()
			_, err = in.WriteString("x\n")
			must(t, err)
			c.out.expect(t, "first x")
			_, err = in.WriteString("y\n")
			must(t, err)
			expectEqual(t, "exit code", exitCode(t, c.exited), 2)
			attached.IO().Wait()
			c.out.expect(t, "second y")
			in.Close()
			_, err = attached.Delete(c.ctx)
			must(t, err)
		}
	})
}

// detached is I/O by FIFOs that this client neither reads nor writes, until
// another client attaches to the task. It holds both ends of them, so that nobody
// sees the end of a file.
func (c *container) detached(tty bool) cio.Creator {
	return func(id string) (cio.IO, error) {
		fifos, err := cio.NewFIFOSetInDir(theNode.FIFODir(), id, tty)
		if err != nil {
			return nil, err
		}
		for _, path := range []string{fifos.Stdin, fifos.Stdout, fifos.Stderr} {
			if path == "" {
				continue
			}
			if err := syscall.Mkfifo(path, 0o600); err != nil {
				return nil, err
			}
			f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
			if err != nil {
				return nil, err
			}
			c.held = append(c.held, f)
		}
		return detachedIO{fifos.Config}, nil
	}
}

// letGo closes what detached holds.
func (c *container) letGo() {
	for _, f := range c.held {
		f.Close()
	}
	c.held = nil
}

type detachedIO struct{ config cio.Config }

func (io detachedIO) Config() cio.Config { return io.config }
func (io detachedIO) Cancel()            {}
func (io detachedIO) Wait()              {}
func (io detachedIO) Close() error       { return nil }

// Without a pid namespace of its own, a container's processes do not end with
// its init.
func TestLeftoversOfHostPidContainerAreKilled(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, hostPid("trap 'exit 3' TERM; sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; while :; do sleep 0.1; done"))
		c.out.expect(t, "\n")
		must(t, c.task.Kill(c.ctx, syscall.SIGTERM))
		expectEqual(t, "exit code", c.wait(), 3)
		c.expectEnded(strings.TrimSpace(c.out.String()))
	})
}

// The same if init ends before Start has returned, when the stock shim forgets
// about it.
func TestLeftoversOfShortHostPidContainerAreKilled(t *testing.T) {
	withPause(t, func(t *testing.T) {
		for range 5 {
			c := startContainer(t, "pause", hostPid("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; exit 3"))
			expectEqual(t, "exit code", c.wait(), 3)
			c.expectEnded(strings.TrimSpace(c.out.String()))
		}
	})
}

func hostPid(script string) config {
	cfg := sh(script)
	cfg.spec = []oci.SpecOpts{oci.WithHostNamespace(specs.PIDNamespace)}
	return cfg
}

// expectEnded waits for the end of a process of the container.
func (c *container) expectEnded(pid string) {
	c.t.Helper()
	eventually(c.t, "process "+pid+" has ended", func() bool {
		cgroups, err := os.ReadFile(filepath.Join("/proc", pid, "cgroup"))
		return err != nil || !strings.Contains(string(cgroups), "/"+c.ID()+"\n") && !strings.Contains(string(cgroups), "-"+c.ID()+".scope\n")
	})
}

func TestDeleteOfRunningTaskIsRefused(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		if _, err := c.task.Delete(c.ctx); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("error %v is not of the kind FailedPrecondition", err)
		}
		status, err := c.task.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
	})
}
