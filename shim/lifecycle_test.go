package shim

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// These tests run the binary as containerd 2.4 does, on a real process.

// noExitDelay spares the race detector's second of sleep at each exit.
const noExitDelay = "GORACE=atexit_sleep_ms=0"

// daemonSide is what containerd has: a socket directory, and an address for events.
type daemonSide struct {
	t         *testing.T
	socketDir string
	events    string
	env       []string
}

func newDaemonSide(t *testing.T) *daemonSide {
	return &daemonSide{t: t, socketDir: filepath.Join(shortDir(t), "s"), env: []string{programEnv + "=1", noExitDelay}}
}

// bundle makes the bundle of a container of a group; without a group it has no
// spec.
func (d *daemonSide) bundle(group string) string {
	d.t.Helper()
	bundle := d.t.TempDir()
	if err := unix.Mkfifo(filepath.Join(bundle, "log"), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if group != "" {
		spec := fmt.Sprintf(`{"annotations":{%q:%q}}`, groupAnnotation, group)
		if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	return bundle
}

// call runs the binary in a bundle.
func (d *daemonSide) call(bundle string, stdin []byte, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), d.env...)
	cmd.Stdin = bytes.NewReader(stdin)
	// Pipes: Run returns only when nobody has their other ends open.
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (d *daemonSide) start(id, bundle string, o *options.Options) (*bootapi.BootstrapResult, error) {
	params := &bootapi.BootstrapParams{
		InstanceID:             id,
		Namespace:              "test",
		ContainerdGrpcAddress:  "/run/test/containerd.sock",
		ContainerdTtrpcAddress: d.events,
		SocketDir:              &d.socketDir,
	}
	if o != nil {
		if err := params.AddExtension(o); err != nil {
			d.t.Fatal(err)
		}
	}
	stdout, stderr, err := d.call(bundle, encode(d.t, params), "-namespace", "test", "-id", id, "start")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, stderr)
	}
	if stderr != "" {
		return nil, fmt.Errorf("stderr would be taken for a part of the answer: %s", stderr)
	}
	var result bootapi.BootstrapResult
	return &result, proto.Unmarshal([]byte(stdout), &result)
}

// server is a shim process and a connection to it.
type server struct {
	t      *testing.T
	path   string
	client *ttrpc.Client
	closed chan struct{}
	pid    int
}

func (d *daemonSide) mustStart(id, bundle string) *server {
	d.t.Helper()
	result, err := d.start(id, bundle, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	if result.Version != 3 || result.Protocol != "ttrpc" {
		d.t.Errorf("the answer is %v", result)
	}
	return connect(d.t, strings.TrimPrefix(result.Address, "unix://"))
}

func connect(t *testing.T, path string) *server {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, path: path, closed: make(chan struct{})}
	s.client = ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(s.closed) }))
	t.Cleanup(func() { s.client.Close() })
	if s.pid, err = strconv.Atoi(s.do("pid")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Only while it is a child of ours: a pid that has been waited for
		// may be another's.
		if pid, err := unix.Wait4(s.pid, nil, unix.WNOHANG, nil); pid == 0 && err == nil {
			unix.Kill(s.pid, unix.SIGKILL)
			unix.Wait4(s.pid, nil, 0, nil)
		}
	})
	return s
}

func (s *server) do(verb string) string {
	s.t.Helper()
	var answer wrapperspb.StringValue
	if err := s.client.Call(s.t.Context(), "test.Shim", "Do", wrapperspb.String(verb), &answer); err != nil {
		s.t.Fatalf("%s: %v", verb, err)
	}
	return answer.Value
}

// wait returns how the process ended.
func (s *server) wait() unix.WaitStatus {
	s.t.Helper()
	<-s.closed
	var status unix.WaitStatus
	if _, err := unix.Wait4(s.pid, &status, 0, nil); err != nil {
		s.t.Fatal(err)
	}
	return status
}

func TestLifeOfAShim(t *testing.T) {
	events := newReceiver(t)
	events.start()
	d := newDaemonSide(t)
	d.events = events.path
	bundle := d.bundle("")

	s := d.mustStart("c1", bundle)
	want := socketAddress(d.socketDir, "/run/test/containerd.sock", "test", "c1")
	if unixScheme+s.path != want {
		t.Errorf("the address is %s, want %s", s.path, want)
	}
	if got, want := s.do("process"), "test c1 "+bundle+" false"; got != want {
		t.Errorf("the process is %q, want %q", got, want)
	}
	if group, err := unix.Getpgid(s.pid); err != nil || group != s.pid {
		t.Errorf("its process group is %d, error %v", group, err)
	}
	s.do("publish")
	s.do("shutdown")
	if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("it ended with %v", status)
	}
	if exists(t, s.path) {
		t.Error("it left its socket")
	}
	if got := strings.Join(events.topics(), " "); got != "/test/publish /test/stop" {
		t.Errorf("events were %s", got)
	}
}

