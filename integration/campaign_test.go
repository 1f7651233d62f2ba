package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"containerd-shim-pause-v2/integration/node"
)

// Random RPCs of both services, many at a time, to shims with the race detector. What counts is
// what holds whatever they are: see check.

const (
	// campaignWorkers call each shim at the same time.
	campaignWorkers = 4
	// campaignTasks are how many containers a shim has at a time.
	campaignTasks = 4
	// campaignThreads is more than a shim has threads: Go's runtime ends none, and what waits in a
	// system call has one of its own.
	campaignThreads = 64
)

// answerLimit is how long an RPC may take.
func answerLimit() time.Duration { return patience * time.Minute }

// TestCampaign takes a quarter of a minute, or as long as PAUSE_TEST_CAMPAIGN says. PAUSE_TEST_SEED
// repeats what was chosen, but not the order in which it met.
func TestCampaign(t *testing.T) {
	withPause(t, func(t *testing.T) {
		length, seed := 15*time.Second, uint64(time.Now().UnixNano())
		var err error
		if text := os.Getenv("PAUSE_TEST_CAMPAIGN"); text != "" {
			length, err = time.ParseDuration(text)
			must(t, err)
		}
		if text := os.Getenv("PAUSE_TEST_SEED"); text != "" {
			seed, err = strconv.ParseUint(text, 10, 64)
			must(t, err)
		}
		t.Logf("PAUSE_TEST_SEED=%d PAUSE_TEST_CAMPAIGN=%s", seed, length)
		program, root, races := raceProgram(t), handRoot(t), t.TempDir()
		var all []*campaign
		for i, kind := range []kind{plain, podOfTask, podOfSandbox} {
			all = append(all, newCampaign(t, kind, program, root, races, rand.New(rand.NewPCG(seed, uint64(i)))))
		}
		together(all, func(c *campaign) { c.run(length*4/5, func() {}) })
		for _, c := range all {
			c.checkHeld()
		}
		// What a pod's containers do when the pod ends.
		together(all, func(c *campaign) { c.run(length/5, c.endPod) })
		for _, c := range all {
			c.check()
		}
		reports, err := filepath.Glob(filepath.Join(races, "*"))
		must(t, err)
		for _, report := range reports {
			t.Errorf("data race:\n%s", readFile(t, report))
		}
		if t.Failed() {
			for _, c := range all {
				t.Logf("log of shim %s:\n%.20000s", c.shim.id, withoutStacks(c.shim.logged()))
			}
		}
	})
}

func together(all []*campaign, f func(c *campaign)) {
	var running sync.WaitGroup
	for _, c := range all {
		running.Go(func() { f(c) })
	}
	running.Wait()
}

// kind is for what a shim is.
type kind string

const (
	plain        kind = "plain"       // for a group of containers
	podOfTask    kind = "pod-task"    // for a pod by the Task API
	podOfSandbox kind = "pod-sandbox" // for a pod by the Sandbox API
)

// campaign is what is done to one shim.
type campaign struct {
	t      *testing.T
	kind   kind
	shim   *handShim
	root   string
	dir    string // of fifos
	random *rand.Rand
	before resources
	waits  sync.WaitGroup
	number atomic.Int64 // of the last id

	mu       sync.Mutex
	tasks    map[string]*campaignTask // guarded by mu: those that may exist
	exits    map[string]exitStatuses  // guarded by mu: what was answered, by task/process
	answers  map[string]int           // guarded by mu: how often, by RPC and code
	messages map[string]int           // guarded by mu: those of errors, without ids
	pending  map[string]int           // guarded by mu: waits without an answer
	own      map[string]uint32        // guarded by mu: exit codes of programs, by task/process
}

// campaignTask is a container.
type campaignTask struct {
	id, bundle string
	fifos      []*fifos
	execs      []string
	asked      bool // the RPC that creates it has been answered, or its client has left
}

// exitStatuses are the exit statuses that the shim has told of a process.
type exitStatuses map[uint32]bool

// resources are what a shim holds.
type resources struct {
	files    map[string]int
	creators map[string]int // of goroutines
}

