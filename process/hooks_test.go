package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hookKinds are the kinds of hooks that a sandbox runs, in order.
var hookKinds = []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}

func hookList(h *specs.Hooks, kind string) *[]specs.Hook {
	switch kind {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated, but in use
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "poststart":
		return &h.Poststart
	}
	return &h.Poststop
}

// hookScript notes in a directory that a hook has run, and what it was given.
// Then it does what the rest of its arguments say.
const hookScript = `
PATH=/usr/sbin:/usr/bin:/sbin:/bin
dir=$1 name=$2
echo "$name" >>"$dir/order"
pwd >"$dir/$name.cwd"
cat /proc/$$/cmdline >"$dir/$name.args"
cat /proc/$$/environ >"$dir/$name.env"
for kind in net ipc uts; do readlink /proc/$$/ns/$kind; done >"$dir/$name.namespaces"
[ "$3" = "ignore input" ] || cat >"$dir/$name.state"
eval "$3"
`

// hookLog is what hooks have noted.
type hookLog struct {
	t           *testing.T
	dir, script string
}

func newHookLog(t *testing.T) *hookLog {
	t.Helper()
	return &hookLog{t, t.TempDir(), proctest.Script(t, hookScript)}
}

// hook returns a hook that notes its run under a name, and then runs a command.
func (l *hookLog) hook(name, command string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"hook", l.script, l.dir, name, command}}
}

// spec returns the spec of a pod with one hook of each kind.
func (l *hookLog) spec() *specs.Spec {
	s := sandboxSpec()
	s.Hooks = &specs.Hooks{}
	for _, kind := range hookKinds {
		*hookList(s.Hooks, kind) = []specs.Hook{l.hook(kind, ":")}
	}
	return s
}

func (l *hookLog) read(name string) string {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, name))
	proctest.Must(l.t, err)
	return string(data)
}

// want fails the test unless just these hooks have run, in this order.
func (l *hookLog) want(names ...string) {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, "order"))
	if err != nil && !os.IsNotExist(err) {
		l.t.Fatal(err)
	}
	if got := strings.Fields(string(data)); !slices.Equal(got, names) {
		l.t.Errorf("hooks that have run are %q, want %q", got, names)
	}
}

func (l *hookLog) state(name string) (s specs.State) {
	l.t.Helper()
	proctest.Must(l.t, json.Unmarshal([]byte(l.read(name+".state")), &s))
	return s
}

func kill(t *testing.T, pod *Task) {
	t.Helper()
	proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
	exitOf(t, pod.init)
}

func remove(t *testing.T, pod *Task) {
	t.Helper()
	_, err := pod.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
}

func TestHooksRunInTheirOrder(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n, l := newNode(t), newHookLog(t)
	spec := sandboxSpec()
	spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{l.hook("startContainer", ":")}}
	for _, kind := range hookKinds {
		*hookList(spec.Hooks, kind) = []specs.Hook{l.hook(kind+"1", ":"), l.hook(kind+"2", ":")}
	}
	pod := n.make(n.request("pod", spec))
	ran := []string{"prestart1", "prestart2", "createRuntime1", "createRuntime2", "createContainer1", "createContainer2"}
	l.want(ran...)
	_, err := pod.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	ran = append(ran, "poststart1", "poststart2")
	l.want(ran...)
	kill(t, pod)
	l.want(ran...)
	remove(t, pod)
	l.want(append(ran, "poststop1", "poststop2")...)
}

func TestHooksReadTheState(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Version = "1.1.0"
	spec.Annotations["an.example/annotation"] = "its \"value\"\n"
	pod := n.pod(spec)
	kill(t, pod)
	remove(t, pod)
	for kind, want := range map[string]specs.State{
		"prestart":        {Status: specs.StateCreating, Pid: podTID},
		"createRuntime":   {Status: specs.StateCreating, Pid: podTID},
		"createContainer": {Status: specs.StateCreating, Pid: podTID},
		"poststart":       {Status: specs.StateRunning, Pid: podTID},
		"poststop":        {Status: specs.StateStopped},
	} {
		want.Version, want.ID, want.Bundle, want.Annotations = "1.1.0", "pod", pod.Bundle, spec.Annotations
		if got := l.state(kind); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", kind, got, want)
		}
	}
}