func TestEnvironmentOfAServer(t *testing.T) {
	d := newDaemonSide(t)
	d.events = "/run/test/ttrpc"
	d.env = append(d.env, "GODEBUG=asynctimerchan=0", "TTRPC_ADDRESS=/wrong")
	s := d.mustStart("c1", d.bundle(""))

	environment := "\n" + s.do("environment") + "\n"
	for _, want := range []string{"TTRPC_ADDRESS=/run/test/ttrpc", "GOMAXPROCS=2", "GODEBUG=asynctimerchan=0"} {
		if !strings.Contains(environment, "\n"+want+"\n") {
			t.Errorf("%s is not in the environment%s", want, environment)
		}
	}
	// What it starts must find huge pages as the host has them, but its own
	// heap must have none: VM_NOHUGEPAGE, "nh" in smaps (proc(5)).
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(status), "THP_enabled:\t0") {
		t.Error("huge pages are off for the process and its descendants")
	}
	address, err := strconv.ParseUint(s.do("heap"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if flags := vmFlags(t, s.pid, address); !strings.Contains(flags, " nh") {
		t.Errorf("the heap may have huge pages: %s", flags)
	}
}

// vmFlags returns the VmFlags of the mapping of pid that contains address.
func vmFlags(t *testing.T, pid int, address uint64) string {
	t.Helper()
	smaps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(smaps)) {
		var from, to uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			inside = from <= address && address < to
		}
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && inside {
			return flags
		}
	}
	t.Fatalf("%x is not mapped", address)
	return ""
}

func TestGODEBUGOfOthersIsAbsentIfItWas(t *testing.T) {
	d := newDaemonSide(t)
	d.env = append(d.env, "GODEBUG=")
	if environment := d.mustStart("c1", d.bundle("")).do("environment"); strings.Contains(environment, "GODEBUG") {
		t.Errorf("GODEBUG is in the environment\n%s", environment)
	}
}

func TestMembersOfAGroupShareAShim(t *testing.T) {
	d := newDaemonSide(t)
	sandbox, app := d.bundle(""), d.bundle("pod")
	first := d.mustStart("pod", sandbox)
	second := d.mustStart("app", app)
	if first.pid != second.pid || first.path != second.path {
		t.Errorf("got processes %d on %s and %d on %s", first.pid, first.path, second.pid, second.path)
	}
	if other := d.mustStart("other", d.bundle("")); other.pid == first.pid {
		t.Error("one of another group shares it too")
	}
	for _, bundle := range []string{sandbox, app} {
		if path, err := readAddress(bundle); err != nil || path != first.path {
			t.Errorf("the bundle has the address %q, error %v", path, err)
		}
	}

	// The end of a member does not take the socket from the others.
	if _, stderr, err := d.call(app, nil, "-namespace", "test", "-id", "app", "-bundle", app, "delete"); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	if connect(t, first.path).pid != first.pid {
		t.Error("the shim is no longer to be found")
	}
}