func newCampaign(t *testing.T, k kind, program, root, races string, random *rand.Rand) *campaign {
	t.Helper()
	c := &campaign{
		t: t, kind: k, root: root, dir: t.TempDir(), random: random,
		tasks: make(map[string]*campaignTask), exits: make(map[string]exitStatuses), answers: make(map[string]int),
		messages: make(map[string]int), pending: make(map[string]int), own: make(map[string]uint32),
	}
	id := fmt.Sprintf("%s-%s", theNode.ID, k)
	plugin := taskPlugin
	if k == podOfSandbox {
		plugin = sandboxPlugin
	}
	bundle := bundleOf(t, plugin, id)
	if k != podOfSandbox {
		must(t, writeSpec(bundle, c.anchorSpec(id)))
	}
	c.shim = startHandShim(t, program, id, bundle, races)
	ctx := t.Context()
	if k == podOfSandbox {
		_, err := c.shim.pods.CreateSandbox(ctx, c.sandboxRequest())
		must(t, err)
		_, err = c.shim.pods.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
		must(t, err)
	} else {
		_, err := c.shim.tasks.Create(ctx, c.createRequest(id, bundle))
		must(t, err)
		_, err = c.shim.tasks.Start(ctx, &taskapi.StartRequest{ID: id})
		must(t, err)
	}
	c.waits.Go(c.waitForSandbox)
	c.warmUp()
	c.before = c.held()
	return c
}

// warmUp has the shim make what it keeps: the poller, and the init of a pod's PID namespace.
func (c *campaign) warmUp() {
	c.t.Helper()
	id := c.shim.id + "-first"
	bundle := bundleOf(c.t, taskPlugin, id)
	must(c.t, writeSpec(bundle, c.spec(id, "exec sleep 1000", true, false)))
	ctx, tasks := c.t.Context(), c.shim.tasks
	_, err := tasks.Create(ctx, c.createRequest(id, bundle))
	must(c.t, err)
	_, err = tasks.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(unix.SIGKILL)})
	must(c.t, err)
	_, err = tasks.Wait(ctx, &taskapi.WaitRequest{ID: id})
	must(c.t, err)
	_, err = tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id})
	must(c.t, err)
	must(c.t, removeBundle(bundle))
}

// anchorSpec is that of the task for which the shim was started, which lives as long.
func (c *campaign) anchorSpec(id string) *specs.Spec {
	if c.kind == plain {
		s := c.spec(id, "sleep 1000000", false, false)
		delete(s.Annotations, "io.containerd.runc.v2.group")
		return s
	}
	return &specs.Spec{
		Version: "1.0.2", Process: &specs.Process{Args: []string{"/pause"}, Cwd: "/"}, Hostname: "campaign",
		Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id},
		Linux: &specs.Linux{CgroupsPath: theNode.CgroupsPath(id), Namespaces: []specs.LinuxNamespace{
			{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.MountNamespace},
		}},
	}
}

func (c *campaign) sandboxRequest() *sandboxapi.CreateSandboxRequest {
	config := theNode.PodConfig(nil)
	return &sandboxapi.CreateSandboxRequest{
		SandboxID: c.shim.id, BundlePath: c.shim.bundle, Options: encoded(c.t, config),
	}
}

func encoded(t *testing.T, v any) *anypb.Any {
	t.Helper()
	data, err := typeurl.MarshalAnyToProto(v)
	must(t, err)
	return data
}

// spec is that of a container that runs a script. One of a pod may share the pod's PID namespace.
func (c *campaign) spec(id, script string, sharesPID, terminal bool) *specs.Spec {
	s := &specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "rootfs", Readonly: true},
		Process: &specs.Process{Args: []string{"sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: terminal},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666"}},
		},
		Linux: &specs.Linux{CgroupsPath: theNode.CgroupsPath(id), Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
	}
	add := func(kind specs.LinuxNamespaceType, path string) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}
	if c.kind == plain {
		s.Annotations = map[string]string{"io.containerd.runc.v2.group": theNode.ID + "-plain"}
		add(specs.PIDNamespace, "")
		add(specs.IPCNamespace, "")
		return s
	}
	s.Annotations = map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": c.shim.id}
	of := func(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", c.shim.pid, name) }
	add(specs.NetworkNamespace, of("net"))
	add(specs.IPCNamespace, of("ipc"))
	add(specs.UTSNamespace, of("uts"))
	if sharesPID {
		add(specs.PIDNamespace, of("pid"))
	} else {
		add(specs.PIDNamespace, "")
	}
	return s
}

