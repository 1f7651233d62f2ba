package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/integration/nodetest"
)

// pod is a pod that a test runs, and removes at its end.
type pod struct {
	*node.Pod
	t   *testing.T
	ctx context.Context
}

func runPod(t *testing.T, shim string, change func(*runtime.PodSandboxConfig)) *pod {
	t.Helper()
	ctx := testContext(t)
	beside := moveIn(t, shim)
	p, err := theNode.RunPod(ctx, shim, change)
	must(t, err)
	atEnd(t, func(ctx context.Context) error {
		if err := p.Stop(ctx); err != nil {
			return err
		}
		return p.Remove(ctx)
	})
	beside.expectShared(t, p.ShimPid)
	return &pod{p, t, ctx}
}

// start creates and starts a container that runs a script.
func (p *pod) start(name, script string) (id string) {
	p.t.Helper()
	id, err := p.CreateContainer(p.ctx, name, []string{"sh", "-c", script}, nil)
	must(p.t, err)
	must(p.t, theNode.StartContainer(p.ctx, id))
	return id
}

// exec runs a script in a container and returns what it prints.
func (p *pod) exec(id, script string) string {
	p.t.Helper()
	r, err := theNode.Exec(p.ctx, id, "sh", "-c", script)
	must(p.t, err)
	if r.ExitCode != 0 {
		p.t.Fatalf("%s: exit code %d, %s", script, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

func (p *pod) status() *runtime.PodSandboxStatus {
	p.t.Helper()
	s, err := p.Status(p.ctx)
	must(p.t, err)
	return s
}

func (p *pod) container(id string) *runtime.ContainerStatus {
	p.t.Helper()
	s, err := theNode.ContainerStatus(p.ctx, id)
	must(p.t, err)
	return s
}

// expectExited waits until CRI reports that a container has exited.
func (p *pod) expectExited(id string, code int32) {
	p.t.Helper()
	eventually(p.t, "container "+id+" has exited", func() bool {
		s, err := theNode.ContainerStatus(p.ctx, id)
		return err == nil && s.State == runtime.ContainerState_CONTAINER_EXITED
	})
	expectEqual(p.t, "exit code", p.container(id).ExitCode, code)
}

func (p *pod) expectNotReady() {
	p.t.Helper()
	eventually(p.t, "pod "+p.ID+" is not ready", func() bool {
		s, err := p.Status(p.ctx) // fails for a moment after the end of a shim
		return err == nil && s.State == runtime.PodSandboxState_SANDBOX_NOTREADY
	})
}

// sandboxPid is the pid that CRI knows the pod by.
func (p *pod) sandboxPid() int {
	p.t.Helper()
	pid, err := p.SandboxPid(p.ctx)
	must(p.t, err)
	return pid
}

// containerPid is the pid of a container's init.
func (p *pod) containerPid(id string) int {
	p.t.Helper()
	pid, err := p.ContainerPid(p.ctx, id)
	must(p.t, err)
	return pid
}

// namespace is [nodetest.Namespace].
var namespace = nodetest.Namespace

func TestPodLifecycle(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		s := p.status()
		expectEqual(t, "state", s.State, runtime.PodSandboxState_SANDBOX_READY)
		expectEqual(t, "handler", s.RuntimeHandler, shim)
		id := p.start("c", "exit 3")
		p.expectExited(id, 3)
		must(t, p.Stop(p.ctx))
		expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_NOTREADY)
		must(t, p.Stop(p.ctx)) // again, which is no error
		must(t, p.Remove(p.ctx))
		must(t, p.Remove(p.ctx))
	})
}

func TestEmptyPod(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
	})
}

func TestRemoveOfRunningPod(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		p.start("c", "sleep 1000")
		must(t, p.Remove(p.ctx))
	})
}

func TestContainersSharePodNamespaces(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		a, b := p.containerPid(p.start("a", "sleep 1000")), p.containerPid(p.start("b", "sleep 1000"))
		for _, kind := range []string{"net", "ipc", "uts"} {
			sandbox := namespace(t, p.sandboxPid(), kind)
			expectEqual(t, kind+" of a", namespace(t, a, kind), sandbox)
			expectEqual(t, kind+" of b", namespace(t, b, kind), sandbox)
			if sandbox == namespace(t, "self", kind) {
				t.Errorf("%s is the host's", kind)
			}
		}
		for _, kind := range []string{"pid", "mnt"} {
			if namespace(t, a, kind) == namespace(t, b, kind) {
				t.Errorf("the containers share %s", kind)
			}
		}
	})
}

func TestPodIPCAndNetworkWork(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		a, b := p.start("a", "mkdir /www; echo page >/www/index.html; httpd -f -p 8080 -h /www"), p.start("b", "sleep 1000")
		// By the pod's loopback, from the other container.
		eventually(t, "server answers", func() bool {
			r, err := theNode.Exec(p.ctx, b, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/")
			must(t, err)
			return string(r.Stdout) == "page\n"
		})
		// From the host, by the address that CRI reports.
		client := http.Client{Timeout: 10 * time.Second}
		r, err := client.Get("http://" + p.status().Network.Ip + ":8080/")
		must(t, err)
		r.Body.Close()
		expectEqual(t, "answer", r.StatusCode, http.StatusOK)
		// /dev/shm is the pod's.
		p.exec(a, "echo shared >/dev/shm/x")
		expectEqual(t, "/dev/shm/x", p.exec(b, "cat /dev/shm/x"), "shared")
	})
}

