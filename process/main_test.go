package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// deadline is how long a test waits for what must happen; it is never what a test measures. PAUSE_TEST_PATIENCE says
// by how much the machine may be slower than usual.
var deadline = patience() * time.Minute

func patience() time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("PAUSE_TEST_PATIENCE")); err == nil {
		return time.Duration(factor)
	}
	return 1
}

var (
	// One reaper serves all tests: a second one would take the first one's children for orphans.
	reaper *Reaper
	// podThread is where sandboxes live. It is not the main thread, so paths to its namespaces contain its tid.
	podThread *Thread
	podTID    int
)

// The main thread is the tests' own, so that it is not taken for a pod's: /proc/self/ns shall be the host's.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// The runtime's poller keeps descriptors of its own once it is in use.
	r, w, _ := os.Pipe()
	r.Close()
	w.Close()
	reaper = NewReaper(context.Background())
	podThread, podTID = startThread()
	code := m.Run()
	if left := cgroupsLeft(); len(left) > 0 {
		fmt.Println("cgroups left behind:", left)
		code = 1
	}
	os.Exit(code)
}

// startThread starts a thread that serves for ever, and returns it with its tid.
func startThread() (*Thread, int) {
	thread, tid := NewMainThread(), make(chan int)
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

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, is func(error) bool, what string) {
	t.Helper()
	if !is(err) {
		t.Errorf("got error %v, want %s", err, what)
	}
}

// eventually fails the test if a condition does not come true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not so after %v: %s", deadline, what)
		}
	}
}

// noLeakedFDs fails the test if descriptors are open at its end that were not at its start.
func noLeakedFDs(t *testing.T) {
	t.Helper()
	before := openFDs()
	t.Cleanup(func() {
		var leaked []string
		for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			leaked = nil
			for fd, name := range openFDs() {
				if before[fd] != name {
					leaked = append(leaked, fd+" "+name)
				}
			}
			if len(leaked) == 0 {
				return
			}
		}
		t.Errorf("leaked descriptors: %v", leaked)
	})
}

func openFDs() map[string]string {
	fds := make(map[string]string)
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		// The descriptor that ReadDir itself used is gone by now.
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = name
		}
	}
	return fds
}

// recorder keeps the events in order, as lines.
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
	options Options
}

func newNode(t *testing.T) *node {
	t.Helper()
	events, dir := &recorder{}, t.TempDir()
	n := &node{
		Supervisor: NewSupervisor("test", podThread, reaper, events),
		t:          t,
		events:     events,
		control:    dir,
		options:    Options{BinaryName: filepath.Join(dir, "runtime.sh"), Root: filepath.Join(dir, "root")},
	}
	script, err := filepath.Abs("testdata/runtime.sh")
	must(t, err)
	must(t, os.Symlink(script, n.options.BinaryName))
	return n
}

// tell puts a file beside the OCI runtime.
func (n *node) tell(name, text string) {
	n.t.Helper()
	must(n.t, os.WriteFile(filepath.Join(n.control, name), []byte(text), 0o600))
}

func (n *node) untell(name string) {
	n.t.Helper()
	must(n.t, os.Remove(filepath.Join(n.control, name)))
}

func (n *node) told(name string) string {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.control, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// gate makes the OCI runtime stop at a verb. The function returned waits until it is there, the second lets it go on.
func (n *node) gate(verb string) (arrived func() (open func())) {
	n.t.Helper()
	path := filepath.Join(n.control, "gate-"+verb)
	must(n.t, unix.Mkfifo(path, 0o600))
	return func() func() {
		n.t.Helper()
		var fd int
		eventually(n.t, "the OCI runtime is at "+verb, func() (ok bool) {
			var err error
			fd, err = unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			return err == nil
		})
		must(n.t, os.Remove(path))
		return func() { unix.Close(fd) }
	}
}

// knowsNothing fails the test if the OCI runtime has state of any container.
func (n *node) knowsNothing() {
	n.t.Helper()
	left, err := filepath.Glob(filepath.Join(n.options.Root, "*", "*"))
	must(n.t, err)
	if len(left) > 0 {
		n.t.Errorf("the OCI runtime has %v still", left)
	}
}

// bundle makes a bundle with a config.json of what v encodes to.
func bundle(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	must(t, err)
	return rawBundle(t, string(data))
}

func rawBundle(t *testing.T, config string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600))
	return dir
}

