package process

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Clients may send requests as soon as a process exists, before it has streams.

func TestCloseOfStdinBeforeStart(t *testing.T) {
	for _, tc := range []struct {
		name   string
		create func(n *node, sio stdio.Config, command string) *Process
	}{
		{"exec", func(n *node, sio stdio.Config, command string) *Process {
			task := n.container("c", forever)
			proctest.Must(t, task.Exec("e", sio, execSpec(t, command)))
			return process(t, task, "e")
		}},
		{"restored container", func(n *node, sio stdio.Config, command string) *Process {
			r := n.request("c", containerSpec(t, "c", command))
			r.Stdio, r.Checkpoint = sio, t.TempDir()
			return n.make(r).init
		}},
	} {
		for _, text := range []string{"", "hello\n"} {
			t.Run(fmt.Sprintf("%s, input %q", tc.name, text), func(t *testing.T) {
				proctest.NoLeakedFDs(t)
				sio := stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t)}
				p := tc.create(newNode(t), sio, "cat; echo end")
				// What is in the fifo stays there while somebody has it open.
				in, err := os.OpenFile(sio.Stdin, os.O_RDWR, 0)
				proctest.Must(t, err)
				defer in.Close()
				_, err = in.WriteString(text)
				proctest.Must(t, err)
				p.CloseStdin()
				stdout := proctest.ReadFifo(t, sio.Stdout)
				_, err = p.Start(proctest.Context(t))
				proctest.Must(t, err)
				proctest.Must(t, in.Close())
				if got, want := stdout.All(), text+"end\n"; got != want {
					t.Errorf("output is %q, want %q", got, want)
				}
				if status := exitOf(t, p); status != 0 {
					t.Errorf("exit status %d", status)
				}
			})
		}
	}
}

// The spec for the OCI runtime contains the size, so that the program never sees another.
func TestSizeOfATerminalBeforeStart(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	for _, tc := range []struct {
		name     string
		terminal bool
		spec     specs.Process
		resize   bool
		want     *specs.Box
	}{
		{"asked for", true, specs.Process{}, true, &specs.Box{Width: 120, Height: 30}},
		{"asked for after the spec was made", true, specs.Process{ConsoleSize: &specs.Box{Width: 1, Height: 2}}, true, &specs.Box{Width: 120, Height: 30}},
		{"in the spec", true, specs.Process{ConsoleSize: &specs.Box{Width: 1, Height: 2}}, false, &specs.Box{Width: 1, Height: 2}},
		{"nowhere", true, specs.Process{}, false, nil},
		{"without a terminal", false, specs.Process{}, true, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			spec, err := json.Marshal(tc.spec)
			proctest.Must(t, err)
			proctest.Must(t, task.Exec("e", stdio.Config{Terminal: tc.terminal}, spec))
			p := process(t, task, "e")
			if tc.resize {
				proctest.Must(t, p.Resize(80, 24))
				proctest.Must(t, p.Resize(120, 30))
			}
			path := filepath.Join(t.TempDir(), "spec")
			proctest.Must(t, p.runner.(*execution).writeSpec(p, path))
			var got specs.Process
			proctest.Must(t, oci.ReadJSON(path, &got))
			if (got.ConsoleSize == nil) != (tc.want == nil) || tc.want != nil && *got.ConsoleSize != *tc.want {
				t.Errorf("the size is %v, want %v", got.ConsoleSize, tc.want)
			}
			_, err = task.Delete(proctest.Context(t), "e")
			proctest.Must(t, err)
		})
	}
}

// The spec cannot always give the terminal's size: a restored container has no such spec, and a
// client may ask for a size while the OCI runtime is at work.
func TestSizeOfATerminalBeforeItIsThere(t *testing.T) {
	proctest.NoLeakedFDs(t)
	out := proctest.Mkfifo(t)
	proctest.ReadFifo(t, out)
	sio := stdio.Config{Stdout: out, Terminal: true}
	p := newProcess("c", "", sio, silence{}, nil)
	proctest.Must(t, p.Resize(120, 30))
	s, err := stdio.OpenConsole(proctest.Context(t), sio, nil)
	proctest.Must(t, err)
	t.Cleanup(s.Close)
	tty := proctest.NewTerminal(t)
	s.Attach(tty)
	p.setStreams(s)
	if width, height := proctest.TerminalSize(t, tty); width != 120 || height != 30 {
		t.Errorf("the size is %d×%d, want 120×30", width, height)
	}
	proctest.Must(t, p.Resize(80, 24))
	if width, height := proctest.TerminalSize(t, tty); width != 80 || height != 24 {
		t.Errorf("the size is %d×%d, want 80×24", width, height)
	}
	s.Close()
	proctest.Must(t, p.Resize(120, 30)) // as a client does that has not heard of the end yet
}