func (c *campaign) createRequest(id, bundle string) *taskapi.CreateTaskRequest {
	r := &taskapi.CreateTaskRequest{ID: id, Bundle: bundle, Options: encoded(c.t, c.shim.options())}
	if id != c.shim.id || c.kind == plain {
		r.Rootfs = []*types.Mount{{Type: "bind", Source: c.root, Options: []string{"rbind", "ro"}}}
	}
	return r
}

// campaignPrograms are what containers and execs run, with the exit code if no signal comes.
var campaignPrograms = []struct {
	script string
	code   uint32
}{
	{"exec sleep 1000", 0},
	{"exit 7", 7},
	{"sleep 0.2; exit 8", 8},
	{"trap 'exit 9' TERM; while :; do sleep 0.02; done", 9},
	{"sleep 1000 & sleep 1001 & wait", 0},
	{"cat; exit 5", 5},
	{"i=0; while [ $i -lt 300 ]; do echo $i 0123456789; echo $i >&2; i=$((i+1)); done; exit 3", 3},
}

var campaignSignals = []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGUSR1}

// plausible says whether a process can have ended so: by its own, or by a signal that it was sent.
func plausible(own, status uint32) bool {
	// The init that runc has created, and that no Start has come to, handles SIGTERM as a Go program
	// does: PID 1 does not die of the signal that it sends itself then, and exits with 2.
	return status == own || status == 2 || slices.ContainsFunc(campaignSignals, func(s unix.Signal) bool { return status == 128+uint32(s) })
}

// run does random things as long, with something else in the middle, and then ends all containers
// that there are.
func (c *campaign) run(length time.Duration, middle func()) {
	if c.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var workers sync.WaitGroup
	for range campaignWorkers {
		random := rand.New(rand.NewPCG(c.random.Uint64(), 0))
		workers.Go(func() {
			for ctx.Err() == nil && !c.t.Failed() {
				c.step(random)
				if random.IntN(20) == 0 {
					c.tidy()
				}
			}
		})
	}
	workers.Go(func() { c.resumeNowAndThen(ctx) })
	time.AfterFunc(length/2, middle)
	done := make(chan struct{})
	go func() { workers.Wait(); close(done) }()
	// What workers wait for then may need the end of a container.
	<-ctx.Done()
	c.end(done)
}

// endPod ends the sandbox under its containers. The end of one that is a task is awaited later.
func (c *campaign) endPod() {
	switch c.kind {
	case podOfTask:
		_ = c.call(nil, "Kill", func(ctx context.Context) error {
			_, err := c.shim.tasks.Kill(ctx, &taskapi.KillRequest{ID: c.shim.id, Signal: uint32(unix.SIGKILL)})
			return err
		})
	case podOfSandbox:
		_ = c.call(nil, "StopSandbox", func(ctx context.Context) error {
			_, err := c.shim.pods.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: c.shim.id})
			return err
		})
	}
}

// resumeNowAndThen keeps containers from being paused for long: the start of an exec in one does not
// end before, and all workers might come to do just that.
func (c *campaign) resumeNowAndThen(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
		}
		c.mu.Lock()
		ids := slices.Collect(maps.Keys(c.tasks))
		c.mu.Unlock()
		for _, id := range ids {
			_ = c.call(nil, "Resume", func(ctx context.Context) error {
				_, err := c.shim.tasks.Resume(ctx, &taskapi.ResumeRequest{ID: id})
				return err
			})
		}
	}
}

