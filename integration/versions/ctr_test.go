package versions

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	_ "github.com/containerd/containerd/api/events" // so that events can be decoded
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

func testCtrRun(t *testing.T) {
	runCases(t, []testCase{
		{"output and exit code", testCtrExitCode},
		{"exec", testCtrExec},
		{"kill", testCtrKill},
		{"pause and resume", testCtrPause},
		{"processes and metrics", testCtrMetrics},
		{"shim is killed", testCtrShimKilled},
		{"containerd is killed", testCtrContainerdKilled},
	}, "runc", "pause", sharedShim)
	runCases(t, []testCase{{"pod by hand", testPodByHand}}, "pause", sharedShim)
}

var containerNumber atomic.Int64

// container is what is made by `ctr run`.
type container struct {
	t    *testing.T
	ctx  context.Context
	id   string
	shim string
}

func newContainer(t *testing.T, shim string) *container {
	t.Helper()
	return &container{t, testContext(t), fmt.Sprintf("c%d", containerNumber.Add(1)), shim}
}

func (c *container) ctr(args ...string) string {
	c.t.Helper()
	out, err := theNode.Ctr(c.ctx, theNode.ID, args...)
	must(c.t, err)
	return out
}

// ctrCode expects an exit code of ctr, which is that of what it runs.
func (c *container) ctrCode(code int, args ...string) string {
	c.t.Helper()
	out, err := theNode.Ctr(c.ctx, theNode.ID, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		c.t.Errorf("ctr %s: %v, not exit code %d", strings.Join(args, " "), err, code)
	}
	return out
}

// runArgs are those of `ctr run`, with flags first and the command last.
func (c *container) runArgs(flags []string, command ...string) []string {
	runtime := map[string]string{"runc": node.StockType, "pause": node.PauseType, sharedShim: node.SharedType}[c.shim]
	args := append([]string{"run", "--runtime", runtime, "--snapshotter", theNode.Snapshotter}, flags...)
	return append(append(args, theNode.BusyboxImage, c.id), command...)
}

// start runs a container in the background. FIFOs for its output would be ctr's, to
// stay if the task is not deleted by ctr.
func (c *container) start(command ...string) {
	c.t.Helper()
	c.ctr(c.runArgs([]string{"--detach", "--null-io"}, command...)...)
}

// remove deletes a task that has ended, of which the exit code is expected, and the
// container.
func (c *container) remove(code int) {
	c.t.Helper()
	expectEqual(c.t, "exit code", c.exitCode(), code)
	c.ctr("task", "delete", c.id)
	c.ctr("container", "delete", c.id)
	expectEqual(c.t, "task after its removal", c.status(), "")
}

// task is the line of `ctr task ls`: id, pid and status; without a task it is nil.
func (c *container) task() []string {
	c.t.Helper()
	for line := range strings.Lines(c.ctr("task", "ls")) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == c.id {
			return fields
		}
	}
	return nil
}

func (c *container) status() string {
	c.t.Helper()
	if task := c.task(); task != nil {
		return task[2]
	}
	return ""
}

func (c *container) pid() int {
	c.t.Helper()
	task := c.task()
	if task == nil {
		c.t.Fatalf("no task %s", c.id)
	}
	pid, err := strconv.Atoi(task[1])
	must(c.t, err)
	return pid
}

// exitCode is that of a task that has ended, which ctr does not show.
func (c *container) exitCode() int {
	c.t.Helper()
	loaded, err := theNode.Client().LoadContainer(c.ctx, c.id)
	must(c.t, err)
	task, err := loaded.Task(c.ctx, nil)
	must(c.t, err)
	status, err := task.Status(c.ctx)
	must(c.t, err)
	return int(status.ExitStatus)
}

func (c *container) expectStatus(want string) {
	c.t.Helper()
	eventually(c.t, "task "+c.id+" is "+want, func() bool { return c.status() == want })
}

func testCtrExitCode(t *testing.T, shim string) {
	c := newContainer(t, shim)
	events := c.subscribe()
	out := c.ctrCode(7, c.runArgs([]string{"--rm"}, "sh", "-c", "echo from inside; exit 7")...)
	expectEqual(t, "output", out, "from inside\n")
	events.expect("create", "start", "exit", "delete")
}

func testCtrExec(t *testing.T, shim string) {
	c := newContainer(t, shim)
	events := c.subscribe()
	c.start("sleep", "1000")
	out := c.ctrCode(3, "task", "exec", "--exec-id", "e", c.id, "sh", "-c", "echo from exec; exit 3")
	expectEqual(t, "output", out, "from exec\n")
	c.ctr("task", "kill", "--signal", "SIGKILL", c.id)
	c.expectStatus("STOPPED")
	c.remove(137)
	events.expect("create", "start", "exec-added", "exec-started", "exit", "exit", "delete")
}

func testCtrKill(t *testing.T, shim string) {
	c := newContainer(t, shim)
	c.start("sh", "-c", "trap 'exit 9' TERM; touch /up; while :; do sleep 0.1; done")
	eventually(t, "trap is set", func() bool {
		_, err := theNode.Ctr(c.ctx, theNode.ID, "task", "exec", "--exec-id", "up", c.id, "ls", "/up")
		return err == nil
	})
	expectEqual(t, "status", c.status(), "RUNNING")
	c.ctr("task", "kill", "--signal", "SIGTERM", c.id)
	c.expectStatus("STOPPED")
	c.remove(9)
}