func TestHooksGetWhatTheSpecSays(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	t.Setenv("OF_THE_SHIM", "no hook's business")
	args := []string{"a  b", "$(c) \"'", "", "last\n"}
	for _, kind := range hookKinds {
		hook := &(*hookList(spec.Hooks, kind))[0]
		hook.Args = append(hook.Args, args...)
		if kind != "prestart" { // that has no environment at all
			hook.Env = []string{"KIND=" + kind, "SPACE=a  b "}
		}
	}
	pod := n.pod(spec)
	kill(t, pod)
	remove(t, pod)
	for _, kind := range hookKinds {
		hook := (*hookList(spec.Hooks, kind))[0]
		if got, want := l.read(kind+".args"), strings.Join(hook.Args, "\x00")+"\x00"; got != want {
			t.Errorf("%s: the arguments are %q, want %q", kind, got, want)
		}
		want := ""
		for _, e := range hook.Env {
			want += e + "\x00"
		}
		if got := l.read(kind + ".env"); got != want {
			t.Errorf("%s: the environment is %q, want %q", kind, got, want)
		}
		if got := l.read(kind + ".cwd"); got != pod.Bundle+"\n" {
			t.Errorf("%s: the directory is %q, want %s", kind, got, pod.Bundle)
		}
	}
}

func TestHookWithoutArgumentsIsRunByItsPath(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	hook, ran := bareHook(t)
	spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{hook}}
	n.pod(spec)
	if got, want := ran(), hook.Path+" 0\n"; got != want {
		t.Errorf("it was run as %q, want %q", got, want)
	}
}

// bareHook returns a hook without arguments. The returned function gives the name that the hook
// was run under and the number of its arguments, or "" if it has not run.
func bareHook(t *testing.T) (hook specs.Hook, ran func() string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	hook.Path = filepath.Join(t.TempDir(), "hook")
	proctest.Must(t, os.WriteFile(hook.Path, []byte("#!/bin/sh\necho \"$0 $#\" >"+out+"\n"), 0o700))
	return hook, func() string {
		data, err := os.ReadFile(out)
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		return string(data)
	}
}

func TestHooksRunInTheirNamespaces(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	task := n.pod(l.spec())
	links := func(tid int) (lines string) {
		for _, ns := range pod.NamespaceTypes {
			link, err := os.Readlink(proctest.ThreadNS(tid, ns.Proc))
			proctest.Must(t, err)
			lines += link + "\n"
		}
		return lines
	}
	inside, host := links(podTID), links(os.Getpid())
	kill(t, task)
	remove(t, task)
	for _, kind := range hookKinds {
		want := host
		if kind == "createContainer" {
			want = inside
		}
		if got := l.read(kind + ".namespaces"); got != want {
			t.Errorf("%s ran in %q, want %q", kind, got, want)
		}
	}
}

func TestHookThatFailsTheCreate(t *testing.T) {
	for i, kind := range hookKinds[:3] {
		t.Run(kind, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n, l := newNode(t), newHookLog(t)
			spec := l.spec()
			spec.Linux.CgroupsPath = containerSpec(t, "pod", "").Linux.CgroupsPath
			*hookList(spec.Hooks, kind) = []specs.Hook{
				l.hook("good", ":"), l.hook("bad", "echo some words; echo more of them >&2; exit 3"), l.hook("late", ":"),
			}
			r := n.request("pod", spec)
			nothingCreated(t, n, r, kind, "/bin/sh", "exit status 3", "some words\nmore of them")
			l.want(append(slices.Clone(hookKinds[:i]), "good", "bad", "poststop")...)
			if st := l.state("poststop"); st.Status != specs.StateStopped || st.Pid != 0 {
				t.Errorf("state at poststop is %+v", st)
			}
			_, err := cleanUp(t, r.Bundle, "pod")
			proctest.Must(t, err)
			l.want(append(slices.Clone(hookKinds[:i]), "good", "bad", "poststop")...)
		})
	}
}

// nothingCreated fails the test unless the create fails with an error that holds
// these texts, and leaves nothing.
func nothingCreated(t *testing.T, n *node, r CreateRequest, texts ...string) error {
	t.Helper()
	task, err := n.Create(proctest.Context(t), r)
	if err == nil {
		n.adopt(task)
		t.Error("no error")
		return nil
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error does not say %q: %v", text, err)
		}
	}
	if !proctest.AtHome(t, podTID) {
		t.Error("the thread is not at home")
	}
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	if files, err := os.ReadDir(r.Bundle); err != nil || len(files) != 1 {
		t.Errorf("the bundle holds %v, error %v", files, err)
	}
	next := n.pod(sandboxSpec()) // the place is free
	kill(t, next)
	remove(t, next)
	return err
}

