package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var (
	// One reaper serves all tests: a second one would take the first one's children for orphans.
	reaper *reap.Reaper
	// podThread is where sandboxes live. It is not the main thread, so paths to its namespaces contain its tid.
	podThread *pod.Thread
	podTID    int
)

// The main thread is the tests' own, so that it is not taken for a pod's: /proc/self/ns shall be the host's.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	proctest.BecomeSubreaper()
	reaper = reap.NewReaper(context.Background())
	proctest.HoldReaper = reaper.Hold
	podThread, podTID = startThread()
	code := m.Run()
	if left := cgroupsLeft(); len(left) > 0 {
		fmt.Println("cgroups left behind:", left)
		code = 1
	}
	os.Exit(code)
}

// startThread starts a thread that serves for ever, and returns it with its tid.
func startThread() (*pod.Thread, int) {
	thread, tid := pod.NewMainThread(), make(chan int)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		thread.Serve()
	}()
	return thread, <-tid
}

func cgroupPrefix() string { return fmt.Sprintf("pause-process-test-%d-", os.Getpid()) }

func cgroupsLeft() []string {
	v1, _ := filepath.Glob("/sys/fs/cgroup/*/" + cgroupPrefix() + "*")
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + cgroupPrefix() + "*")
	return append(v1, v2...)
}

// recorder records the events in order, as lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, strings.TrimRight(fmt.Sprintf(format, args...), " "))
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

func (r *recorder) Started(task, exec string, _ int) { r.add("started %s %s", task, exec) }

func (r *recorder) Exited(task, exec string, _ int, e Exit) {
	r.add("exited %d %s %s", e.Status, task, exec)
}

func (r *recorder) OOM(task string) { r.add("oom %s", task) }

// node is a supervisor with its OCI runtime, as one shim process has them.
type node struct {
	*Supervisor
	t      *testing.T
	events *recorder
	// control is the directory of the files that tell the OCI runtime what to do; see testdata/runtime.sh.
	control string
	options oci.Options
}

func newNode(t *testing.T) *node {
	t.Helper()
	events, dir := &recorder{}, t.TempDir()
	n := &node{
		Supervisor: NewSupervisor("test", podThread, reaper, events),
		t:          t,
		events:     events,
		control:    dir,
		options:    oci.Options{BinaryName: filepath.Join(dir, "runtime.sh"), Root: filepath.Join(dir, "root")},
	}
	script, err := filepath.Abs("testdata/runtime.sh")
	proctest.Must(t, err)
	proctest.Must(t, os.Symlink(script, n.options.BinaryName))
	return n
}

// tell puts a file beside the OCI runtime.
func (n *node) tell(name, text string) {
	n.t.Helper()
	proctest.Must(n.t, os.WriteFile(filepath.Join(n.control, name), []byte(text), 0o600))
}

func (n *node) untell(name string) {
	n.t.Helper()
	proctest.Must(n.t, os.Remove(filepath.Join(n.control, name)))
}

func (n *node) told(name string) string {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.control, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// gate makes the OCI runtime stop at a verb. The first function returned waits until it has stopped, the second lets it continue.
func (n *node) gate(verb string) (arrived func() (open func())) {
	n.t.Helper()
	path := filepath.Join(n.control, "gate-"+verb)
	proctest.Must(n.t, unix.Mkfifo(path, 0o600))
	return func() func() {
		n.t.Helper()
		var fd int
		proctest.Eventually(n.t, "the OCI runtime is at "+verb, func() (ok bool) {
			var err error
			fd, err = unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			return err == nil
		})
		proctest.Must(n.t, os.Remove(path))
		return func() { unix.Close(fd) }
	}
}

// knowsNothing fails the test if the OCI runtime has state of any container.
func (n *node) knowsNothing() {
	n.t.Helper()
	left, err := filepath.Glob(filepath.Join(n.options.Root, "*", "*"))
	proctest.Must(n.t, err)
	if len(left) > 0 {
		n.t.Errorf("the OCI runtime still has %v", left)
	}
}

// bundle makes a bundle with a config.json of what v encodes to.
func bundle(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	proctest.Must(t, err)
	return rawBundle(t, string(data))
}

func rawBundle(t *testing.T, config string) string {
	t.Helper()
	dir := t.TempDir()
	proctest.Must(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600))
	return dir
}

const forever = "exec sleep 100000"

var containers atomic.Int64

func containerSpec(t *testing.T, id, command string) *specs.Spec {
	t.Helper()
	return &specs.Spec{
		Process: &specs.Process{Args: []string{proctest.Script(t, command)}},
		Linux:   &specs.Linux{CgroupsPath: fmt.Sprintf("/%s%s-%d", cgroupPrefix(), id, containers.Add(1))},
	}
}

func execSpec(t *testing.T, command string) []byte {
	t.Helper()
	spec, err := json.Marshal(specs.Process{Args: []string{proctest.Script(t, command)}})
	proctest.Must(t, err)
	return spec
}

// request asks for a task, of a sandbox or of a container that the script is the init of.
func (n *node) request(id string, spec *specs.Spec) CreateRequest {
	n.t.Helper()
	return CreateRequest{ID: id, Bundle: bundle(n.t, spec), Options: n.options}
}

// make creates a task that is removed at the end of the test, if it still exists then.
func (n *node) make(r CreateRequest) *Task {
	n.t.Helper()
	task, err := n.Create(proctest.Context(n.t), r)
	proctest.Must(n.t, err)
	n.adopt(task)
	return task
}

func (n *node) adopt(task *Task) {
	task.Watch()
	n.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), proctest.Deadline)
		defer cancel()
		if task.init.Status().State == Deleted {
			return
		}
		_ = task.Kill("", unix.SIGKILL, true)
		if task.init.Status().Pid != 0 {
			_, _ = task.init.Wait(ctx)
		}
		if _, err := task.Delete(ctx, ""); err != nil {
			n.t.Errorf("cannot clean up: %v", err)
		}
	})
}

// container makes a container without streams, and starts it.
func (n *node) container(id, command string) *Task {
	n.t.Helper()
	task := n.make(n.request(id, containerSpec(n.t, id, command)))
	_, err := task.init.Start(proctest.Context(n.t))
	proctest.Must(n.t, err)
	return task
}

func exitOf(t *testing.T, p *Process) uint32 {
	t.Helper()
	exit, err := p.Wait(proctest.Context(t))
	proctest.Must(t, err)
	return exit.Status
}

func process(t *testing.T, task *Task, id string) *Process {
	t.Helper()
	p, err := task.Process(id)
	proctest.Must(t, err)
	return p
}

// hostPath is the path of a namespace of the host, of a process that is not the shim.
func hostPath(t *testing.T, name string) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/ns/%s", sleeper(t, nil), name)
}

// sleeper starts a process that ends with the test. The reaper is kept from it.
func sleeper(t *testing.T, attr *unix.SysProcAttr) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "100000")
	cmd.SysProcAttr = attr
	release := reaper.Hold()
	err := cmd.Start()
	if err == nil {
		child := reaper.Claim(cmd.Process.Pid)
		t.Cleanup(func() {
			_ = child.Signal(unix.SIGKILL)
			_, _ = child.Wait()
			_ = cmd.Process.Release()
		})
	}
	release()
	proctest.Must(t, err)
	return cmd.Process.Pid
}

// run runs a program to its end. The reaper is kept from it.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	defer reaper.Hold()()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