// call has one RPC done, with a client that goes away now and then. It returns its error.
func (c *campaign) call(random *rand.Rand, name string, rpc func(ctx context.Context) error) error {
	limit := answerLimit()
	impatient := random != nil && random.IntN(40) == 0
	if impatient {
		limit = time.Duration(random.IntN(60)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	err := rpc(ctx)
	c.count(name, err)
	if !impatient && ctx.Err() != nil {
		stacks, _ := c.shim.stacks()
		c.t.Errorf("shim %s: no answer to %s after %s\n%s\n%s", c.shim.id, name, limit, c.processes(), stacks)
	}
	return err
}

// processes shows what the processes in the tasks' cgroups, and those of OCI runtimes, are at.
func (c *campaign) processes() string {
	var b strings.Builder
	for _, p := range node.Processes() {
		cgroups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid))
		if !strings.Contains(string(cgroups), c.shim.id) && !strings.Contains(strings.Join(p.Args, " "), c.shim.id) {
			continue
		}
		wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", p.Pid))
		freezer := ""
		for line := range strings.Lines(string(cgroups)) {
			if _, path, ok := strings.Cut(strings.TrimSpace(line), ":freezer:"); ok {
				state, _ := os.ReadFile(filepath.Join(cgroupMount, "freezer", path, "freezer.state"))
				freezer = path + " " + strings.TrimSpace(string(state))
			}
		}
		fmt.Fprintf(&b, "%s: %s, %s\n", p, wchan, freezer)
	}
	return b.String()
}

func (c *campaign) count(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	code := status.Code(err)
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	c.answers[name+" "+code.String()]++
	if code == codes.Unknown { // of other kinds there are many, as the calls are random
		c.messages[name+": "+withoutIDs(err.Error())]++
	}
	if code == codes.Internal || code == codes.Unimplemented {
		c.t.Errorf("shim %s: %s: %v", c.shim.id, name, err)
	}
}

// withoutIDs makes the messages of like errors the same.
func withoutIDs(text string) string {
	text = strings.ReplaceAll(text, theNode.ID, "node")
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, text)
}

// step does one random thing.
func (c *campaign) step(random *rand.Rand) {
	id, execID := c.pick(random)
	tasks, pods := c.shim.tasks, c.shim.pods
	if random.IntN(100) == 0 {
		id = "stranger"
	}
	do := func(name string, rpc func(ctx context.Context) error) { _ = c.call(random, name, rpc) }
	switch n := random.IntN(100); {
	case n < 16:
		c.create(random)
	case n < 24:
		do("Start", func(ctx context.Context) error {
			_, err := tasks.Start(ctx, &taskapi.StartRequest{ID: id, ExecID: execID})
			return err
		})
	case n < 36:
		c.exec(random, id)
	case n < 44:
		r := &taskapi.KillRequest{ID: id, ExecID: execID, Signal: uint32(campaignSignals[random.IntN(len(campaignSignals))]), All: random.IntN(4) == 0}
		do("Kill", func(ctx context.Context) error { _, err := tasks.Kill(ctx, r); return err })
	case n < 52:
		c.delete(random, id, execID)
	case n < 57:
		do("Pause", func(ctx context.Context) error { _, err := tasks.Pause(ctx, &taskapi.PauseRequest{ID: id}); return err })
	case n < 64:
		do("Resume", func(ctx context.Context) error {
			_, err := tasks.Resume(ctx, &taskapi.ResumeRequest{ID: id})
			return err
		})
	case n < 69:
		c.wait(id, execID)
	case n < 73:
		do("State", func(ctx context.Context) error {
			_, err := tasks.State(ctx, &taskapi.StateRequest{ID: id, ExecID: execID})
			return err
		})
	case n < 77:
		do("Pids", func(ctx context.Context) error { _, err := tasks.Pids(ctx, &taskapi.PidsRequest{ID: id}); return err })
	case n < 80:
		do("Stats", func(ctx context.Context) error { _, err := tasks.Stats(ctx, &taskapi.StatsRequest{ID: id}); return err })
	case n < 83:
		limit := int64(500 + random.IntN(500))
		r := &taskapi.UpdateTaskRequest{ID: id, Resources: encoded(c.t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}})}
		do("Update", func(ctx context.Context) error { _, err := tasks.Update(ctx, r); return err })
	case n < 87:
		do("CloseIO", func(ctx context.Context) error {
			_, err := tasks.CloseIO(ctx, &taskapi.CloseIORequest{ID: id, ExecID: execID, Stdin: true})
			return err
		})
	case n < 90:
		do("ResizePty", func(ctx context.Context) error {
			_, err := tasks.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: id, ExecID: execID, Width: 80, Height: uint32(random.IntN(60))})
			return err
		})
	case n < 92:
		do("Connect", func(ctx context.Context) error {
			_, err := tasks.Connect(ctx, &taskapi.ConnectRequest{ID: id})
			return err
		})
	case n < 93: // The anchor keeps the shim.
		do("Shutdown", func(ctx context.Context) error {
			_, err := tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
			return err
		})
	case n < 95:
		do("SandboxStatus", func(ctx context.Context) error {
			_, err := pods.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: c.shim.id, Verbose: true})
			return err
		})
	case n < 96:
		do("PingSandbox", func(ctx context.Context) error {
			_, err := pods.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: c.shim.id})
			return err
		})
	case n < 97:
		do("Platform", func(ctx context.Context) error {
			_, err := pods.Platform(ctx, &sandboxapi.PlatformRequest{SandboxID: c.shim.id})
			return err
		})
	case n < 98:
		do("SandboxMetrics", func(ctx context.Context) error {
			_, err := pods.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: c.shim.id})
			return err
		})
	case n < 99:
		if c.kind != podOfSandbox {
			return
		}
		do("CreateSandbox", func(ctx context.Context) error {
			_, err := pods.CreateSandbox(ctx, c.sandboxRequest())
			return err
		})
	default:
		do("StartSandbox", func(ctx context.Context) error {
			_, err := pods.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: c.shim.id})
			return err
		})
	}
}