func TestHookThatRunsPastItsTimeoutIsKilled(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	hook := l.hook("slow", `echo before; sleep 1000 & echo $! >"$dir/child"; echo $$ >"$dir/pid"; wait`)
	timeout := 1
	hook.Timeout = &timeout
	spec.Hooks.CreateRuntime = []specs.Hook{hook}
	start := time.Now()
	nothingCreated(t, n, n.request("pod", spec), "createRuntime", "past its timeout of 1s", "before")
	if took := time.Since(start); took < time.Second || took > proctest.Deadline/2 {
		t.Errorf("it took %v", took)
	}
	l.want("prestart", "slow", "poststop")
	for _, name := range []string{"pid", "child"} {
		pid := l.pid(name)
		proctest.Eventually(t, name+" has ended", func() bool { return proctest.ProcessState(pid) == "" })
	}
}

// pid returns the pid that a hook has written to a file.
func (l *hookLog) pid(name string) int {
	l.t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(l.read(name)))
	proctest.Must(l.t, err)
	return pid
}

func TestHookThatEndsInTimeIsNotKilled(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	timeout := 1000
	for _, kind := range hookKinds {
		(*hookList(spec.Hooks, kind))[0].Timeout = &timeout
	}
	pod := n.pod(spec)
	kill(t, pod)
	remove(t, pod)
	l.want(hookKinds...)
}

// A network plugin may leave a daemon behind that has inherited its streams.
func TestProcessThatAHookLeavesDoesNotHoldItUp(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Hooks.CreateRuntime = []specs.Hook{l.hook("daemon", `sleep 1000 & echo $! >"$dir/pid"`)}
	start := time.Now()
	n.pod(spec)
	if took := time.Since(start); took > proctest.Deadline/2 {
		t.Errorf("it took %v", took)
	}
	pid := l.pid("pid")
	if proctest.ProcessState(pid) == "" {
		t.Error("it was killed")
	}
	proctest.Must(t, unix.Kill(pid, unix.SIGKILL))
	proctest.Eventually(t, "the orphan is reaped", func() bool { return proctest.ProcessState(pid) == "" })
	l.want("prestart", "daemon", "createContainer", "poststart")
}

func TestHookNeedNotReadItsInput(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Annotations["long"] = strings.Repeat("x", 1<<18) // more than a pipe holds
	spec.Hooks.CreateRuntime = []specs.Hook{{Path: "/bin/true"}}
	n.pod(spec)
	if got := l.state("createContainer").Annotations["long"]; got != spec.Annotations["long"] {
		t.Errorf("one that does read it gets %d bytes", len(got))
	}
}

func TestErrorHoldsOnlyTheBeginningOfTheOutput(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Hooks.CreateRuntime = []specs.Hook{l.hook("loud", "echo first; yes | head -c 1000000; exit 1")}
	err := nothingCreated(t, n, n.request("pod", spec), "first")
	if err != nil && len(err.Error()) > 10_000 {
		t.Errorf("the error has %d bytes", len(err.Error()))
	}
}