// script writes a shell script, as the OCI runtime for tests runs them.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	must(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
	return path
}

const forever = "exec sleep 100000"

var containers atomic.Int64

func containerSpec(t *testing.T, id, command string) *specs.Spec {
	t.Helper()
	return &specs.Spec{
		Process: &specs.Process{Args: []string{script(t, command)}},
		Linux:   &specs.Linux{CgroupsPath: fmt.Sprintf("/%s%s-%d", cgroupPrefix(), id, containers.Add(1))},
	}
}

func execSpec(t *testing.T, command string) []byte {
	t.Helper()
	spec, err := json.Marshal(specs.Process{Args: []string{script(t, command)}})
	must(t, err)
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
	task, err := n.Create(testContext(n.t), r)
	must(n.t, err)
	n.adopt(task)
	return task
}

func (n *node) adopt(task *Task) {
	task.Watch()
	n.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
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
	_, err := task.init.Start(testContext(n.t))
	must(n.t, err)
	return task
}

func exitOf(t *testing.T, p *Process) uint32 {
	t.Helper()
	exit, err := p.Wait(testContext(t))
	must(t, err)
	return exit.Status
}

func process(t *testing.T, task *Task, id string) *Process {
	t.Helper()
	p, err := task.Process(id)
	must(t, err)
	return p
}

func mkfifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	return path
}

// reading is what comes out of a fifo, to its end.
type reading struct {
	t    *testing.T
	open chan struct{} // closed when there is a writer
	done chan struct{}
	text []byte
	err  error
}

// readFifo opens the fifo, which waits for a writer, and reads it to its end.
func readFifo(t *testing.T, path string) *reading {
	t.Helper()
	r := &reading{t: t, open: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(r.done)
		f, err := os.Open(path)
		if err != nil {
			r.err = err
			return
		}
		close(r.open)
		defer f.Close()
		r.text, r.err = io.ReadAll(f)
	}()
	return r
}

func (r *reading) all() string {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(deadline):
		r.t.Fatalf("the fifo has not ended after %v", deadline)
	}
	must(r.t, r.err)
	return string(r.text)
}

// inode returns the number of a namespace.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Ino
}

// threadNS is the path of a namespace of a thread of this process.
func threadNS(tid int, name string) string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/%s", os.Getpid(), tid, name)
}

// hostPath is the path of a namespace of the host, of a process that is not the shim.
func hostPath(t *testing.T, name string) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/ns/%s", sleeper(t, nil), name)
}

func atHome(t *testing.T, tid int) bool {
	t.Helper()
	for _, ns := range podNamespaceTypes {
		if inode(t, threadNS(tid, ns.proc)) != inode(t, threadNS(unix.Gettid(), ns.proc)) {
			return false
		}
	}
	return true
}

// othersAtHome fails the test if any thread but one is not in the test's namespaces.
func othersAtHome(t *testing.T, except int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	must(t, err)
	for _, task := range tasks {
		if task.Name() == fmt.Sprint(except) {
			continue
		}
		for _, ns := range podNamespaceTypes {
			var st unix.Stat_t
			path := filepath.Join("/proc/self/task", task.Name(), "ns", ns.proc)
			if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
				continue // the thread has ended
			}
			if st.Ino != inode(t, threadNS(unix.Gettid(), ns.proc)) {
				t.Errorf("thread %s is not in the host's %s namespace", task.Name(), ns.proc)
			}
		}
	}
}

// bindNetwork makes a new network namespace that is held by a bind mount.
func bindNetwork(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	must(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	must(t, <-done)
	t.Cleanup(func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// sleeper starts a process that ends with the test. The reaper is kept from it.
func sleeper(t *testing.T, attr *unix.SysProcAttr) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "100000")
	cmd.SysProcAttr = attr
	release := reaper.hold()
	err := cmd.Start()
	if err == nil {
		child := reaper.claim(cmd.Process.Pid)
		t.Cleanup(func() {
			_ = child.signal(unix.SIGKILL)
			_, _ = child.wait()
			_ = cmd.Process.Release()
		})
	}
	release()
	must(t, err)
	return cmd.Process.Pid
}

// run runs a program to its end. The reaper is kept from it.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	defer reaper.hold()()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