// pick chooses a container, and often one of its execs.
func (c *campaign) pick(random *rand.Rand) (id, execID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.tasks) == 0 {
		return "none", ""
	}
	t := c.tasks[slices.Sorted(maps.Keys(c.tasks))[random.IntN(len(c.tasks))]]
	if len(t.execs) > 0 && random.IntN(2) == 0 {
		execID = t.execs[random.IntN(len(t.execs))]
	}
	return t.id, execID
}

// newStdio makes fifos for a process in one of two cases. It has none otherwise.
func (c *campaign) newStdio(random *rand.Rand, task *campaignTask, name string) (stdin, stdout, stderr string, terminal bool) {
	terminal = random.IntN(4) == 0
	if !terminal && random.IntN(2) == 0 {
		return "", "", "", false
	}
	stdin, stdout, stderr, f, err := newFifos(c.dir, name, terminal)
	if err != nil {
		c.t.Error(err)
		return "", "", "", false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	task.fifos = append(task.fifos, f)
	return stdin, stdout, stderr, terminal
}

func (c *campaign) create(random *rand.Rand) {
	task := &campaignTask{id: fmt.Sprintf("%s-%s-%d", theNode.ID, c.kind, c.number.Add(1))}
	program := campaignPrograms[random.IntN(len(campaignPrograms))]
	task.bundle = filepath.Join(theNode.Dir, "state", taskPlugin, campaignNamespace, task.id)
	c.mu.Lock()
	full := len(c.tasks) >= campaignTasks
	if !full {
		c.tasks[task.id] = task
		c.own[task.id+"/"+task.id] = program.code
	}
	c.mu.Unlock()
	if full {
		return
	}
	bundleOf(c.t, taskPlugin, task.id)
	r := c.createRequest(task.id, task.bundle)
	r.Stdin, r.Stdout, r.Stderr, r.Terminal = c.newStdio(random, task, task.id)
	if err := writeSpec(task.bundle, c.spec(task.id, program.script, random.IntN(2) == 0, r.Terminal)); err != nil {
		c.t.Error(err)
		return
	}
	err := c.call(random, "Create", func(ctx context.Context) error { _, err := c.shim.tasks.Create(ctx, r); return err })
	c.mu.Lock()
	task.asked = true
	c.mu.Unlock()
	if err != nil {
		return // whether it is there or not, tidy finds out
	}
	if random.IntN(3) > 0 {
		_ = c.call(random, "Start", func(ctx context.Context) error {
			_, err := c.shim.tasks.Start(ctx, &taskapi.StartRequest{ID: task.id})
			return err
		})
	}
}

func (c *campaign) exec(random *rand.Rand, id string) {
	execID := fmt.Sprintf("x%d", c.number.Add(1))
	program := campaignPrograms[random.IntN(len(campaignPrograms))]
	c.mu.Lock()
	task := c.tasks[id]
	if task != nil {
		task.execs = append(task.execs, execID)
		c.own[id+"/"+execID] = program.code
	}
	c.mu.Unlock()
	if task == nil {
		return
	}
	r := &taskapi.ExecProcessRequest{ID: id, ExecID: execID}
	r.Stdin, r.Stdout, r.Stderr, r.Terminal = c.newStdio(random, task, id+"-"+execID)
	r.Spec = encoded(c.t, &specs.Process{Args: []string{"sh", "-c", program.script}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: r.Terminal})
	if err := c.call(random, "Exec", func(ctx context.Context) error { _, err := c.shim.tasks.Exec(ctx, r); return err }); err != nil {
		return
	}
	if random.IntN(4) > 0 {
		_ = c.call(random, "Start", func(ctx context.Context) error {
			_, err := c.shim.tasks.Start(ctx, &taskapi.StartRequest{ID: id, ExecID: execID})
			return err
		})
	}
}

// delete deletes a process. Of a task nothing must be left then.
func (c *campaign) delete(random *rand.Rand, id, execID string) {
	var answer *taskapi.DeleteResponse
	err := c.call(random, "Delete", func(ctx context.Context) (err error) {
		answer, err = c.shim.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id, ExecID: execID})
		return err
	})
	if err != nil {
		return
	}
	process := execID
	if process == "" {
		process = id
	}
	// A process that never ran has no exit.
	if answer.ExitedAt != nil && answer.ExitedAt.IsValid() && answer.ExitedAt.AsTime().Unix() > 0 {
		c.exited(id+"/"+process, answer.ExitStatus)
	}
	if execID == "" {
		c.forget(id)
	}
}