func TestFailingPoststartHookEndsTheSandbox(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Hooks.Poststart = []specs.Hook{l.hook("bad", "echo some words; exit 4"), l.hook("late", ":")}
	pod := n.make(n.request("pod", spec))
	_, err := pod.init.Start(proctest.Context(t))
	if err == nil || !strings.Contains(err.Error(), "some words") || !strings.Contains(err.Error(), "poststart") {
		t.Errorf("got error %v", err)
	}
	if status := exitOf(t, pod.init); status != 137 {
		t.Errorf("exit status %d, want 137", status)
	}
	if !proctest.AtHome(t, podTID) {
		t.Error("the thread has not come back")
	}
	remove(t, pod)
	l.want("prestart", "createRuntime", "createContainer", "bad", "poststop")
	if got, want := n.events.all(), []string{"exited 137 pod"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestFailingPoststopHooksStopNobody(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Hooks.Poststop = []specs.Hook{{Path: "/no/such/hook"}, l.hook("bad", "exit 5"), l.hook("good", ":")}
	pod := n.pod(spec)
	kill(t, pod)
	remove(t, pod)
	l.want("prestart", "createRuntime", "createContainer", "poststart", "bad", "good")
	if st := pod.init.Status(); st.State != Deleted {
		t.Errorf("the sandbox is %s", st.State)
	}
	n.pod(sandboxSpec())
}

func TestPoststopHooksRunOnce(t *testing.T) {
	for _, deleted := range []bool{true, false} {
		t.Run(fmt.Sprintf("deleted %t", deleted), func(t *testing.T) {
			n, l := newNode(t), newHookLog(t)
			pod := n.pod(l.spec())
			if deleted {
				kill(t, pod)
				remove(t, pod)
				l.want(hookKinds...)
			} else {
				l.want(hookKinds[:4]...)
			}
			for range 2 {
				_, err := cleanUp(t, pod.Bundle, "pod")
				proctest.Must(t, err)
				l.want(hookKinds...)
			}
			want := specs.State{ID: "pod", Status: specs.StateStopped, Bundle: pod.Bundle, Annotations: sandboxSpec().Annotations}
			if got := l.state("poststop"); !reflect.DeepEqual(got, want) {
				t.Errorf("the state is %+v, want %+v", got, want)
			}
		})
	}
}

func TestFailingPoststopHooksStopNobodyInCleanUp(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Linux.CgroupsPath = containerSpec(t, "pod", "").Linux.CgroupsPath
	spec.Hooks.Poststop = []specs.Hook{{Path: "/no/such/hook"}, l.hook("bad", "exit 5"), l.hook("good", ":")}
	pod := n.pod(spec)
	st, _ := cleanUp(t, pod.Bundle, "pod") // whether it tells of them or not
	if st.Exit.Status != 137 {
		t.Errorf("got %+v", st)
	}
	l.want("prestart", "createRuntime", "createContainer", "poststart", "bad", "good")
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}

func TestHooksThatCanNeverRunAreRefused(t *testing.T) {
	for _, kind := range hookKinds {
		for text, change := range map[string]func(*specs.Hook){
			`"sh" is not absolute`:         func(h *specs.Hook) { h.Path = "sh" },
			`"" is not absolute`:           func(h *specs.Hook) { h.Path = "" },
			"the timeout of hook /bin/sh ": func(h *specs.Hook) { h.Timeout = new(int) },
			" is -1 s":                     func(h *specs.Hook) { past := -1; h.Timeout = &past },
		} {
			n, l := newNode(t), newHookLog(t)
			spec := l.spec()
			spec.Linux.CgroupsPath = containerSpec(t, "pod", "").Linux.CgroupsPath
			change(&(*hookList(spec.Hooks, kind))[0])
			err := nothingCreated(t, n, n.request("pod", spec), text)
			proctest.WantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
			l.want()
		}
	}
}

// The OCI runtime runs the hooks of containers.
func TestHooksOfContainersAreNotRun(t *testing.T) {
	n := newNode(t)
	spec := containerSpec(t, "c", forever)
	spec.Hooks = &specs.Hooks{}
	hook, ran := bareHook(t)
	for _, kind := range hookKinds {
		*hookList(spec.Hooks, kind) = []specs.Hook{hook}
	}
	task := n.make(n.request("c", spec))
	_, err := task.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	kill(t, task)
	remove(t, task)
	if ran() != "" {
		t.Error("a hook was run")
	}
}

func TestCreateThatIsGivenUpEndsTheHook(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	spec := l.spec()
	spec.Hooks.CreateRuntime = []specs.Hook{l.hook("slow", `echo $$ >"$dir/new"; mv "$dir/new" "$dir/pid"; exec sleep 1000`)}
	r := n.request("pod", spec)
	ctx, giveUp := context.WithCancel(proctest.Context(t))
	done := make(chan error, 1)
	go func() {
		task, err := n.Create(ctx, r)
		if err == nil {
			n.adopt(task)
		}
		done <- err
	}()
	proctest.Eventually(t, "the hook runs", func() bool {
		_, err := os.Stat(filepath.Join(l.dir, "pid"))
		return err == nil
	})
	giveUp()
	proctest.WantKind(t, <-done, errdefs.IsCanceled, "canceled")
	l.want("prestart", "slow", "poststop")
	if pid := l.pid("pid"); proctest.ProcessState(pid) != "" {
		t.Error("the hook still runs")
	}
}

// A client that has gone must not keep a network plugin from cleaning up: nobody
// would do it later.
func TestPoststopHooksRunForAClientThatHasGone(t *testing.T) {
	n, l := newNode(t), newHookLog(t)
	pod := n.pod(l.spec())
	kill(t, pod)
	ctx, giveUp := context.WithCancel(context.Background())
	giveUp()
	if _, err := pod.Delete(ctx, ""); err != nil {
		remove(t, pod)
	}
	l.want(hookKinds...)
}

// A hook that hangs must not keep a sandbox from being deleted. A hook with a timeout gets the time that it asks for.
func TestPoststopHooksThatTakeTime(t *testing.T) {
	l := newHookLog(t)
	n := newNode(t)
	for command, limit := range map[string]time.Duration{forever: 50 * time.Millisecond, `sleep 0.3; echo end >>"$dir/order"`: 0} {
		spec := sandboxSpec()
		hook := l.hook("hook", command)
		if limit == 0 {
			timeout := 100
			hook.Timeout = &timeout
		}
		spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{hook}}
		task := n.pod(spec)
		task.body.(*sandbox).hooks.Patience = limit
		kill(t, task)
		remove(t, task)
		if limit == 0 {
			l.want("hook", "end")
		}
		proctest.Must(t, os.RemoveAll(filepath.Join(l.dir, "order")))
	}
}
