package installer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/cmd/containerd-shim-pause-install/node"
)

// installEnv tells this program to be an installer, and how, as JSON.
const installEnv = "PAUSE_TEST_INSTALLER"

type plan struct {
	Options node.Options
	Remove  bool
	DieAt   int // the number of the step after which it kills itself; 0 never
}

// installAndDie is the installer, as a process that ends by SIGKILL at a step of its work.
func installAndDie() int {
	p := plan{Options: node.Options{Out: os.Stdout}}
	if err := json.Unmarshal([]byte(os.Getenv(installEnv)), &p); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	step := 0
	p.Options.Out = io.Discard
	p.Options.Reached = func(name string) {
		if step++; step == p.DieAt {
			fmt.Println(name)
			unix.Kill(os.Getpid(), unix.SIGKILL)
		}
	}
	action := node.Install
	if p.Remove {
		action = node.Remove
	}
	if err := action(context.Background(), &p.Options); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// killed runs the installer, or the removal, until it has done a number of steps. It returns the
// name of the last, or "" if the work was done before.
func (h *host) killed(remove bool, step int) string {
	h.Helper()
	o := h.options(nil)
	o.Out = nil
	text, err := json.Marshal(plan{Options: *o, Remove: remove, DieAt: step})
	h.must(err)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), installEnv+"="+string(text))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return ""
	}
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		h.Fatalf("it has ended by %v: %s", err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// clean is a description of a host without times: a file that is written again has another.
func clean(snapshot map[string]string) map[string]string {
	snapshot = maps.Clone(snapshot)
	for name, text := range snapshot {
		if strings.HasPrefix(name, "/var/lib/containerd-shim-pause-v2/") {
			delete(snapshot, name)
			continue
		}
		snapshot[name], _, _ = strings.Cut(text, " 20") // of the year
	}
	return snapshot
}

func TestKilledAfterEachStep(t *testing.T) {
	for _, l := range []struct {
		layout
		release string
	}{
		{layout{name: "own file", config: map[string]string{plainConfig: "imports = []\n" + v3}}, newest},
		{layouts[len(layouts)-3], newest}, // k3s
	} {
		t.Run(l.name, func(t *testing.T) {
			h := l.host(t, l.release)
			before := h.snapshot()
			h.install()
			installed := clean(h.snapshot())
			dump := h.dump()
			h.remove()
			h.expectSame("after the removal", before)

			expectClean := func(when string) { h.expectSame(when, before) }
			expectInstalled := func(when string) {
				expectSameFiles(t, when, installed, clean(h.snapshot()))
				if h.dump() != dump {
					t.Errorf("%s: the configuration is another", when)
				}
			}
			var installing, removing []string
			for step := 1; !t.Failed(); step++ {
				at := h.killed(false, step)
				h.remove()
				expectClean("installation killed after " + at + ", then removed")
				h.killed(false, step)
				h.install()
				expectInstalled("installation killed after " + at + ", then repeated")

				back := h.killed(true, step)
				h.install()
				expectInstalled("removal killed after " + back + ", then installed")
				h.killed(true, step)
				h.remove()
				expectClean("removal killed after " + back + ", then repeated")
				if at == "" && back == "" {
					break
				}
				installing, removing = append(installing, at), append(removing, back)
			}
			t.Logf("installation was killed after each of: %s", strings.Join(installing, "; "))
			t.Logf("removal was killed after each of: %s", strings.Join(removing, "; "))
			if !slices.Contains(installing, "restart") || !slices.Contains(removing, "restart") {
				t.Error("the restarts were not among them")
			}
		})
	}
}

func expectSameFiles(t *testing.T, when string, want, got map[string]string) {
	t.Helper()
	for _, d := range difference(want, got) {
		t.Errorf("%s: %s", when, d)
	}
}

func expectMatch(t *testing.T, text, pattern string, times int) {
	t.Helper()
	if found := regexp.MustCompile(pattern).FindAllString(text, -1); len(found) != times {
		t.Errorf("%s: %d times, want %d, in\n%s", pattern, len(found), times, text)
	}
}

// withProgram is an action with another program to install.
func withProgram(path string, action func(context.Context, *node.Options) error) func(context.Context, *node.Options) error {
	return func(ctx context.Context, o *node.Options) error {
		o.Program = path
		return action(ctx, o)
	}
}
