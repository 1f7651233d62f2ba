package shim

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// noExitDelay turns off the race detector's sleep of one second at each exit.
const noExitDelay = "GORACE=atexit_sleep_ms=0"

// daemonSide is what containerd has: a socket directory, and an address for events.
type daemonSide struct {
	t         *testing.T
	socketDir string
	events    string
	env       []string
	program   string // by which the binary is called; "" for its path
	exe       string // path of the binary; "" for the tests' own
	ns        string // containerd namespace; "" for test
	daemon    string // gRPC address; "" for the usual
}

func (d *daemonSide) namespace() string { return cmp.Or(d.ns, "test") }

func newDaemonSide(t *testing.T) *daemonSide {
	return &daemonSide{t: t, socketDir: filepath.Join(shortDir(t), "s"), env: []string{programEnv + "=1", noExitDelay}}
}

// bundle makes the bundle of a container in a group. Without a group the bundle has
// no spec.
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
	cmd := exec.Command(cmp.Or(d.exe, "/proc/self/exe"), args...)
	cmd.Args[0] = cmp.Or(d.program, cmd.Args[0])
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), d.env...)
	cmd.Stdin = bytes.NewReader(stdin)
	// With pipes, Run returns only when no process has their other ends open.
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (d *daemonSide) start(id, bundle string, o *options.Options) (*bootapi.BootstrapResult, error) {
	params := &bootapi.BootstrapParams{
		InstanceID:             id,
		Namespace:              d.namespace(),
		ContainerdGrpcAddress:  cmp.Or(d.daemon, "/run/test/containerd.sock"),
		ContainerdTtrpcAddress: d.events,
		SocketDir:              &d.socketDir,
	}
	if o != nil {
		if err := params.AddExtension(o); err != nil {
			d.t.Fatal(err)
		}
	}
	stdout, stderr, err := d.call(bundle, encode(d.t, params), "-namespace", d.namespace(), "-id", id, "start")
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
		// Only while it is still a child of this process: after a wait, another
		// process may have the pid.
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

// dialAs connects with another effective user id. The system call changes the id of
// one thread only, and a peer sees the credentials of that thread.
func dialAs(t *testing.T, uid int, path string) net.Conn {
	t.Helper()
	runtime.LockOSThread()
	const keep = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		t.Fatal(errno)
	}
	conn, err := net.Dial("unix", path)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno != 0 {
		t.Fatal(errno) // The thread stays locked, and ends with its goroutine.
	}
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	return conn
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

// onebyte reads one byte at a time, so that the next reader of the same file misses
// nothing.
type onebyte struct{ f *os.File }

func (o onebyte) Read(p []byte) (int, error) { return o.f.Read(p[:1]) }
