package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// How the kernel's OOM kills are told. On cgroup v1 they are announced by an
// eventfd, which has a signal for each time that memory runs out, not for each
// kill; memory.oom_control counts the kills since Linux 4.13. On v2 memory.events
// counts them, and its changes within 10 ms are one. So n kills are n events
// where it is the count that is told; the stock shim tells once per change, which
// may be several kills, and nothing of a kill that it sees too late.

// oomMemory is a memory limit that leaves enough to OCI runtimes and a shell.
const oomMemory = 32 << 20

// hog is a command that takes memory until it is killed.
const hog = "tail /dev/zero"

// victim is a hog that is killed rather than its parent, also if the memory of the
// one before it has not been given back yet.
const victim = "sh -c 'echo 1000 >/proc/self/oom_score_adj; exec " + hog + "'"

// kill is an event about a container: that a process in it was killed, or that
// one has ended. The id of the process is that of the container for its init.
type kill struct {
	what, container, process string
}

// killLog are the events of this kind from all containers, in order.
type killLog struct {
	t   *testing.T
	mu  sync.Mutex
	all []kill
}

func watchKills(t *testing.T) *killLog {
	t.Helper()
	l := &killLog{t: t}
	theNode.Subscribe(testContext(t), l.add, `topic=="/tasks/oom"`, `topic=="/tasks/exit"`)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("events: %v", l.get())
		}
	})
	return l
}

func (l *killLog) add(e *coreevents.Envelope) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		l.t.Errorf("event %s: %v", e.Topic, err)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch v := v.(type) {
	case *events.TaskOOM:
		l.all = append(l.all, kill{"oom", v.ContainerID, v.ContainerID})
	case *events.TaskExit:
		l.all = append(l.all, kill{"exit", v.ContainerID, v.ID})
	}
}

func (l *killLog) get() []kill {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// kills waits for the end of a container and returns how many kills in it have
// been told of before, and how many at all: a shim sends all that it has to say
// of a container before the exit, and nothing after.
func (l *killLog) kills(container string) (before, all int) {
	l.t.Helper()
	exit := kill{"exit", container, container}
	eventually(l.t, "exit of "+container+" is told", func() bool { return slices.Contains(l.get(), exit) })
	for _, k := range l.get() {
		if k == exit {
			before = all
		}
		if k.what == "oom" && k.container == container {
			all++
		}
	}
	return before, all
}

// expect checks how many kills in a container that ends are told. All of them
// come before the exit, but with the stock shim, which has no such order. On cgroup
// v1 that tells each signal of the kernel, and a kernel that is busy may signal a
// second time before the victim of the first has gone.
func (l *killLog) expect(shim, container string, want int) {
	l.t.Helper()
	if shim == "runc" {
		eventually(l.t, fmt.Sprintf("%d kills are told", want), func() bool {
			_, all := l.kills(container)
			return all >= want
		})
		if _, all := l.kills(container); all != want && (onV2() || all > 2*want) {
			l.t.Errorf("kills that are told: got %d, want %d", all, want)
		}
		return
	}
	before, all := l.kills(container)
	expectEqual(l.t, "kills that are told", all, want)
	expectEqual(l.t, "kills that are told before the exit", before, want)
}

// limited is a container that runs a script with little memory, and no swap.
func limited(script string) config {
	cfg := sh(script)
	cfg.spec = []oci.SpecOpts{oci.WithMemoryLimit(oomMemory), oci.WithMemorySwap(oomMemory)}
	return cfg
}

// limitedMemory is limited for containers of pods. CRI allows no swap then.
func limitedMemory(c *runtime.ContainerConfig) {
	c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: oomMemory}
}

// podParent is the name of a pod's cgroup of its own, below that of all pods: a
// slice if that is one. With it comes the base of the directory.
func podParent(name string) (parent, base string) {
	all := theNode.PodConfig(nil).Linux.CgroupParent
	if slice, ok := strings.CutSuffix(filepath.Base(all), ".slice"); ok {
		base = slice + "-" + name + ".slice"
		return node.SlicePath(base), base
	}
	return all + "/" + name, name
}

// runPodIn runs a pod in a cgroup of its own, as kubelet's pods are. That is
// removed at the end.
func runPodIn(t *testing.T, handler, name string) *pod {
	t.Helper()
	parent, base := podParent(name)
	if strings.HasSuffix(base, ".slice") {
		systemctl(t, "start", base)
	}
	t.Cleanup(func() {
		if strings.HasSuffix(base, ".slice") {
			systemctl(t, "stop", base)
		}
		removeCgroups(t, base)
	})
	return runPod(t, handler, func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = parent })
}