func TestHostnameOfPod(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		host, err := os.Hostname()
		must(t, err)
		p := runPod(t, shim, func(c *runtime.PodSandboxConfig) { c.Hostname = "a-host-of-its-own" })
		id := p.start("c", "sleep 1000")
		expectEqual(t, "hostname", p.exec(id, "hostname"), "a-host-of-its-own")
		expectEqual(t, "/etc/hostname", p.exec(id, "cat /etc/hostname"), "a-host-of-its-own")
		after, err := os.Hostname()
		must(t, err)
		expectEqual(t, "the host's name", after, host)
	})
}

func TestSysctls(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		before := readFile(t, "/proc/sys/kernel/shm_rmid_forced")
		p := runPod(t, shim, func(c *runtime.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{
				"net.ipv4.ip_local_port_range": "2000 3000",
				"net.core.somaxconn":           "77",
				"kernel.shm_rmid_forced":       "1",
				"fs.mqueue.msg_max":            "33",
			}
		})
		id := p.start("c", "sleep 1000")
		for file, want := range map[string]string{
			"net/ipv4/ip_local_port_range":        "2000\t3000",
			"net/core/somaxconn":                  "77",
			"kernel/shm_rmid_forced":              "1",
			"fs/mqueue/msg_max":                   "33",
			"net/ipv4/ip_unprivileged_port_start": "0", // CRI's default
		} {
			expectEqual(t, file, p.exec(id, "cat /proc/sys/"+file), want)
		}
		expectEqual(t, "the host's kernel.shm_rmid_forced", readFile(t, "/proc/sys/kernel/shm_rmid_forced"), before)
	})
}

func TestBadSysctlsAreRefused(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		moveIn(t, shim)
		for _, key := range []string{"net.ipv4.no_such_thing", "kernel.panic", "vm.swappiness", "net/../kernel/panic"} {
			p, err := theNode.RunPod(testContext(t), shim, func(c *runtime.PodSandboxConfig) {
				c.Linux.Sysctls = map[string]string{key: "1"}
			})
			if err == nil {
				atEnd(t, p.Remove)
				t.Errorf("%s: no error", key)
				continue
			}
			// The last part is there in all ways to write it.
			if !strings.Contains(err.Error(), key[strings.LastIndexAny(key, "./")+1:]) {
				t.Errorf("error does not name %s: %v", key, err)
			}
		}
	})
}

func TestSysctlsOfHostNetworkPodAreRefused(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		moveIn(t, shim)
		p, err := theNode.RunPod(testContext(t), shim, func(c *runtime.PodSandboxConfig) {
			node.HostNetwork(c)
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "4097"}
		})
		if err == nil {
			atEnd(t, p.Remove)
			t.Error("no error")
		}
		if got := readFile(t, "/proc/sys/net/core/somaxconn"); got == "4097\n" {
			t.Error("the host's net.core.somaxconn was written")
		}
	})
}

func TestHostNetworkPod(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, node.HostNetwork)
		pid := p.containerPid(p.start("c", "sleep 1000"))
		for _, kind := range []string{"net", "uts"} {
			expectEqual(t, kind, namespace(t, pid, kind), namespace(t, "self", kind))
		}
		if namespace(t, pid, "ipc") == namespace(t, "self", "ipc") {
			t.Error("ipc is the host's")
		}
	})
}

func TestHostIPCAndPidPod(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, func(c *runtime.PodSandboxConfig) {
			o := c.Linux.SecurityContext.NamespaceOptions
			o.Ipc, o.Pid = runtime.NamespaceMode_NODE, runtime.NamespaceMode_NODE
		})
		pid := p.containerPid(p.start("c", "sleep 1000"))
		for _, kind := range []string{"ipc", "pid"} {
			expectEqual(t, kind, namespace(t, pid, kind), namespace(t, "self", kind))
		}
		if namespace(t, pid, "net") == namespace(t, "self", "net") {
			t.Error("net is the host's")
		}
	})
}

// A pod that shares its pid namespace shares its own: never the host's.
func TestSharedPidNamespaceIsNotTheHosts(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, func(c *runtime.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
		})
		id, err := p.CreateContainer(p.ctx, "c", []string{"sleep", "1000"}, nil)
		if err == nil {
			err = theNode.StartContainer(p.ctx, id)
		}
		if err != nil {
			if shim == "runc" || isSandboxAPI(shim) {
				t.Fatal(err)
			}
			t.Logf("refused: %v", err) // which is safe
			return
		}
		if namespace(t, p.containerPid(id), "pid") == namespace(t, "self", "pid") {
			t.Error("pid is the host's")
		}
	})
}