// forget removes what a client removes of a task that is gone.
func (c *campaign) forget(id string) {
	c.mu.Lock()
	task := c.tasks[id]
	delete(c.tasks, id)
	c.mu.Unlock()
	if task == nil {
		return
	}
	for _, f := range task.fifos {
		f.close()
	}
	if err := removeBundle(task.bundle); err != nil {
		c.t.Errorf("shim %s has left something of task %s: %v", c.shim.id, id, err)
	}
}

func (c *campaign) exited(process string, status uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.exits[process] == nil {
		c.exits[process] = make(exitStatuses)
	}
	c.exits[process][status] = true
}

// wait waits for the end of a process beside all else. When all has been deleted, every wait must
// have been answered.
func (c *campaign) wait(id, execID string) {
	process := id + "/" + id
	if execID != "" {
		process = id + "/" + execID
	}
	c.mu.Lock()
	c.pending[process]++
	c.mu.Unlock()
	c.waits.Go(func() {
		answer, err := c.shim.tasks.Wait(context.Background(), &taskapi.WaitRequest{ID: id, ExecID: execID})
		c.count("Wait", err)
		c.mu.Lock()
		if c.pending[process]--; c.pending[process] == 0 {
			delete(c.pending, process)
		}
		c.mu.Unlock()
		if err == nil && answer.ExitedAt.AsTime().Unix() > 0 {
			c.exited(process, answer.ExitStatus)
		}
	})
}

// waitForSandbox waits for the end of a sandbox of the Sandbox API.
func (c *campaign) waitForSandbox() {
	answer, err := c.shim.pods.WaitSandbox(context.Background(), &sandboxapi.WaitSandboxRequest{SandboxID: c.shim.id})
	c.count("WaitSandbox", err)
	if c.kind == podOfSandbox && (err != nil || answer.ExitStatus != 137) {
		c.t.Errorf("shim %s: the sandbox has ended with %v, %v", c.shim.id, answer, err)
	}
}

// end kills and deletes all containers until the workers are done and there is none. The anchor stays.
func (c *campaign) end(done <-chan struct{}) {
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		idle := false
		select {
		case <-done:
			idle = true
		default:
		}
		c.mu.Lock()
		left := slices.Sorted(maps.Keys(c.tasks))
		c.mu.Unlock()
		if len(left) == 0 && idle {
			return
		}
		if time.Since(start) > 2*answerLimit() {
			stacks, _ := c.shim.stacks()
			c.t.Errorf("shim %s: cannot delete %v: %v\n%s", c.shim.id, left, c.messages, stacks)
			<-done
			return
		}
		for _, id := range left {
			c.endTask(id)
		}
		c.tidy()
	}
}