// removeCgroups removes the cgroups of a name in all hierarchies.
func removeCgroups(t *testing.T, base string) {
	t.Helper()
	for _, dir := range cgroupsCalled(t, func(name string) bool { return name == base }) {
		if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Errorf("cannot remove %s: %v", dir, err)
		}
	}
}

// podFile is a file of the pod's cgroup, in which the container's is.
func (p *pod) podFile(id, name, controller, v1, v2 string) string {
	p.t.Helper()
	_, base := podParent(name)
	file := v1
	if onV2() {
		file = v2
	}
	for dir := cgroupDir(p.t, p.containerPid(id), controller); len(dir) > len(cgroupMount); dir = filepath.Dir(dir) {
		if filepath.Base(dir) == base {
			return filepath.Join(dir, file)
		}
	}
	p.t.Fatalf("container %s is not in the pod's cgroup", id)
	return ""
}

func (p *pod) limitMemory(id, name string, limit int) {
	p.t.Helper()
	file := p.podFile(id, name, "memory", "memory.limit_in_bytes", "memory.max")
	must(p.t, os.WriteFile(file, []byte(strconv.Itoa(limit)), 0))
	for _, swap := range []string{"memory.memsw.limit_in_bytes", "memory.swap.max"} {
		v := strconv.Itoa(limit)
		if onV2() {
			v = "0"
		}
		err := os.WriteFile(filepath.Join(filepath.Dir(file), swap), []byte(v), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			p.t.Fatal(err)
		}
	}
}

func TestEachKillOfAChildIsToldOnce(t *testing.T) {
	for _, n := range []int{1, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				events := watchKills(t)
				c := startContainer(t, shim, limited(strings.Repeat(victim+"; echo killed $?\n", n)+"exit 3"))
				expectEqual(t, "exit code of init", c.wait(), 3)
				expectEqual(t, "output", c.out.String(), strings.Repeat("killed 137\n", n))
				events.expect(shim, c.ID(), n)
			})
		})
	}
}

// A container that dies by the kill is reaped, and its cgroup may be gone, while
// the kernel's notice is on its way.
func TestKillOfInitIsToldBeforeItsExit(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for range 5 {
			events := watchKills(t)
			c := startContainer(t, shim, limited("exec "+hog))
			expectEqual(t, "exit code", c.wait(), 137)
			events.expect(shim, c.ID(), 1)
			c.remove()
			events.expect(shim, c.ID(), 1)
		}
	})
}

func TestKillOfExecIsTold(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		events := watchKills(t)
		c := startContainer(t, shim, limited("sleep 1000"))
		c.exec("e", nil, nil, "tail", "/dev/zero").mustFinish(137)
		must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
		expectEqual(t, "exit code of init", c.wait(), 137)
		events.expect(shim, c.ID(), 1)
	})
}

func TestNoKillIsToldWhereThereIsNone(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		events := watchKills(t)
		ends := startContainer(t, shim, limited("exit 137"))
		expectEqual(t, "exit code", ends.wait(), 137)

		stays := startContainer(t, shim, limited("sleep 1000"))
		stays.exec("e1", nil, nil, "sh", "-c", "exit 137").mustFinish(137)
		killed := stays.exec("e2", nil, nil, "sleep", "1000")
		must(t, killed.Kill(stays.ctx, syscall.SIGKILL))
		killed.mustFinish(137)
		must(t, stays.task.Kill(stays.ctx, syscall.SIGKILL))
		expectEqual(t, "exit code", stays.wait(), 137)
		for _, c := range []*container{ends, stays} {
			c.remove() // the removal of a cgroup is a signal of its own on v1
			events.expect(shim, c.ID(), 0)
		}
	})
}

// The cgroup of a task that is made again has the path of the old one.
func TestKillsInATaskThatIsMadeAgain(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, limited("[ -e /second ] || { touch /second; exec "+hog+"; }"))
		for _, want := range []struct {
			code  uint32
			kills int
		}{{137, 1}, {0, 0}} {
			events := watchKills(t)
			c.run(c.streams(nil))
			expectEqual(t, "exit code", c.wait(), want.code)
			events.expect(shim, c.ID(), want.kills)
			_, err := c.task.Delete(c.ctx)
			must(t, err)
		}
	})
}