func TestExecSync(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "sleep 1000")
		r, err := theNode.Exec(p.ctx, id, "sh", "-c", "echo out; echo err >&2; exit 5")
		must(t, err)
		expectEqual(t, "exit code", r.ExitCode, 5)
		expectEqual(t, "stdout", string(r.Stdout), "out\n")
		expectEqual(t, "stderr", string(r.Stderr), "err\n")
		if _, err := theNode.Exec(p.ctx, id, "/no/such/program"); err == nil {
			t.Error("a program that does not exist: no error")
		}
	})
}

func TestExecStreams(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "sleep 1000")
		out, err := theNode.Crictl(p.ctx, strings.NewReader("to exec\n"), "exec", "-i", id, "cat")
		must(t, err)
		expectEqual(t, "output", out, "to exec\n")
	})
}

func TestAttachStreams(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		script := "read line; while ! [ -e /stop ]; do echo got $line; sleep 0.1; done"
		id, err := p.CreateContainer(p.ctx, "c", []string{"sh", "-c", script}, func(c *runtime.ContainerConfig) { c.Stdin = true })
		must(t, err)
		must(t, theNode.StartContainer(p.ctx, id))
		stdin, in, err := os.Pipe()
		must(t, err)
		defer in.Close()
		_, err = in.WriteString("a line\n")
		must(t, err)
		result := make(chan string, 1)
		go func() {
			out, err := theNode.Crictl(p.ctx, stdin, "attach", "-i", id)
			result <- fmt.Sprint(out, err)
		}()
		// Attached it surely is when the container has repeated it some times.
		eventually(t, "output in the log", func() bool {
			log, err := os.ReadFile(filepath.Join(p.Config.LogDirectory, "c.log"))
			return err == nil && strings.Count(string(log), "got a line\n") > 10
		})
		p.exec(id, "touch /stop")
		if got := <-result; !strings.Contains(got, "got a line\n") || !strings.HasSuffix(got, "<nil>") {
			t.Errorf("output and error: %s", got)
		}
	})
}

func TestContainerLog(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "echo one; echo two >&2")
		p.expectExited(id, 0)
		log := filepath.Join(p.Config.LogDirectory, "c.log")
		eventually(t, "log is whole", func() bool {
			b, err := os.ReadFile(log)
			return err == nil && strings.Contains(string(b), " stdout F one\n") && strings.Contains(string(b), " stderr F two\n")
		})
		out, err := theNode.Crictl(p.ctx, nil, "logs", id)
		must(t, err)
		expectEqual(t, "crictl logs", out, "one\n")
	})
}

func TestContainerIsReplacedInPod(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		before := p.sandboxPid()
		for attempt := range uint32(3) {
			id, err := p.CreateContainer(p.ctx, "c", []string{"sleep", "1000"}, func(c *runtime.ContainerConfig) { c.Metadata.Attempt = attempt })
			must(t, err)
			must(t, theNode.StartContainer(p.ctx, id))
			must(t, theNode.StopContainer(p.ctx, id, 0))
			p.expectExited(id, 137)
			must(t, theNode.RemoveContainer(p.ctx, id))
		}
		expectEqual(t, "sandbox's pid", p.sandboxPid(), before)
		expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
	})
}

func TestStopWithGrace(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "trap 'exit 8' TERM; touch /up; while :; do sleep 0.1; done")
		eventually(t, "trap is set", func() bool {
			r, err := theNode.Exec(p.ctx, id, "ls", "/up")
			return err == nil && r.ExitCode == 0
		})
		must(t, theNode.StopContainer(p.ctx, id, 60))
		p.expectExited(id, 8)
	})
}

func TestStats(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "while :; do :; done")
		eventually(t, "statistics of container and pod", func() bool {
			c, err := theNode.CRI().ContainerStats(p.ctx, &runtime.ContainerStatsRequest{ContainerId: id})
			must(t, err)
			s, err := theNode.CRI().PodSandboxStats(p.ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: p.ID})
			must(t, err)
			return c.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 &&
				c.Stats.GetMemory().GetWorkingSetBytes().GetValue() > 0 &&
				s.Stats.GetLinux().GetCpu().GetUsageCoreNanoSeconds().GetValue() > 0 &&
				s.Stats.GetLinux().GetNetwork().GetDefaultInterface().GetName() == "eth0" &&
				len(s.Stats.GetLinux().GetContainers()) == 1
		})
	})
}

func TestUpdateContainerResources(t *testing.T) {
	eachHandler(t, func(t *testing.T, shim string) {
		p := runPod(t, shim, nil)
		id := p.start("c", "sleep 1000")
		_, err := theNode.CRI().UpdateContainerResources(p.ctx, &runtime.UpdateContainerResourcesRequest{
			ContainerId: id,
			Linux:       &runtime.LinuxContainerResources{MemoryLimitInBytes: 48 << 20},
		})
		must(t, err)
		expectEqual(t, "limit", memoryLimit(t, uint32(p.containerPid(id))), strconv.Itoa(48<<20))
	})
}