func (c *campaign) endTask(id string) {
	_ = c.call(nil, "Kill", func(ctx context.Context) error { // it may have ended
		_, err := c.shim.tasks.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(unix.SIGKILL), All: true})
		return err
	})
	c.delete(nil, id, "")
}

// tidy forgets what was not created, or was deleted by an RPC whose client had left.
func (c *campaign) tidy() {
	c.mu.Lock()
	var asked []string
	for _, t := range c.tasks {
		if t.asked {
			asked = append(asked, t.id)
		}
	}
	c.mu.Unlock()
	for _, id := range asked {
		if c.isGone(id) {
			c.forget(id)
		}
	}
}

// isGone says whether a task neither exists nor is being created by an RPC whose client has left.
func (c *campaign) isGone(id string) bool {
	r := c.createRequest(id, c.dir) // which has no spec
	_, err := c.shim.tasks.Create(context.Background(), r)
	if status.Code(err) == codes.AlreadyExists {
		return false
	}
	_, err = c.shim.tasks.State(context.Background(), &taskapi.StateRequest{ID: id})
	return status.Code(err) == codes.NotFound
}

// check expects that the shim has kept nothing, and that it has told the truth; then it ends it.
func (c *campaign) check() {
	c.t.Helper()
	if c.t.Failed() && len(c.tasks) > 0 {
		c.kill()
		return
	}
	c.checkWaits()
	c.endAnchor()
	c.shim.awaitEnd()
	// That of the sandbox is answered now.
	c.waits.Wait()
	c.checkEvents()
	if log := c.shim.logged(); strings.Contains(log, "panic") || strings.Contains(log, "fatal error") {
		c.t.Errorf("shim %s has panicked", c.shim.id)
	}
	var answers strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.answers)) {
		fmt.Fprintf(&answers, ", %s %d", name, c.answers[name])
	}
	c.t.Logf("%s%s", c.kind, answers.String())
	for _, message := range slices.Sorted(maps.Keys(c.messages)) {
		c.t.Logf("%s: %d of %.300s", c.kind, c.messages[message], message)
	}
}

// kill ends a shim that cannot end.
func (c *campaign) kill() {
	c.shim.ending.Store(true)
	_ = unix.Kill(c.shim.pid, unix.SIGKILL)
	c.shim.awaitEnd()
	c.mu.Lock()
	left := slices.Collect(maps.Keys(c.tasks))
	c.mu.Unlock()
	for _, id := range left {
		c.forget(id)
	}
}

// checkWaits expects an answer to all who wait for what is deleted.
func (c *campaign) checkWaits() {
	c.t.Helper()
	var pending []string
	for start := time.Now(); time.Since(start) < answerLimit(); time.Sleep(20 * time.Millisecond) {
		c.mu.Lock()
		pending = slices.Sorted(maps.Keys(c.pending))
		c.mu.Unlock()
		if len(pending) == 0 {
			return
		}
	}
	c.t.Errorf("shim %s: Wait is not answered for %v, which are deleted", c.shim.id, pending)
}

// held is what the shim holds.
func (c *campaign) held() resources {
	c.t.Helper()
	files, err := node.OpenFiles(c.shim.pid)
	must(c.t, err)
	_, creators := c.shim.stacks()
	return resources{files, creators}
}

