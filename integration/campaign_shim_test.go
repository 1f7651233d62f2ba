package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	"containerd-shim-pause-v2/integration/node"
)

// Shims that the test starts as containerd does, by their command line, and talks to past
// containerd: so that it sees each RPC's answer and each event, and no lock of containerd's
// is between.

// campaignNamespace is the containerd namespace of those shims. containerd knows nothing of it.
const campaignNamespace = "campaign"

// raceProgram builds the shim with the race detector.
func raceProgram(t *testing.T) string {
	t.Helper()
	goCommand, err := exec.LookPath("go")
	if err != nil {
		t.Skip("there is no Go to build with")
	}
	dir := t.TempDir()
	cmd := exec.Command(goCommand, "build", "-race", "-tags", "no_grpc", "-o", dir, "./cmd/containerd-shim-pause-v2")
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "GOFLAGS=", "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return filepath.Join(dir, "containerd-shim-pause-v2")
}

// handShim is a shim process, with what it has written and told.
type handShim struct {
	t       *testing.T
	id      string
	program string
	races   string // directory of the race detector's reports
	bundle  string
	pid     int
	events  *eventServer
	client  *ttrpc.Client
	tasks   taskapi.TTRPCTaskService
	pods    sandboxapi.TTRPCSandboxService
	ending  atomic.Bool // it has been told to end
	closed  chan struct{}

	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

// The directories of bundles.
const (
	taskPlugin    = "io.containerd.runtime.v2.task"
	sandboxPlugin = "io.containerd.sandbox.controller.v1.shim"
)

// bundleOf makes the bundle of a task, or of a sandbox of the Sandbox API, with the work
// directory that belongs to it.
func bundleOf(t *testing.T, plugin, id string) string {
	t.Helper()
	bundle := filepath.Join(theNode.Dir, "state", plugin, campaignNamespace, id)
	work := filepath.Join(theNode.Dir, "root", plugin, campaignNamespace, id)
	for _, dir := range []string{bundle, work} {
		must(t, os.MkdirAll(dir, 0o711))
	}
	must(t, os.Symlink(work, filepath.Join(bundle, "work")))
	return bundle
}

// removeBundle removes what containerd removes. Who has left a mount below gets an error: what is
// mounted there is read-only.
func removeBundle(bundle string) error {
	work, err := os.Readlink(filepath.Join(bundle, "work"))
	if err != nil {
		return err
	}
	if err := os.RemoveAll(bundle); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// startHandShim starts a shim in a bundle.
func startHandShim(t *testing.T, program, id, bundle, races string) *handShim {
	t.Helper()
	s := &handShim{t: t, id: id, program: program, bundle: bundle, races: races, closed: make(chan struct{})}
	s.readLog()
	s.events = newEventServer(t)
	socketDir := filepath.Join(theNode.Dir, "s")
	params := &bootapi.BootstrapParams{
		InstanceID: id, Namespace: campaignNamespace, SocketDir: &socketDir, ContainerdVersion: "2.4.2",
		ContainerdGrpcAddress: theNode.Socket(), ContainerdTtrpcAddress: s.events.path,
	}
	must(t, params.AddExtension(s.options()))
	input, err := proto.Marshal(params)
	must(t, err)
	out, err := s.call(input, "start")
	must(t, err)
	var result bootapi.BootstrapResult
	must(t, proto.Unmarshal(out, &result))

	conn, err := net.Dial("unix", strings.TrimPrefix(result.Address, "unix://"))
	must(t, err)
	s.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() {
		if !s.ending.Load() {
			t.Errorf("shim %s has closed the connection", s.id)
		}
		close(s.closed)
	}))
	t.Cleanup(func() { s.ending.Store(true); s.client.Close() })
	s.tasks, s.pods = taskapi.NewTTRPCTaskClient(s.client), sandboxapi.NewTTRPCSandboxClient(s.client)
	connected, err := s.tasks.Connect(t.Context(), &taskapi.ConnectRequest{ID: id})
	must(t, err)
	s.pid = int(connected.ShimPid)
	return s
}

func (s *handShim) options() *options.Options {
	return &options.Options{BinaryName: ociRuntime, Root: theNode.RuntimeRoot(), SystemdCgroup: systemdCgroup}
}

// call runs the program in the shim's bundle.
func (s *handShim) call(input []byte, verb string) ([]byte, error) {
	cmd := exec.Command(s.program, "-namespace", campaignNamespace, "-id", s.id, "-address", theNode.Socket(), "-bundle", s.bundle, verb)
	cmd.Dir = s.bundle
	// The first is for the node's guard. The detector would sleep for a second at each exit.
	cmd.Env = append(os.Environ(), "PAUSE_NODE="+theNode.Dir, "GORACE=atexit_sleep_ms=0 log_path="+filepath.Join(s.races, "race"))
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s of shim %s: %w: %s", verb, s.id, err, stderr.String())
	}
	return stdout.Bytes(), nil
}