func TestKillIsToldOfTheRightContainer(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		events := watchKills(t)
		p := runPod(t, handler, nil)
		other := p.startAs("other", "while ! [ -e /stop ]; do sleep 0.1; done", limitedMemory)
		dies := p.startAs("dies", "exec "+hog, limitedMemory)
		p.expectExited(dies, 137)
		eventually(t, "reason is OOMKilled", func() bool { return p.container(dies).Reason == "OOMKilled" })
		events.expect(handler, dies, 1)
		p.exec(other, "touch /stop")
		p.expectExited(other, 0)
		expectEqual(t, "reason of the other", p.container(other).Reason, "Completed")
		events.expect(handler, other, 0)
		for _, k := range events.get() {
			if k.what == "oom" && k.container != dies {
				t.Errorf("a kill is told of %s", k.container)
			}
		}
	})
}

// A container is replaced by one of the same name, as kubelet does.
func TestContainerIsReplacedAfterItsKill(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		events := watchKills(t)
		p := runPod(t, handler, nil)
		for attempt := range uint32(3) {
			again := func(c *runtime.ContainerConfig) {
				limitedMemory(c)
				c.Metadata.Attempt = attempt
			}
			id := p.startAs("c", "exec "+hog, again)
			p.expectExited(id, 137)
			events.expect(handler, id, 1)
			must(t, theNode.RemoveContainer(p.ctx, id))
		}
	})
}

// The limit is the pod's: no container has one of its own.
func TestKillByTheLimitOfThePod(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		events := watchKills(t)
		p := runPodIn(t, handler, "limited")
		other := p.start("other", "while ! [ -e /stop ]; do sleep 0.1; done")
		dies := p.start("dies", "until [ -e /go ]; do sleep 0.1; done; exec "+hog)
		p.limitMemory(dies, "limited", 64<<20)
		p.exec(dies, "touch /go")
		p.expectExited(dies, 137)
		p.exec(other, "touch /stop")
		p.expectExited(other, 0)
		if handler == "runc" && !onV2() {
			return // it tells each signal of all containers, and of the sandbox
		}
		events.expect(handler, dies, 1)
		events.expect(handler, other, 0)
	})
}

// The containers end normally, so that containerd's CRI knows of the kill from the
// event alone: that it says so means that the event has come.
func TestKillWhileContainerdIsAwayIsTold(t *testing.T) {
	withPause(t, func(t *testing.T) {
		for _, handler := range []string{"pause", sandboxHandler} {
			p := runPod(t, handler, nil)
			script := "until [ -e /go ]; do sleep 0.1; done; " + victim + "; " + victim + "; touch /killed; until [ -e /stop ]; do sleep 0.1; done"
			killed, other := p.startAs("killed", script, limitedMemory), p.startAs("other", script, limitedMemory)
			root := fmt.Sprintf("/proc/%d/root", p.containerPid(killed))
			must(t, theNode.Kill())
			must(t, os.WriteFile(root+"/go", nil, 0o600))
			eventually(t, "the kills are over", func() bool { return unix.Access(root+"/killed", unix.F_OK) == nil })
			log := len(readFile(t, theNode.LogFile()))
			must(t, theNode.Restart(p.ctx))

			p.exec(killed, "touch /stop")
			p.expectExited(killed, 0)
			// CRI waits for the container itself, and may know of its end before the events come.
			told := func() int {
				return strings.Count(readFile(t, theNode.LogFile())[log:], "TaskOOM event container_id:\\\""+killed)
			}
			eventually(t, "containerd is told of 2 kills", func() bool { return told() >= 2 })
			eventually(t, "the reason is OOMKilled", func() bool { return p.container(killed).Reason == "OOMKilled" })
			p.exec(other, "touch /go")
			eventually(t, "kills in the other", func() bool { return p.container(other).Reason == "OOMKilled" })
			expectEqual(t, "kills that containerd was told of", told(), 2)
		}
	})
}

// With memory.oom.group the kernel kills all processes of a container at once, and
// counts each, and the first one twice. Kubernetes sets it.
func TestKillOfAGroupIsOne(t *testing.T) {
	needV2(t)
	eachHandler(t, func(t *testing.T, handler string) {
		events := watchKills(t)
		p := runPod(t, handler, nil)
		script := "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; " + hog + "; sleep 1000"
		id := p.startAs("c", script, func(c *runtime.ContainerConfig) {
			limitedMemory(c)
			c.Linux.Resources.Unified = map[string]string{"memory.oom.group": "1"}
		})
		p.expectExited(id, 137)
		eventually(t, "reason is OOMKilled", func() bool { return p.container(id).Reason == "OOMKilled" })
		if handler != "runc" { // which tells once per change that it sees
			events.expect(handler, id, 1)
		}
	})
}