// checkHeld expects that the shim holds no more than before there was a container.
func (c *campaign) checkHeld() {
	c.t.Helper()
	if c.t.Failed() {
		return
	}
	c.checkWaits()
	var more []string
	for start := time.Now(); time.Since(start) < answerLimit()/2; time.Sleep(100 * time.Millisecond) {
		now := c.held()
		more = append(added("files", c.before.files, now.files), added("goroutines", c.before.creators, now.creators)...)
		if len(more) == 0 {
			break
		}
	}
	for _, m := range more {
		c.t.Errorf("shim %s keeps %s", c.shim.id, m)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", c.shim.pid))
	must(c.t, err)
	if len(threads) > campaignThreads {
		c.t.Errorf("shim %s has %d threads", c.shim.id, len(threads))
	}
}

// added says of what there is more than before.
func added(what string, before, now map[string]int) (more []string) {
	for kind, n := range now {
		if n > before[kind] {
			more = append(more, fmt.Sprintf("%d %s %s, %d before", n, what, kind, before[kind]))
		}
	}
	slices.Sort(more)
	return more
}

// endAnchor ends what the shim was started for, and the shim with it.
func (c *campaign) endAnchor() {
	c.t.Helper()
	id := c.shim.id
	report := func(err error) {
		if err != nil {
			c.t.Errorf("shim %s: %v", id, err)
		}
	}
	if c.kind == podOfSandbox {
		c.shim.ending.Store(true)
		report(c.call(nil, "ShutdownSandbox", func(ctx context.Context) error {
			_, err := c.shim.pods.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: id})
			return err
		}))
		return
	}
	_ = c.call(nil, "Kill", func(ctx context.Context) error { // a sandbox has been killed before
		_, err := c.shim.tasks.Kill(ctx, &taskapi.KillRequest{ID: id, Signal: uint32(unix.SIGKILL)})
		return err
	})
	report(c.call(nil, "Wait", func(ctx context.Context) error {
		_, err := c.shim.tasks.Wait(ctx, &taskapi.WaitRequest{ID: id})
		return err
	}))
	report(c.call(nil, "Delete", func(ctx context.Context) error {
		_, err := c.shim.tasks.Delete(ctx, &taskapi.DeleteRequest{ID: id})
		return err
	}))
	c.shim.ending.Store(true)
	report(c.call(nil, "Shutdown", func(ctx context.Context) error {
		_, err := c.shim.tasks.Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
		return err
	}))
}

// checkEvents expects of each process that was started one exit, after its start, with the status
// that was answered; of execs before that of their init; and the deletion last.
func (c *campaign) checkEvents() {
	c.t.Helper()
	complain := func(format string, args ...any) {
		c.t.Errorf("shim %s: %s", c.shim.id, fmt.Sprintf(format, args...))
	}
	started, exited, deleted := make(map[string]bool), make(map[string]bool), make(map[string]bool)
	for _, r := range c.shim.events.get() {
		event, err := typeurl.UnmarshalAny(r.Envelope.Event)
		if err != nil {
			complain("event %s: %v", r.Envelope.Topic, err)
			continue
		}
		var container string
		switch e := event.(type) {
		case *apievents.TaskStart:
			container = e.ContainerID
			started[container+"/"+container] = true
			if exited[container+"/"+container] {
				complain("task %s has exited before its start", container)
			}
		case *apievents.TaskExecStarted:
			container = e.ContainerID
			started[container+"/"+e.ExecID] = true
			if exited[container+"/"+e.ExecID] {
				complain("exec %s of %s has exited before its start", e.ExecID, container)
			}
		case *apievents.TaskExit:
			container = e.ContainerID
			process := container + "/" + e.ID
			if exited[process] {
				complain("%s has exited twice", process)
			}
			if e.ID != container && exited[container+"/"+container] {
				complain("exec %s of %s has exited after its init", e.ID, container)
			}
			exited[process] = true
			c.exited(process, e.ExitStatus)
		case *apievents.TaskDelete:
			container = e.ContainerID
			if deleted[container] {
				complain("task %s is deleted twice", container)
			}
			deleted[container] = true
			continue
		}
		if deleted[container] {
			complain("event %s of task %s, which is deleted", r.Envelope.Topic, container)
		}
	}
	for process := range started {
		if !exited[process] {
			complain("%s has never exited", process)
		}
	}
	for process, statuses := range c.exits {
		if len(statuses) > 1 {
			complain("%s has exited with %v", process, slices.Sorted(maps.Keys(statuses)))
		}
		for status := range statuses {
			if own, ok := c.own[process]; ok && !plausible(own, status) {
				complain("%s has exited with %d, not %d", process, status, own)
			}
		}
	}
	if len(started) == 0 {
		complain("nothing has been started")
	}
}