func testCtrPause(t *testing.T, shim string) {
	c := newContainer(t, shim)
	events := c.subscribe()
	c.start("sleep", "1000")
	c.ctr("task", "pause", c.id)
	c.expectStatus("PAUSED")
	c.ctr("task", "resume", c.id)
	c.expectStatus("RUNNING")
	c.ctr("task", "kill", "--signal", "SIGKILL", c.id)
	c.expectStatus("STOPPED")
	c.remove(137)
	events.expect("create", "start", "paused", "resumed", "exit", "delete")
}

func testCtrMetrics(t *testing.T, shim string) {
	c := newContainer(t, shim)
	c.start("sleep", "1000")
	if ps := c.ctr("task", "ps", c.id); !strings.Contains(ps, strconv.Itoa(c.pid())) {
		t.Errorf("pid %d is not among the processes:\n%s", c.pid(), ps)
	}
	if shim == "runc" { // whose start may return before the program is executed; until then there are threads of runc
		eventually(t, "runc has executed the program", func() bool { return c.pidsCurrent() == "1" })
	}
	expectEqual(t, "pids.current", c.pidsCurrent(), "1")
	c.ctr("task", "kill", "--signal", "SIGKILL", c.id)
	c.expectStatus("STOPPED")
	c.remove(137)
}

// pidsCurrent is a line of the task's metrics; empty if there is none.
func (c *container) pidsCurrent() string {
	c.t.Helper()
	for line := range strings.Lines(c.ctr("task", "metrics", c.id)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "pids.current" {
			return fields[1]
		}
	}
	return ""
}

func testCtrShimKilled(t *testing.T, shim string) {
	c := newContainer(t, shim)
	events := c.subscribe()
	c.start("sleep", "1000")
	init := c.pid()
	pid, err := theNode.ShimPid(theNode.ID, c.id)
	must(t, err)
	must(t, unix.Kill(pid, unix.SIGKILL))
	events.expect("create", "start", "exit", "delete")
	eventually(t, "init has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	eventually(t, "task is gone", func() bool { return c.status() == "" })
	c.ctr("container", "delete", c.id)
	forgiveSocket(t, shim)
}

// The task ends while containerd is away, and its exit code is kept.
func testCtrContainerdKilled(t *testing.T, shim string) {
	stays, ends := newContainer(t, shim), newContainer(t, shim)
	stays.start("sleep", "1000")
	ends.start("sleep", "1000")
	pid, init := stays.pid(), ends.pid()
	must(t, theNode.Kill())
	if shim != "runc" { // see the README, "What differs from the stock shim"
		must(t, unix.Kill(init, unix.SIGKILL))
		eventually(t, "init has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	}
	must(t, theNode.Restart(stays.ctx))
	if shim == "runc" {
		must(t, unix.Kill(init, unix.SIGKILL))
	}
	ends.expectStatus("STOPPED")
	ends.remove(137)
	expectEqual(t, "pid", stays.pid(), pid)
	stays.ctr("task", "exec", "--exec-id", "e", stays.id, "true")
	stays.ctr("task", "kill", "--signal", "SIGKILL", stays.id)
	stays.expectStatus("STOPPED")
	stays.remove(137)
}

// A pod that is made by annotations: the shim that runs is found by `start`.
func testPodByHand(t *testing.T, shim string) {
	sandbox, app := newContainer(t, shim), newContainer(t, shim)
	sandbox.startInPod(sandbox.id, "sandbox")
	app.startInPod(sandbox.id, "container", "sleep", "1000")
	shimPid, err := theNode.ShimPid(theNode.ID, sandbox.id)
	must(t, err)
	expectSandboxIn(t, sandbox.pid(), shimPid, shim)
	for _, kind := range []string{"net", "ipc", "uts"} {
		expectEqual(t, kind, namespace(t, app.pid(), kind), namespace(t, sandbox.pid(), kind))
	}
	for _, c := range []*container{app, sandbox} {
		c.ctr("task", "kill", "--signal", "SIGKILL", c.id)
		c.expectStatus("STOPPED")
		c.remove(137)
	}
}

// startInPod runs a container that annotations make a part of a pod.
func (c *container) startInPod(pod, kind string, command ...string) {
	c.t.Helper()
	flags := []string{
		"--detach", "--null-io",
		"--annotation", "io.kubernetes.cri.sandbox-id=" + pod,
		"--annotation", "io.kubernetes.cri.container-type=" + kind,
	}
	c.ctr(c.runArgs(flags, command...)...)
}

// eventLog is what containerd publishes about the task of one container: the last
// words of the topics, in order.
type eventLog struct {
	c   *container
	mu  sync.Mutex
	all []string
}

// subscribe records the task events of a container from now on.
func (c *container) subscribe() *eventLog {
	l := &eventLog{c: c}
	theNode.Subscribe(c.ctx, l.add, theNode.TaskEvents())
	return l
}

func (l *eventLog) add(e *events.Envelope) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		l.c.t.Errorf("event %s: %v", e.Topic, err)
		return
	}
	if of, ok := v.(interface{ GetContainerID() string }); ok && of.GetContainerID() == l.c.id {
		l.mu.Lock()
		l.all = append(l.all, path.Base(e.Topic))
		l.mu.Unlock()
	}
}

func (l *eventLog) get() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// expect waits until these are all events. The stock shim may end before it has
// sent those of its task's end.
func (l *eventLog) expect(want ...string) {
	l.c.t.Helper()
	without := func(words []string) []string {
		if l.c.shim != "runc" {
			return words
		}
		return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "exit" || w == "delete" })
	}
	defer func() {
		if l.c.t.Failed() {
			l.c.t.Logf("events: %s\nexpected: %s", strings.Join(l.get(), ", "), strings.Join(want, ", "))
		}
	}()
	eventually(l.c.t, "all events", func() bool { return slices.Equal(without(l.get()), without(want)) })
}