// readLog is the other end of the shim's log.
func (s *handShim) readLog() {
	s.t.Helper()
	path := filepath.Join(s.bundle, "log")
	must(s.t, unix.Mkfifo(path, 0o700))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(s.t, err)
	// What does not fit is lost, and the stacks of all goroutines are long.
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
	must(s.t, err)
	f := os.NewFile(uintptr(fd), path)
	s.t.Cleanup(func() { f.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := f.Read(buf)
			s.mu.Lock()
			s.log.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

func (s *handShim) logged() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// What the shim's log has around stacks.
const stacksBegin, stacksEnd = "=== goroutine stacks ===", "=== end of stacks ==="

// withoutStacks leaves them out of a log.
func withoutStacks(log string) string {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(log, stacksBegin)
		b.WriteString(before)
		if !found {
			return b.String()
		}
		_, log, _ = strings.Cut(rest, stacksEnd)
	}
}

// stacks has the shim write the stacks of all goroutines, and counts them by who made them.
func (s *handShim) stacks() (text string, byCreator map[string]int) {
	s.t.Helper()
	before := strings.Count(s.logged(), stacksEnd)
	must(s.t, unix.Kill(s.pid, unix.SIGUSR1))
	eventually(s.t, "shim "+s.id+" shows its stacks", func() bool { return strings.Count(s.logged(), stacksEnd) > before })
	log := s.logged()
	text = log[strings.LastIndex(log, stacksBegin):strings.LastIndex(log, stacksEnd)]
	return text, countByCreator(text)
}

// countByCreator counts the goroutines whose stacks are in a text.
func countByCreator(text string) map[string]int {
	byCreator := make(map[string]int)
	for _, stack := range strings.Split(text, "\n\n") {
		creator := "nobody"
		if m := createdBy.FindStringSubmatch(stack); m != nil {
			creator = m[1]
		}
		byCreator[creator]++
	}
	return byCreator
}

var createdBy = regexp.MustCompile(`(?m)^created by (\S+)`)

// awaitEnd waits until the shim has ended, and removes what containerd removes then.
func (s *handShim) awaitEnd() {
	s.t.Helper()
	eventually(s.t, "shim "+s.id+" ends", func() bool {
		for _, p := range node.Processes() {
			if p.Pid == s.pid {
				return p.State == "Z"
			}
		}
		return true
	})
	if _, err := s.call(nil, "delete"); err != nil {
		s.t.Error(err)
	}
	if err := removeBundle(s.bundle); err != nil {
		s.t.Error(err)
	}
}

// eventServer is what containerd has for the events of a shim.
type eventServer struct {
	path string

	mu     sync.Mutex
	events []*eventsapi.ForwardRequest // guarded by mu
}

func newEventServer(t *testing.T) *eventServer {
	t.Helper()
	dir, err := os.MkdirTemp(theNode.Dir, "e-")
	must(t, err)
	e := &eventServer{path: filepath.Join(dir, "e")}
	l, err := net.Listen("unix", e.path)
	must(t, err)
	server, err := ttrpc.NewServer()
	must(t, err)
	eventsapi.RegisterTTRPCEventsService(server, e)
	go server.Serve(context.Background(), l) // it ends by Close
	t.Cleanup(func() {
		server.Close()
		os.RemoveAll(dir)
	})
	return e
}

// Forward implements the service.
func (e *eventServer) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, r)
	return &emptypb.Empty{}, nil
}

func (e *eventServer) get() []*eventsapi.ForwardRequest {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.events)
}

// handRoot makes a root file system for containers, to be mounted read-only.
func handRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "dev", "proc", "tmp"} {
		must(t, os.Mkdir(filepath.Join(root, dir), 0o755))
	}
	busybox, err := exec.LookPath("busybox")
	must(t, err)
	data, err := os.ReadFile(busybox)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "bin", "busybox"), data, 0o755))
	for _, applet := range []string{"sh", "sleep", "cat"} {
		must(t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	return root
}

// writeSpec writes the OCI spec of a container into its bundle.
func writeSpec(bundle string, s *specs.Spec) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
}

// fifos are those of one process, which the test drains.
type fifos struct{ files []*os.File }

// newFifos makes the fifos of a process; without a terminal there are three.
func newFifos(dir, name string, terminal bool) (stdin, stdout, stderr string, f *fifos, err error) {
	f = &fifos{}
	open := func(stream string) (path string) {
		path = filepath.Join(dir, name+"-"+stream)
		if err == nil {
			err = unix.Mkfifo(path, 0o600)
		}
		if err == nil {
			var file *os.File
			if file, err = os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
				f.files = append(f.files, file)
			}
		}
		return path
	}
	stdin, stdout = open("stdin"), open("stdout")
	if !terminal {
		stderr = open("stderr")
	}
	if err != nil {
		f.close()
		return "", "", "", nil, err
	}
	for _, file := range f.files[1:] {
		go io.Copy(io.Discard, file) // it ends by close
	}
	return stdin, stdout, stderr, f, nil
}

func (f *fifos) close() {
	if f == nil {
		return
	}
	for _, file := range f.files {
		file.Close()
		os.Remove(file.Name())
	}
}
