package task

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	eventsapi "github.com/containerd/containerd/api/events"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskv2 "github.com/containerd/containerd/api/runtime/task/v2"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

var (
	// One reaper serves all tests: a second one would take the first one's children for orphans.
	reaper   *reap.Reaper
	thread   *pod.Thread
	threadID uint32 // the sandbox's pid
)

// The tests keep the main thread, so that another one is the sandbox's.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	proctest.BecomeSubreaper()
	reaper, thread = reap.NewReaper(context.Background()), pod.NewMainThread()
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		thread.Serve()
	}()
	threadID = uint32(<-tid)
	os.Exit(m.Run())
}

// result fails the test on an error, else returns the response.
func result[R any](t *testing.T) func(R, error) R {
	t.Helper()
	return func(r R, err error) R {
		t.Helper()
		proctest.Must(t, err)
		return r
	}
}

// wantKind checks an error as a client sees it.
func wantKind(t *testing.T, err error, is func(error) bool, what string) {
	t.Helper()
	if err == nil || !is(errgrpc.ToNative(err)) {
		t.Errorf("got error %v, want %s", err, what)
	}
}

// recorder is a Publisher that keeps what it is given.
type recorder struct {
	mu     sync.Mutex
	events []proto.Message
	lines  []string
	once   []string // topics and keys
}

func (r *recorder) Publish(topic string, event proto.Message) {
	message := received(event)
	line := topic
	switch e := message.(type) {
	case *eventsapi.TaskExit:
		line = fmt.Sprintf("%s %s %s %d", topic, e.ContainerID, e.ID, e.ExitStatus)
	case *eventsapi.TaskExecAdded:
		line = fmt.Sprintf("%s %s %s", topic, e.ContainerID, e.ExecID)
	case *eventsapi.TaskExecStarted:
		line = fmt.Sprintf("%s %s %s", topic, e.ContainerID, e.ExecID)
	case interface{ GetContainerID() string }:
		line = topic + " " + e.GetContainerID()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, message)
	r.lines = append(r.lines, line)
}

func (r *recorder) PublishOnce(topic, key string, event proto.Message) {
	r.Publish(topic, event)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.once = append(r.once, topic+" "+key)
}

// received returns an event as its receivers get it.
func received(event proto.Message) proto.Message {
	encoded, err := anypb.New(event)
	if err != nil {
		panic(err)
	}
	message, err := encoded.UnmarshalNew()
	if err != nil {
		panic(err)
	}
	return message
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

// event returns the n-th event, which must be of type E.
func event[E proto.Message](t *testing.T, r *recorder, n int) E {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if n >= len(r.events) {
		t.Fatalf("there are %d events", len(r.events))
	}
	e, ok := r.events[n].(E)
	if !ok {
		t.Fatalf("event %d is a %T", n, r.events[n])
	}
	return e
}

// node is a shim's Task service behind a socket.
type node struct {
	taskapi.TTRPCTaskService
	v2 taskv2.TTRPCTaskService

	t         *testing.T
	service   *Service
	events    *recorder
	control   string // see process/testdata/runtime.sh
	options   *options.Options
	shutdowns chan struct{}
	sandboxes sandboxapi.TTRPCSandboxService

	born time.Time // when the shim was started

	mu       sync.Mutex
	expected bool // guarded by mu: there is room for the sandbox with ownID
	// expectedIDs are those for which a shared process has room. Guarded by mu.
	expectedIDs []string
	removed     []string // bundles, with pid and exit status; guarded by mu
}

// host is the shim process of the node, which was started for ownID.
func (n *node) host() Host {
	return Host{
		Runtime: "io.containerd.test.v2",
		ID:      ownID,
		Expects: func(id string) (time.Time, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.born, n.expected && id == ownID
		},
		Forget:   n.forget,
		Removed:  n.noteRemoved,
		Shutdown: func() { n.shutdowns <- struct{}{} },
	}
}

func (n *node) forget(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expected = n.expected && id != ownID
}

func (n *node) noteRemoved(id, bundle string, st process.Status) {
	n.forget(id)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.removed = append(n.removed, fmt.Sprintf("%s %d %d", bundle, st.Pid, st.Exit.Status))
}

func (n *node) wantRemoved(want ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.removed, want) {
		n.t.Errorf("removed were %q, want %q", n.removed, want)
	}
}

// decodeOptions takes only runc's options; package shim has the real one.
func decodeOptions(a *anypb.Any) (*HandlerOptions, error) {
	o := defaultOptions(&options.Options{})
	if a == nil {
		return o, nil
	}
	return o, a.UnmarshalTo(o.Runc)
}

func defaultOptions(o *options.Options) *HandlerOptions {
	return &HandlerOptions{Runc: o, EnableUnprivilegedPorts: true, EnableUnprivilegedICMP: true}
}

// ownID is the id that the shim of a node was started for.
const ownID = "pod"

func newNode(t *testing.T) *node {
	t.Helper()
	return startNode(t, func(n *node) (Host, bool) { return n.host(), false })
}

