package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// nriPlugin is a plugin of containerd's Node Resource Interface. It notes what happens to pods and
// their containers, and gives each container an environment variable, a mount, an annotation, a
// hook and a limit.
type nriPlugin struct {
	dir  string // is mounted into the containers, and gets what the hook notes
	hook string // the hook's program
	stub stub.Stub

	mu    sync.Mutex
	notes map[string][]nriNote // guarded by mu: by the pod's name
}

// nriNote is one thing that the plugin was told.
type nriNote struct {
	event      string
	pid        int               // of the pod
	namespaces map[string]string // that the pid has at that time
}

// The memory limits that the plugin sets in bytes, when a container is created and later.
const (
	nriLimit      = 64 << 20
	nriLaterLimit = 96 << 20
)

// startNRIPlugin runs a plugin until the end of the test.
func startNRIPlugin(t *testing.T) *nriPlugin {
	t.Helper()
	p := &nriPlugin{dir: t.TempDir(), hook: script(t, hookScript), notes: make(map[string][]nriNote)}
	must(t, os.WriteFile(filepath.Join(p.dir, "text"), []byte("from the plugin\n"), 0o600))
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName("pause-test"), stub.WithPluginIdx("10"), stub.WithSocketPath(theNode.NRISocket()), stub.WithOnClose(func() {}))
	must(t, err)
	must(t, p.stub.Start(context.Background())) // the clean-ups of the test still have the plugin
	t.Cleanup(p.stub.Stop)
	return p
}

func (p *nriPlugin) note(event string, pod *api.PodSandbox) {
	n := nriNote{event: event, pid: int(pod.GetPid()), namespaces: make(map[string]string)}
	for _, kind := range []string{"net", "ipc", "uts"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", n.pid, kind))
		if err != nil {
			link = err.Error()
		}
		n.namespaces[kind] = link
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.notes[pod.GetName()] = append(p.notes[pod.GetName()], n)
}

// of returns what the plugin was told about a pod, in order.
func (p *nriPlugin) of(pod string) []nriNote {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]nriNote(nil), p.notes[pod]...)
}

// RunPodSandbox implements [stub.RunPodInterface].
func (p *nriPlugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("run pod", pod)
	return nil
}

// StopPodSandbox implements [stub.StopPodInterface].
func (p *nriPlugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("stop pod", pod)
	return nil
}

// RemovePodSandbox implements [stub.RemovePodInterface].
func (p *nriPlugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("remove pod", pod)
	return nil
}

// StartContainer implements [stub.StartContainerInterface].
func (p *nriPlugin) StartContainer(_ context.Context, pod *api.PodSandbox, _ *api.Container) error {
	p.note("start", pod)
	return nil
}

// StopContainer implements [stub.StopContainerInterface].
func (p *nriPlugin) StopContainer(_ context.Context, pod *api.PodSandbox, _ *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop", pod)
	return nil, nil
}

// CreateContainer implements [stub.CreateContainerInterface].
func (p *nriPlugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", pod)
	a := &api.ContainerAdjustment{}
	a.AddEnv("BY_PLUGIN", pod.GetName())
	a.AddMount(&api.Mount{Source: p.dir, Destination: "/by-plugin", Type: "bind", Options: []string{"rbind", "ro"}})
	a.AddAnnotation("plugin.example/pod", pod.GetName())
	a.SetLinuxMemoryLimit(nriLimit)
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: p.hook, Args: []string{"hook", p.dir, c.GetId(), ""}, Env: []string{hookPath}}}})
	return a, nil, nil
}

// expectNoted waits until the plugin was told the last of some events, and checks that these were all.
func (p *nriPlugin) expectNoted(t *testing.T, pod string, want ...string) (notes []nriNote) {
	t.Helper()
	var got []string
	eventually(t, "the plugin is told: "+want[len(want)-1], func() bool {
		notes, got = p.of(pod), nil
		for _, n := range notes {
			got = append(got, n.event)
		}
		return len(got) > 0 && got[len(got)-1] == want[len(want)-1]
	})
	expectEqual(t, "what the plugin was told", strings.Join(got, ", "), strings.Join(want, ", "))
	return notes
}

// A plugin finds a pod's namespaces by its pid, and what it wants of a container reaches that.
func TestNRIPlugin(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		plugin := startNRIPlugin(t)
		pods := []*pod{runPod(t, handler, nil), runPod(t, handler, nil)}
		for _, p := range pods {
			name := p.Config.Metadata.Name
			pid := p.sandboxPid()
			if isShared(handler) {
				shim, err := p.ShimPid()
				must(t, err)
				if pid == shim || !isThread(shim, pid) {
					t.Errorf("the sandbox's pid is %d, which is no other thread of shim %d", pid, shim)
				}
			}
			id := p.start("c", "sleep 1000")
			init := p.containerPid(id)
			for _, n := range plugin.expectNoted(t, name, "run pod", "create", "start") {
				expectEqual(t, n.event+": pid of the pod", n.pid, pid)
				for kind, ns := range n.namespaces {
					expectEqual(t, n.event+": "+kind, ns, namespace(t, init, kind))
				}
			}
			expectEqual(t, "environment", p.exec(id, "echo $BY_PLUGIN"), name)
			expectEqual(t, "mount", p.exec(id, "cat /by-plugin/text"), "from the plugin")
			expectEqual(t, "memory limit", memoryLimit(t, uint32(init)), strconv.Itoa(nriLimit))
			var spec specs.Spec
			must(t, json.Unmarshal([]byte(readFile(t, filepath.Join(theNode.Bundle(node.CRINamespace, id), "config.json"))), &spec))
			expectEqual(t, "annotation", spec.Annotations["plugin.example/pod"], name)
			var state specs.State
			must(t, json.Unmarshal([]byte(readFile(t, filepath.Join(plugin.dir, id+".state"))), &state))
			expectEqual(t, "the container that the hook was told", state.ID, id)
			expectEqual(t, "its pid", state.Pid, init)

			later := &api.ContainerUpdate{ContainerId: id}
			later.SetLinuxMemoryLimit(nriLaterLimit)
			failed, err := plugin.stub.UpdateContainers([]*api.ContainerUpdate{later})
			must(t, err)
			expectEqual(t, "updates that failed", len(failed), 0)
			expectEqual(t, "memory limit after an update", memoryLimit(t, uint32(init)), strconv.Itoa(nriLaterLimit))
		}
		// What happens to one pod is said of that one.
		first, second := pods[0], pods[1]
		must(t, first.Stop(first.ctx))
		must(t, first.Remove(first.ctx))
		plugin.expectNoted(t, first.Config.Metadata.Name, "run pod", "create", "start", "stop", "stop pod", "remove pod")
		plugin.expectNoted(t, second.Config.Metadata.Name, "run pod", "create", "start")
		expectEqual(t, "state of the other pod", second.status().State, runtime.PodSandboxState_SANDBOX_READY)
		must(t, unix.Kill(second.sandboxPid(), 0))
	})
}
