package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// programEnv turns the test binary into the shim: start executes its own binary,
// so the tests need a real one.
const programEnv = "SHIM_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) != "" {
		setLimits()
		os.Exit(Run(context.Background(), testConfig, os.Args[1:]))
	}
	// Servers are orphans once start has ended; only a subreaper can wait for them.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// These variables of the environment set time limits of the program.
const (
	seatLimitEnv = "SHIM_TEST_SEAT_LIMIT"
	settleEnv    = "SHIM_TEST_SETTLE"
)

func setLimits() {
	for name, limit := range map[string]*time.Duration{seatLimitEnv: &seatLimit, settleEnv: &settleInterval} {
		if text := os.Getenv(name); text != "" {
			var err error
			if *limit, err = time.ParseDuration(text); err != nil {
				panic(err)
			}
		}
	}
}

// badText is not valid UTF-8, which gRPC demands, and too long.
var badText = "\xff" + strings.Repeat("ü", 4096)

const (
	groupAnnotation = "org.example.group"
	podAnnotation   = "org.example.pod"
)

var testConfig = &Config{
	Runtime:          "io.containerd.test.v2",
	Version:          "1.2.3",
	Revision:         "abcdef",
	SharedRuntime:    "io.containerd.test-shared.v2",
	GroupAnnotations: []string{"org.example.first", groupAnnotation},
	PodAnnotation:    podAnnotation,
	Serve: func(_ context.Context, p *Instance) (func(), error) {
		if os.Getenv(programEnv) == "fail" {
			return nil, errors.New("serve fails on demand" + badText)
		}
		p.Server.RegisterService("test.Shim", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
			"Do": func(_ context.Context, unmarshal func(any) error) (any, error) {
				var verb wrapperspb.StringValue
				if err := unmarshal(&verb); err != nil {
					return nil, err
				}
				return wrapperspb.String(do(p, verb.Value)), nil
			},
		}})
		p.Server.RegisterService("containerd.task.v3.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
			"Shutdown": func(_ context.Context, unmarshal func(any) error) (any, error) {
				if servesNothing.Load() {
					p.Shutdown()
				}
				return &emptypb.Empty{}, unmarshal(&taskapi.ShutdownRequest{})
			},
		}})
		p.GiveUp = func(_ context.Context, id, _ string) error {
			givenUp.Lock()
			givenUp.ids = append(givenUp.ids, id)
			givenUp.Unlock()
			p.Forget(id)
			p.Shutdown()
			return nil
		}
		return func() {
			p.Events.Publish("/test/stop", &eventsapi.TaskStart{ContainerID: p.ID})
			holdEnd.Lock()
		}, nil
	},
	Intercept: func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		return method(ctx, unmarshal)
	},
	Delete: func(ctx context.Context, r DeleteRequest) (Exit, error) {
		// containerd kills a call that takes 5 s.
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > 4500*time.Millisecond {
			return Exit{}, errors.New("it has no deadline")
		}
		text := fmt.Sprintf("%s %s %s", r.Namespace, r.ID, r.Bundle)
		err := os.WriteFile(r.Bundle+"/deleted", []byte(text), 0o600)
		if os.Getenv(programEnv) == "fail" {
			err = errors.New(badText)
		}
		return Exit{Pid: 42, Status: 137, At: time.Unix(1700000000, 5)}, err
	},
	JoinCgroup: func(path string, _ int) error { return fmt.Errorf("there is no cgroup %s", path) },
	Features: func(_ context.Context, binary string) (*features.Features, error) {
		if binary == "/no/features" {
			return nil, errors.New("no such command" + badText)
		}
		return &features.Features{
			OCIVersionMin: "1.0.0",
			Annotations:   map[string]string{"binary": binary},
			Linux:         &features.Linux{Namespaces: []string{"ipc", "user", "uts"}},
		}, nil
	},
}

// servesNothing makes the server end when it is asked to shut down.
var servesNothing atomic.Bool

// givenUp are the ids that a shared server has given up.
var givenUp struct {
	sync.Mutex
	ids []string
}

// holdEnd is locked while the server must not end.
var holdEnd sync.Mutex