// startNode returns a node with a host. If that is shared, each sandbox has a thread of its own.
func startNode(t *testing.T, hostOf func(*node) (host Host, shared bool)) *node {
	t.Helper()
	control := t.TempDir()
	n := &node{
		t:         t,
		events:    &recorder{},
		control:   control,
		options:   &options.Options{BinaryName: filepath.Join(control, "runtime.sh"), Root: filepath.Join(control, "root")},
		shutdowns: make(chan struct{}, 100),
		born:      time.Now(),
		expected:  true,
	}
	script, err := filepath.Abs("../process/testdata/runtime.sh")
	proctest.Must(t, err)
	proctest.Must(t, os.Symlink(script, n.options.BinaryName))

	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(Intercept))
	proctest.Must(t, err)
	events := NewEvents(n.events)
	host, shared := hostOf(n)
	podThread := thread
	if shared {
		podThread = nil
	}
	supervisor := process.NewSupervisor("test", podThread, reaper, events)
	service := NewService(supervisor, events, decodeOptions, defaultOptions(n.options), host)
	n.service = service
	service.Register(server)

	// t.TempDir may exceed the limit of a socket's path.
	dir, err := os.MkdirTemp("", "task")
	proctest.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	proctest.Must(t, err)
	go func() { _ = server.Serve(context.Background(), listener) }()
	conn, err := net.Dial("unix", filepath.Join(dir, "s"))
	proctest.Must(t, err)
	client := ttrpc.NewClient(conn)
	n.TTRPCTaskService, n.v2 = taskapi.NewTTRPCTaskClient(client), taskv2.NewTTRPCTaskClient(client)
	n.sandboxes = sandboxapi.NewTTRPCSandboxClient(client)
	t.Cleanup(func() {
		client.Close()
		server.Close()
		supervisor.Release()
	})
	return n
}

func (n *node) tell(name, text string) {
	n.t.Helper()
	proctest.Must(n.t, os.WriteFile(filepath.Join(n.control, name), []byte(text), 0o600))
}

const forever = "exec sleep 100000"

// cgroupPath returns the path of a cgroup for a pod of this test, and removes the cgroup
// at the test's end if it exists: the shim leaves a pod's cgroup to kubelet.
func cgroupPath(t *testing.T) string {
	t.Helper()
	path := fmt.Sprintf("/pause-task-test-%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-"))
	t.Cleanup(func() {
		cgroup, err := cgroups.Load(path, false)
		if errdefs.IsNotFound(err) {
			return
		}
		proctest.Must(t, err)
		proctest.Must(t, cgroup.Remove(context.Background()))
	})
	return path
}

// request is for a task with a spec in a new bundle.
func (n *node) request(id string, spec *specs.Spec) *taskapi.CreateTaskRequest {
	n.t.Helper()
	bundle := n.t.TempDir()
	data, err := json.Marshal(spec)
	proctest.Must(n.t, err)
	proctest.Must(n.t, os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600))
	opts, err := typeurl.MarshalAnyToProto(n.options)
	proctest.Must(n.t, err)
	return &taskapi.CreateTaskRequest{ID: id, Bundle: bundle, Options: opts}
}

func (n *node) containerRequest(id, command string) *taskapi.CreateTaskRequest {
	n.t.Helper()
	return n.request(id, &specs.Spec{
		Process: &specs.Process{Args: []string{proctest.Script(n.t, command)}},
		Linux:   &specs.Linux{CgroupsPath: cgroupPath(n.t) + "-" + id},
	})
}

func (n *node) sandboxRequest(id string) *taskapi.CreateTaskRequest {
	n.t.Helper()
	return n.request(id, &specs.Spec{
		Hostname:    "test-pod",
		Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
		Linux: &specs.Linux{
			CgroupsPath: cgroupPath(n.t) + "-" + id,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.PIDNamespace},
			},
		},
	})
}

// make creates a task that is removed at the end of the test.
func (n *node) make(r *taskapi.CreateTaskRequest) uint32 {
	n.t.Helper()
	resp, err := n.Create(proctest.Context(n.t), r)
	proctest.Must(n.t, err)
	n.t.Cleanup(func() { n.remove(r.ID) })
	return resp.Pid
}

func (n *node) remove(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), proctest.Deadline)
	defer cancel()
	if _, err := n.State(ctx, &taskapi.StateRequest{ID: id}); err != nil {
		return
	}
	_, _ = n.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: 9, All: true})
	_, _ = n.Wait(ctx, &taskapi.WaitRequest{ID: id})
	if _, err := n.Delete(ctx, &taskapi.DeleteRequest{ID: id}); err != nil {
		n.t.Errorf("cannot clean up: %v", err)
	}
}

// container creates and starts a container of the id c.
func (n *node) container(command string) {
	n.t.Helper()
	pid := n.make(n.containerRequest("c", command))
	resp, err := n.Start(proctest.Context(n.t), &taskapi.StartRequest{ID: "c"})
	proctest.Must(n.t, err)
	if resp.Pid != pid {
		n.t.Errorf("start: pid %d, create: %d", resp.Pid, pid)
	}
}

func (n *node) execRequest(id, execID, command string) *taskapi.ExecProcessRequest {
	n.t.Helper()
	spec, err := json.Marshal(&specs.Process{Args: []string{proctest.Script(n.t, command)}})
	proctest.Must(n.t, err)
	return &taskapi.ExecProcessRequest{ID: id, ExecID: execID, Spec: &anypb.Any{
		TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec,
	}}
}