func TestStartsOfAGroupAtTheSameTimeGiveOneShim(t *testing.T) {
	d := newDaemonSide(t)
	const starts = 6
	bundles := make([]string, starts)
	for i := range bundles {
		bundles[i] = d.bundle("pod")
	}
	if err := os.Mkdir(d.socketDir, 0o700); err != nil {
		t.Fatal(err)
	}
	makeStale(t, strings.TrimPrefix(socketAddress(d.socketDir, "/run/test/containerd.sock", "test", "pod"), unixScheme))

	results := make([]*bootapi.BootstrapResult, starts)
	var wg sync.WaitGroup
	for i, bundle := range bundles {
		wg.Go(func() {
			var err error
			if results[i], err = d.start(fmt.Sprintf("c%d", i), bundle, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	pids := make(map[int]bool)
	for _, r := range results {
		pids[connect(t, strings.TrimPrefix(r.Address, unixScheme)).pid] = true
	}
	if len(pids) != 1 {
		t.Errorf("processes %v serve the group", pids)
	}
}

func TestDeleteAfterAKilledShim(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	s := d.mustStart("c1", bundle)
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wait()
	if !exists(t, s.path) {
		t.Fatal("there is no socket left to remove")
	}

	for _, args := range [][]string{{"-bundle", bundle, "delete"}, {"delete"}} {
		stdout, stderr, err := d.call(bundle, nil, append([]string{"-namespace", "test", "-id", "c1", "-address", "/run/test/containerd.sock"}, args...)...)
		if err != nil || stderr != "" {
			t.Fatalf("%v: %s", err, stderr)
		}
		var response taskapi.DeleteResponse
		if err := proto.Unmarshal([]byte(stdout), &response); err != nil {
			t.Fatal(err)
		}
		if response.Pid != 42 || response.ExitStatus != 137 || response.ExitedAt.AsTime().UnixNano() != 1700000000000000005 {
			t.Errorf("the answer is %v", &response)
		}
		if got, err := os.ReadFile(filepath.Join(bundle, "deleted")); err != nil || string(got) != "test c1 "+bundle {
			t.Errorf("Delete was called for %q, error %v", got, err)
		}
		if exists(t, s.path) {
			t.Error("the socket is left")
		}
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	result, err := d.start("c1", bundle, &options.Options{ShimCgroup: "/no/such/cgroup"})
	if err == nil || !strings.Contains(err.Error(), "/no/such/cgroup") || !strings.Contains(err.Error(), "io.containerd.test.v2: ") {
		t.Errorf("got %v and error %v, want one that names the cgroup", result, err)
	}
	sockets, err := os.ReadDir(d.socketDir)
	if err != nil || len(sockets) != 0 {
		t.Errorf("sockets %v are left, error %v", sockets, err)
	}
	// Orphans become children of this process.
	if pid, err := unix.Wait4(-1, nil, 0, nil); err != unix.ECHILD {
		t.Errorf("process %d is left, error %v", pid, err)
	}
}

func TestServerThatCannotServeRemovesItsSocketAndSaysWhy(t *testing.T) {
	d := newDaemonSide(t)
	d.env = []string{programEnv + "=fail", noExitDelay}
	bundle := d.bundle("")
	log := openLogAsContainerd(t, bundle)
	result, err := d.start("c1", bundle, nil)
	if err != nil {
		t.Fatal(err)
	}
	if line := readUntil(t, log, "on demand"); !strings.HasPrefix(line, "io.containerd.test.v2: ") {
		t.Errorf("the log is %q", line)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(-1, &status, 0, nil); err != nil || status.ExitStatus() != 1 {
		t.Errorf("it ended with %v, error %v", status, err)
	}
	if exists(t, strings.TrimPrefix(result.Address, unixScheme)) {
		t.Error("it left its socket")
	}
}

func TestSignalsToAServer(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			d := newDaemonSide(t)
			s := d.mustStart("c1", d.bundle(""))
			if err := unix.Kill(s.pid, signal); err != nil {
				t.Fatal(err)
			}
			if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 || exists(t, s.path) {
				t.Errorf("it ended with %v, its socket exists: %t", status, exists(t, s.path))
			}
		})
	}
	t.Run("SIGUSR1", func(t *testing.T) {
		d := newDaemonSide(t)
		bundle := d.bundle("")
		log := openLogAsContainerd(t, bundle)
		s := d.mustStart("c1", bundle)
		if err := unix.Kill(s.pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		readUntil(t, log, "=== goroutine stacks")
		readUntil(t, log, "goroutine ")
		readUntil(t, log, "=== end of stacks")
		s.do("pid")
	})
}

func TestServerOutlivesItsLog(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	log := openLogAsContainerd(t, bundle)
	s := d.mustStart("c1", bundle)
	s.do("log") // Nobody reads.
	readUntil(t, log, "message 0,")
	log.Close() // containerd is gone.
	s.do("log")
	s.do("pid")
}

func openLogAsContainerd(t *testing.T, bundle string) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(bundle, "log"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// readUntil returns the first line that has text in it.
func readUntil(t *testing.T, f *os.File, text string) string {
	t.Helper()
	for in := bufio.NewReaderSize(onebyte{f}, 16); ; {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(line, text) {
			return line
		}
	}
}

// onebyte reads no further than it is asked to, so that the next reader of the
// same file misses nothing.
type onebyte struct{ f *os.File }

func (o onebyte) Read(p []byte) (int, error) { return o.f.Read(p[:1]) }

func TestServerOnAGivenSocket(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	path := filepath.Join(shortDir(t), "given")
	cmd := exec.Command("/proc/self/exe", "-namespace", "test", "-id", "c1", "-socket", path)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), d.env...)
	log := openLogAsContainerd(t, bundle)
	cmd.Args = append(cmd.Args, "-debug")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	readUntil(t, log, "shim serves")
	s := connect(t, path)
	if got := s.do("process"); !strings.HasSuffix(got, " true") {
		t.Errorf("the process is %q, want it in debug mode", got)
	}
	s.do("shutdown")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if exists(t, path) {
		t.Error("it left its socket")
	}
}