// do runs a verb of the test service in the server.
func do(p *Instance, verb string) string {
	if bundle, ok := strings.CutPrefix(verb, "removed "); ok {
		p.Removed(filepath.Base(bundle), bundle, Exit{Pid: 8, Status: 2, At: time.Unix(1700000000, 7)})
	}
	if text, ok := strings.CutPrefix(verb, "log one "); ok {
		log.L.Info(text)
	}
	if id, ok := strings.CutPrefix(verb, "forget "); ok {
		p.Forget(id)
	}
	if id, ok := strings.CutPrefix(verb, "expects "); ok {
		_, expected := p.Expects(id)
		return fmt.Sprint(expected)
	}
	if id, ok := strings.CutPrefix(verb, "was asked for "); ok {
		_, expected := p.Expects(id)
		givenUp.Lock()
		defer givenUp.Unlock()
		return fmt.Sprint(expected || slices.Contains(givenUp.ids, id))
	}
	switch verb {
	case "given up":
		givenUp.Lock()
		defer givenUp.Unlock()
		return strings.Join(givenUp.ids, " ")
	case "hold the end":
		holdEnd.Lock()
	case "let it end":
		holdEnd.Unlock()
	case "few files":
		open, err := os.ReadDir("/proc/self/fd")
		if err == nil {
			limit := uint64(len(open) + spareFiles/2)
			err = unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: limit, Max: limit})
		}
		if err != nil {
			return err.Error()
		}
	case "directory":
		dir, err := os.Getwd()
		if err != nil {
			return err.Error()
		}
		return dir
	case "processors":
		return fmt.Sprint(runtime.GOMAXPROCS(0))
	case "processors wanted":
		return fmt.Sprint(min(sharedProcs, runtime.NumCPU()))
	case "runtime":
		return p.Runtime
	case "pid":
		return fmt.Sprint(os.Getpid())
	case "process":
		return fmt.Sprintf("%s %s %s %t", p.Namespace, p.ID, p.Bundle, p.Debug)
	case "environment":
		return strings.Join(os.Environ(), "\n")
	case "heap":
		return fmt.Sprint(reflect.ValueOf(p.Events).Pointer())
	case "orphan":
		out, err := exec.Command("sh", "-c", "sleep infinity >/dev/null 2>&1 & echo $!").Output()
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(out))
	case "log":
		for i := range 5000 {
			log.L.Infof("message %d, one of more than a pipe holds", i)
		}
	case "publish":
		p.Events.Publish("/test/publish", &eventsapi.TaskStart{ContainerID: p.ID, Pid: 7})
	case "removed":
		p.Removed(p.ID, p.Bundle, Exit{Pid: 7, Status: 1, At: time.Unix(1700000000, 6)})
	case "serve nothing":
		servesNothing.Store(true)
	case "shutdown":
		p.Shutdown()
		p.Shutdown()
	}
	return "done"
}

func TestCallsThatAreRefused(t *testing.T) {
	for _, tc := range []struct {
		args string
		want string
	}{
		{"-id c1 start", "-namespace is missing"},
		{"-namespace ns start", "-id is missing"},
		{"-namespace ns -id c1 begin", `unknown action "begin"`},
		{"-no-such-flag", "no-such-flag"},
		{"-namespace n\xff -id c1 start", "UTF-8"},
		{"-namespace ns -id c\xff delete", "UTF-8"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var out bytes.Buffer
			c := &call{config: testConfig, stdin: strings.NewReader(""), stdout: &out, stderr: &out}
			err := c.run(t.Context(), strings.Fields(tc.args))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
			if out.Len() > 0 {
				t.Errorf("printed %q besides the error", out.String())
			}
		})
	}
}

func TestVersionHasTheFormOfTheStockShim(t *testing.T) {
	for _, arg := range []string{"-v", "-version", "--version"} {
		var out bytes.Buffer
		c := &call{config: testConfig, stdout: &out}
		if err := c.run(t.Context(), []string{arg}); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(out.String(), "\n")
		if len(lines) != 6 || lines[1] != "  Version:  1.2.3" || lines[2] != "  Revision: abcdef" || !strings.HasPrefix(lines[3], "  Go version: go") {
			t.Errorf("%s printed %q", arg, out.String())
		}
	}
}

func TestInstallAndUninstallGetTheDirectory(t *testing.T) {
	say := func(what string) func(io.Writer, string) error {
		return func(w io.Writer, dir string) error {
			_, err := io.WriteString(w, what+dir)
			return err
		}
	}
	config := &Config{Install: say("into "), Uninstall: say("from ")}
	for args, want := range map[string]string{
		"-install /usr/local/bin":  "into /usr/local/bin",
		"-uninstall=/usr/bin":      "from /usr/bin",
		"-debug -install relative": "into relative",
	} {
		var out bytes.Buffer
		c := &call{config: config, stdout: &out}
		if err := c.run(t.Context(), strings.Fields(args)); err != nil || out.String() != want {
			t.Errorf("%s: %q, %v", args, out.String(), err)
		}
	}
}

func TestPrintableText(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"valid", "cannot read /tmp/ü: x", "cannot read /tmp/ü: x"},
		{"not UTF-8", "a\xff\xfeb\xc3", "a\ufffdb\ufffd"},
		{"as long as may be", strings.Repeat("x", maxText), strings.Repeat("x", maxText)},
		{"too long", strings.Repeat("x", maxText+1), strings.Repeat("x", maxText)},
		{"a character at the end", strings.Repeat("x", maxText-1) + "ü", strings.Repeat("x", maxText-1)},
		{"too long when valid", strings.Repeat("x\xff", maxText/3), strings.Repeat("x\ufffd", maxText/4)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := printable(tc.text); got != tc.want {
				t.Errorf("got %d bytes %q, want %d", len(got), got, len(tc.want))
			}
		})
	}
}
