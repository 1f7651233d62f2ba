package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/pkg/sys"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const sharedProgram = "containerd-shim-test-shared-v2"

// eventually waits for a condition, which what describes.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not true: %s", what)
		}
	}
}

// sharedSide is a daemonSide that calls the program by the name of the shared runtime, and
// keeps its bundles as containerd does.
type sharedSide struct {
	*daemonSide
	state string
}

func newSharedSide(t *testing.T, env ...string) *sharedSide {
	d := &sharedSide{newDaemonSide(t), t.TempDir()}
	d.program = sharedProgram
	d.env = append(d.env, env...)
	return d
}

const taskBundles = "io.containerd.runtime.v2.task"

// bundleOf makes the bundle of the id. annotations are names and values.
func (d *sharedSide) bundleOf(id string, annotations ...string) string {
	d.t.Helper()
	return d.bundleIn(taskBundles, id, annotations...)
}

func (d *sharedSide) bundleIn(kind, id string, annotations ...string) string {
	d.t.Helper()
	path := filepath.Join(d.state, kind, d.namespace(), id)
	err := os.MkdirAll(path, 0o700)
	if err == nil {
		err = unix.Mkfifo(filepath.Join(path, "log"), 0o700)
	}
	if err == nil && len(annotations) > 0 {
		spec := fmt.Sprintf(`{"annotations":{%q:%q}}`, annotations[0], annotations[1])
		err = os.WriteFile(filepath.Join(path, "config.json"), []byte(spec), 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return path
}

// pod starts a shim for a pod of the id.
func (d *sharedSide) pod(id string) *server {
	d.t.Helper()
	return d.mustStart(id, d.bundleOf(id))
}

// number returns the number of the shim in its pool.
func (s *server) number() string {
	base := filepath.Base(s.path)
	if !isShared(base) {
		return "none"
	}
	return base[strings.LastIndex(base, "-")+1:]
}

// leave tells the shim that nothing is left in a bundle.
func (s *server) leave(bundle string) { s.do("removed " + bundle) }

func TestPodsShareAShimUpToTheBound(t *testing.T) {
	d := newSharedSide(t, podsPerShimEnv+"=3")
	var numbers []string
	pids := make(map[int]int)
	for i := range 7 {
		s := d.pod(fmt.Sprintf("pod-%d", i))
		numbers = append(numbers, s.number())
		pids[s.pid]++
	}
	if got := strings.Join(numbers, " "); got != "0 0 0 1 1 1 2" || len(pids) != 3 {
		t.Errorf("the shims are %s, the processes %v", got, pids)
	}
}

func TestSeatThatIsFreeIsTakenFirst(t *testing.T) {
	d := newSharedSide(t, podsPerShimEnv+"=1")
	shims := []*server{d.pod("a"), d.pod("b"), d.pod("c")}
	shims[1].leave(filepath.Join(d.state, taskBundles, "test", "b"))
	if s := d.pod("d"); s.pid != shims[1].pid {
		t.Errorf("the shim has the number %s", s.number())
	}
	// A hole in the numbers is filled.
	shims[0].leave(filepath.Join(d.state, taskBundles, "test", "a"))
	shims[0].do("shutdown")
	shims[0].wait()
	if s := d.pod("e"); s.number() != "0" {
		t.Errorf("the shim has the number %s", s.number())
	}
	if s := d.pod("f"); s.number() != "3" {
		t.Errorf("the shim has the number %s", s.number())
	}
}

func TestSocketOfAKilledSharedShimIsTakenOver(t *testing.T) {
	d := newSharedSide(t)
	s := d.pod("a")
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wait()
	if !exists(t, s.path) {
		t.Fatal("there is no socket left")
	}
	if again := d.pod("b"); again.path != s.path || again.pid == s.pid {
		t.Errorf("process %d serves on %s, before %d on %s", again.pid, again.path, s.pid, s.path)
	}
}

func TestShimsThatTakeNobodyInArePassedOver(t *testing.T) {
	for name, tc := range map[string]struct {
		do    func(s *server)
		after func(s *server)
	}{
		"one that is about to end": {
			do: func(s *server) {
				s.do("hold the end")
				if err := unix.Kill(s.pid, unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
			},
			after: func(s *server) { s.do("let it end") },
		},
		"one without spare files": {do: func(s *server) { s.do("few files") }},
		"one that does not answer": {
			do: func(s *server) {
				if err := unix.Kill(s.pid, unix.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			},
			after: func(s *server) {
				if err := unix.Kill(s.pid, unix.SIGCONT); err != nil {
					t.Fatal(err)
				}
				// It gets the request for a seat late, and gives the seat back.
				eventually(t, "it has got the request", func() bool { return s.do("was asked for b") == "true" })
				eventually(t, "it has given the seat back", func() bool { return s.do("expects b") == "false" })
				if s.do("expects a") != "true" {
					t.Error("it has given up the seat of another, too")
				}
				if given := s.do("given up"); given != "b" {
					t.Errorf("it has given up %q", given)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSharedSide(t, seatLimitEnv+"=500ms", settleEnv+"=20ms")
			first := d.pod("a")
			tc.do(first)
			second := d.pod("b")
			if second.pid == first.pid {
				t.Error("it is not passed over")
			}
			if tc.after != nil {
				tc.after(first)
			}
		})
	}
}

// A connection that was made before may still ask.
func TestShimThatEndsByASignalTakesNobodyIn(t *testing.T) {
	d := newSharedSide(t)
	s := d.pod("a")
	bundle := d.bundleOf("b")
	s.do("hold the end")
	if err := unix.Kill(s.pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its socket is gone", func() bool { return !exists(t, s.path) })
	if err := callSeats(t.Context(), s.client, takeMethod, "b", bundle); err == nil || !strings.Contains(err.Error(), "about to end") {
		t.Errorf("got error %v", err)
	}
	s.do("let it end")
	s.wait()
}

func TestStartsOfManyPodsAtTheSameTime(t *testing.T) {
	const pods, bound = 60, 7
	d := newSharedSide(t, podsPerShimEnv+fmt.Sprintf("=%d", bound), seatLimitEnv+"=5m")
	addresses := make([]string, pods)
	var wg sync.WaitGroup
	for i := range pods {
		id := fmt.Sprintf("pod-%d", i)
		bundle := d.bundleOf(id)
		wg.Go(func() {
			result, err := d.start(id, bundle, nil)
			if err != nil {
				t.Error(err)
				return
			}
			addresses[i] = result.Address
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	shims := make(map[string]int)
	for _, address := range addresses {
		if shims[address]++; shims[address] == 1 {
			connect(t, strings.TrimPrefix(address, unixScheme))
		}
	}
	for address, n := range shims {
		if n > bound {
			t.Errorf("%d pods are in %s", n, address)
		}
	}
	if want := (pods + bound - 1) / bound; len(shims) != want {
		t.Errorf("the pods are in %d shims, want %d: %v", len(shims), want, shims)
	}
}

func TestPodsOfAnotherKindGetAnotherShim(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(d *sharedSide)
		options *options.Options
	}{
		"the same":            {},
		"other options":       {options: &options.Options{BinaryName: "crun"}},
		"another bound":       {change: func(d *sharedSide) { d.env = append(d.env, podsPerShimEnv+"=5") }},
		"another daemon":      {change: func(d *sharedSide) { d.daemon = "/run/other/containerd.sock" }},
		"another for events":  {change: func(d *sharedSide) { d.events = "/run/other/containerd.sock.ttrpc" }},
		"another namespace":   {change: func(d *sharedSide) { d.ns = "other" }},
		"another build":       {change: func(d *sharedSide) { d.exe = copyOfProgram(t) }},
		"another, not shared": {change: func(d *sharedSide) { d.program = "" }},
	} {
		t.Run(name, func(t *testing.T) {
			d := newSharedSide(t)
			first := d.pod("a")
			if tc.change != nil {
				tc.change(d)
			}
			result, err := d.start("b", d.bundleOf("b"), tc.options)
			if err != nil {
				t.Fatal(err)
			}
			second := connect(t, strings.TrimPrefix(result.Address, unixScheme))
			if same := second.pid == first.pid; same != (name == "the same") {
				t.Errorf("processes %d on %s and %d on %s", first.pid, first.path, second.pid, second.path)
			}
		})
	}
}

func copyOfProgram(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	path := filepath.Join(t.TempDir(), "copy")
	if err := errors.Join(err, os.WriteFile(path, data, 0o700)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPodsThatCannotShareGetAShimOfTheirOwn(t *testing.T) {
	t.Run("a group with a name", func(t *testing.T) {
		d := newSharedSide(t)
		first := d.pod("a")
		own := d.mustStart("b", d.bundleOf("b", groupAnnotation, "b"))
		if own.pid == first.pid || own.number() != "none" {
			t.Errorf("process %d serves on %s", own.pid, own.path)
		}
		if other := d.mustStart("c", d.bundleOf("c", groupAnnotation, "b")); other.pid != own.pid {
			t.Error("the members of the group have different shims")
		}
		if next := d.pod("d"); next.pid != first.pid {
			t.Error("a pod without a group is not in the shared one")
		}
	})
	// The host may have no core scheduling: then the start fails, but not in a shared shim.
	t.Run("core scheduling", func(t *testing.T) {
		d := newSharedSide(t)
		first := d.pod("a")
		d.env = append(d.env, schedCoreEnv+"=1")
		result, err := d.start("b", d.bundleOf("b"), nil)
		switch {
		case err != nil && strings.Contains(err.Error(), "core scheduling group"):
		case err != nil:
			t.Error(err)
		default:
			if own := connect(t, strings.TrimPrefix(result.Address, unixScheme)); own.pid == first.pid || own.number() != "none" {
				t.Errorf("process %d serves on %s", own.pid, own.path)
			}
		}
		if first.do("expects b") != "false" {
			t.Error("the shared shim has a seat for it")
		}
	})
	t.Run("a cgroup for the shim", func(t *testing.T) {
		d := newSharedSide(t)
		first := d.pod("a")
		_, err := d.start("b", d.bundleOf("b"), &options.Options{ShimCgroup: "/no/such/cgroup"})
		if err == nil || !strings.Contains(err.Error(), "/no/such/cgroup") || first.do("expects b") != "false" {
			t.Errorf("got error %v", err)
		}
	})
}

func TestContainerIsLedToTheSharedShimOfItsPod(t *testing.T) {
	for name, kind := range map[string]string{"a sandbox task": taskBundles, "a sandbox of the Sandbox API": sandboxBundles} {
		t.Run(name, func(t *testing.T) {
			d := newSharedSide(t, podsPerShimEnv+"=1")
			d.pod("first")
			s := d.mustStart("pod", d.bundleIn(kind, "pod"))
			d.mustStart("third", d.bundleOf("third"))
			bundle := d.bundleOf("c1", podAnnotation, "pod")
			member := d.mustStart("c1", bundle)
			if member.pid != s.pid {
				t.Errorf("it is led to %s, its pod is in %s", member.path, s.path)
			}
			if s.do("expects c1") != "false" {
				t.Error("it has a seat of its own")
			}
			if path, err := readAddress(bundle); err != nil || path != s.path {
				t.Errorf("its bundle has the address %q, error %v", path, err)
			}
			// One whose pod has no shim any more may have a seat.
			if other := d.mustStart("c2", d.bundleOf("c2", podAnnotation, "gone")); other.do("expects c2") != "true" {
				t.Error("a container without its pod has no seat")
			}
		})
	}
}

func TestSharedShimBelongsToNoBundle(t *testing.T) {
	d := newSharedSide(t)
	first, second, third := d.bundleOf("a"), d.bundleOf("b"), d.bundleOf("c")
	logA, logB, logC := openLogAsContainerd(t, first), openLogAsContainerd(t, second), openLogAsContainerd(t, third)
	s := d.mustStart("a", first)
	d.mustStart("b", second)
	if dir := s.do("directory"); dir != "/" {
		t.Errorf("it works in %s", dir)
	}
	if got := s.do("process"); got != "test a "+first+" false" {
		t.Errorf("the process is %q", got)
	}
	for _, bundle := range []string{first, second} {
		if exists(t, filepath.Join(bundle, processFile)) {
			t.Errorf("%s says that the process is for it alone", bundle)
		}
	}
	daemon, err := sys.GetOOMScoreAdj(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if score, err := sys.GetOOMScoreAdj(s.pid); err != nil || score != daemon {
		t.Errorf("its OOM score is %d with %d for its daemon, error %v", score, daemon, err)
	}
	if procs := s.do("processors"); procs != s.do("processors wanted") {
		t.Errorf("it uses %s processors", procs)
	}
	for line := range strings.Lines(s.do("environment")) {
		if strings.HasPrefix(line, "GOMAXPROCS=") {
			t.Errorf("%q is in the environment", line)
		}
	}

	s.do("log one to a")
	readUntil(t, logA, "to a")
	s.leave(first)
	if a := answerIn(t, first); a == nil || a.Pid != 8 {
		t.Errorf("the answer to delete is %v", a)
	}
	s.do("log one to b")
	readUntil(t, logB, "to b")
	// For a moment there is no bundle left.
	s.leave(second)
	if other := d.mustStart("c", third); other.pid != s.pid {
		t.Fatal("the third is in another shim")
	}
	s.do("log one to c")
	readUntil(t, logC, "to c")
}

func TestSharedShimEndsWhenNoSeatIsTaken(t *testing.T) {
	d := newSharedSide(t)
	s := d.pod("a")
	d.pod("b")
	s.do("shutdown")
	s.leave(filepath.Join(d.state, taskBundles, "test", "a"))
	s.do("shutdown")
	s.do("forget none")
	if s.do("pid"); s.do("expects a") != "false" || s.do("expects b") != "true" {
		t.Error("the seats are wrong")
	}
	s.do("forget b")
	s.do("shutdown")
	if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 || exists(t, s.path) {
		t.Errorf("it ended with %v, its socket exists: %t", status, exists(t, s.path))
	}
}

func TestDeleteInASharedShimGivesUpThatOneOnly(t *testing.T) {
	d := newSharedSide(t)
	a, b := d.bundleOf("a"), d.bundleOf("b")
	s := d.mustStart("a", a)
	d.mustStart("b", b)
	for _, tc := range []struct{ id, bundle string }{{"a", a}, {"c1", d.bundleOf("c1", podAnnotation, "b")}} {
		if tc.id == "c1" {
			d.mustStart(tc.id, tc.bundle)
		}
		if stderr := d.mustDelete(tc.id, tc.bundle); stderr != "" {
			t.Errorf("it warns: %s", stderr)
		}
	}
	if given := s.do("given up"); given != "a c1" {
		t.Errorf("given up are %q", given)
	}
	if s.do("expects a") != "false" || s.do("expects b") != "true" {
		t.Error("the seats are wrong")
	}
	d.mustDelete("b", b)
	if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("it ended with %v", status)
	}
}

// containerd kills a `start` that takes too long, and removes the bundle without a word to
// the shim.
func TestShimEndsAfterAStartThatWasKilled(t *testing.T) {
	d := newSharedSide(t, settleEnv+"=20ms")
	a, b := d.bundleOf("a"), d.bundleOf("b")
	s := d.mustStart("a", a)
	if err := callSeats(t.Context(), s.client, takeMethod, "b", b); err != nil {
		t.Fatal(err)
	}
	s.leave(a)
	s.do("shutdown") // the last request that containerd has
	if s.do("expects b") != "true" {
		t.Fatal("it does not wait for b")
	}
	if err := os.RemoveAll(b); err != nil {
		t.Fatal(err)
	}
	select {
	case <-s.closed:
	case <-time.After(time.Minute):
		t.Fatal("it is there for ever")
	}
	s.wait()
}

func TestNameOfTheSharedRuntime(t *testing.T) {
	d := newSharedSide(t)
	stdout, stderr, err := d.call(t.TempDir(), nil, "-info")
	var info types.RuntimeInfo
	if err := errors.Join(err, proto.Unmarshal([]byte(stdout), &info)); err != nil || info.Name != testConfig.SharedRuntime {
		t.Errorf("got %v and error %v: %s", &info, err, stderr)
	}
	stdout, _, err = d.call(t.TempDir(), nil, "-v")
	if err != nil || !strings.HasPrefix(stdout, sharedProgram+":\n") {
		t.Errorf("the version is %q, error %v", stdout, err)
	}
	_, stderr, err = d.call(t.TempDir(), nil, "-namespace", "test", "start")
	if err == nil || !strings.HasPrefix(stderr, testConfig.SharedRuntime+": -id is missing") {
		t.Errorf("got %q and error %v", stderr, err)
	}
	if s := d.pod("a"); s.do("runtime") != testConfig.SharedRuntime {
		t.Error("the shim has another name")
	}
	// The link that a package installs.
	link := filepath.Join(t.TempDir(), sharedProgram)
	program, err := os.Executable()
	if err := errors.Join(err, os.Symlink(program, link)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(link, "-info")
	cmd.Env = append(os.Environ(), d.env...)
	out, err := cmd.Output()
	if err := errors.Join(err, proto.Unmarshal(out, &info)); err != nil || info.Name != testConfig.SharedRuntime {
		t.Errorf("by the link: got %v and error %v", &info, err)
	}
}

func TestProgramOfARuntime(t *testing.T) {
	for runtime, want := range map[string]string{
		"io.containerd.pause-shared.v2": "containerd-shim-pause-shared-v2",
		"io.containerd.pause.v2":        "containerd-shim-pause-v2",
		"pause.v2":                      "containerd-shim-pause-v2",
		"v2":                            "containerd-shim-v2",
	} {
		if got := programOf(runtime); got != want {
			t.Errorf("%s: got %s, want %s", runtime, got, want)
		}
	}
}

func TestPodsPerShim(t *testing.T) {
	for _, tc := range []struct {
		name, toml, env string
		want            int
		err             string
	}{
		{name: "default", want: 32},
		{name: "option", toml: "PodsPerShim = 5", want: 5},
		{name: "environment", env: "6", want: 6},
		{name: "option before environment", toml: "PodsPerShim = 5", env: "6", want: 5},
		{name: "option before a bad environment", toml: "PodsPerShim = 5", env: "many", want: 5},
		{name: "zero leaves it to the environment", toml: "PodsPerShim = 0", env: "6", want: 6},
		{name: "the least", env: "1", want: 1},
		{name: "the most", toml: "PodsPerShim = 1000", want: 1000},
		{name: "too many", toml: "PodsPerShim = 1001", err: "the option PodsPerShim: 1001 is not between 1 and 1000"},
		{name: "negative", toml: "PodsPerShim = -1", err: "the option PodsPerShim: -1 is not"},
		{name: "no number in the environment", env: "many", err: `$PAUSE_PODS_PER_SHIM: strconv.Atoi: parsing "many"`},
		{name: "zero in the environment", env: "0", err: "$PAUSE_PODS_PER_SHIM: 0 is not"},
		{name: "too many in the environment", env: "1001", err: "$PAUSE_PODS_PER_SHIM: 1001 is not"},
		{name: "a text as the option", toml: "PodsPerShim = 'many'", err: "line 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv(podsPerShimEnv, tc.env)
			o, err := DecodeOptions(generic(t, &runtimeoptions.Options{ConfigBody: []byte(tc.toml)}))
			got := 0
			if err == nil {
				got, err = o.podsPerShim()
			}
			if tc.err == "" && (err != nil || got != tc.want) || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %d and error %v, want %d %s", got, err, tc.want, tc.err)
			}
		})
	}
	d := newSharedSide(t, podsPerShimEnv+"=many")
	if _, err := d.start("a", d.bundleOf("a"), nil); err == nil || !strings.Contains(err.Error(), testConfig.SharedRuntime+": cannot use $"+podsPerShimEnv) {
		t.Errorf("a start has the error %v", err)
	}
}

func TestNumbersOfAPool(t *testing.T) {
	dir := t.TempDir()
	p := pool{dir, "pool-x"}
	for _, name := range []string{"pool-x-10", "pool-x-2", "pool-x-", "pool-x-a", "pool-xy-1", "pool-y-3", "0", "pool-x-0"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := p.numbers(); err != nil || !slices.Equal(got, []int{0, 2, 10}) {
		t.Errorf("got %v and error %v", got, err)
	}
	if got, err := (pool{filepath.Join(dir, "none"), "pool-x"}).numbers(); err != nil || len(got) > 0 {
		t.Errorf("without a directory: got %v and error %v", got, err)
	}
}
