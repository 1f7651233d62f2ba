package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// currentRuntime is an OCI runtime that can map the IDs of mounts, which pods
// with a user namespace need and Debian 12's runc cannot.
const currentRuntime = "runc-current"

// genericHandler has options of the type that CRI sends to all shims but the stock one.
const genericHandler = "pause-generic"

// currentHandlers are handlers with that one. containerd gives options to a task
// in a user namespace only if the runtime type is the stock shim's, so that this
// project's shim is selected by its path here (see the README).
func currentHandlers() []node.Handler {
	return []node.Handler{
		{Name: "runc-current", Type: node.StockType, OCIRuntime: currentRuntime},
		{Name: "pause-current", Type: node.StockType, Shim: "containerd-shim-pause-v2", OCIRuntime: currentRuntime},
		{Name: "pause-shared-current", Type: node.StockType, Shim: "containerd-shim-pause-shared-v2", OCIRuntime: currentRuntime},
		{Name: genericHandler, Type: node.PauseType, OCIRuntime: currentRuntime},
	}
}

// Host IDs of a pod's user namespace.
const (
	userFirst  = 100000
	userLength = 65536
)

// mode is which namespaces a pod shares with its containers or the host.
type mode struct {
	pid, net, ipc runtime.NamespaceMode
	user          bool // a user namespace of the pod
}

func (m mode) String() string {
	user := "none"
	if m.user {
		user = "pod"
	}
	return strings.ToLower(fmt.Sprintf("pid=%s,net=%s,ipc=%s,user=%s", m.pid, m.net, m.ipc, user))
}

const (
	modePod       = runtime.NamespaceMode_POD
	modeContainer = runtime.NamespaceMode_CONTAINER
	modeNode      = runtime.NamespaceMode_NODE
)

// allModes are all that can be asked for.
func allModes() (all []mode) {
	for _, pid := range []runtime.NamespaceMode{modeContainer, modePod, modeNode} {
		for _, net := range []runtime.NamespaceMode{modePod, modeNode} {
			for _, ipc := range []runtime.NamespaceMode{modePod, modeNode} {
				all = append(all, mode{pid, net, ipc, false}, mode{pid, net, ipc, true})
			}
		}
	}
	return all
}

// impossible says that the kernel refuses to mount /proc or /dev/mqueue, since a
// pod's user namespace does not own the host's PID or IPC namespace.
func (m mode) impossible() bool { return m.user && (m.pid == modeNode || m.ipc == modeNode) }

// eachHandler runs a test with all handlers that can have the mode. A handler for
// the Sandbox API has this project's runtime type, and so with containerd either
// options or user namespaces (see the README), and here it has options.
func (m mode) eachHandler(t *testing.T, test func(t *testing.T, shim string)) {
	t.Helper()
	if m.user {
		eachShim(t, test)
		return
	}
	eachHandler(t, test)
}

// handler is the one to run a pod by, for one of the shims.
func (m mode) handler(shim string) string {
	if m.user {
		return shim + "-current"
	}
	return shim
}

// kinds are pods that differ in what the sandbox is made of.
var kinds = map[string]mode{
	"usual":                          {pid: modeContainer},
	"shared PID":                     {pid: modePod},
	"host's PID":                     {pid: modeNode},
	"host's network":                 {pid: modeContainer, net: modeNode},
	"user namespace":                 {pid: modeContainer, user: true},
	"user namespace, shared PID":     {pid: modePod, user: true},
	"user namespace, host's network": {pid: modeContainer, net: modeNode, user: true},
}

// eachKind runs a test with pods of each kind.
func eachKind(t *testing.T, test func(t *testing.T, shim string, m mode)) {
	t.Helper()
	for name, m := range kinds {
		t.Run(name, func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) { test(t, shim, m) })
		})
	}
}

// apply changes the configuration of a pod to have the mode, with a sysctl for
// each namespace that is its own.
func (m mode) apply(c *runtime.PodSandboxConfig) {
	o := c.Linux.SecurityContext.NamespaceOptions
	o.Pid, o.Network, o.Ipc = m.pid, m.net, m.ipc
	c.Linux.Sysctls = map[string]string{}
	if m.net == modeNode {
		c.Hostname = "" // the host's UTS namespace comes with its network
	} else {
		c.Linux.Sysctls["net.core.somaxconn"] = "321"
	}
	if m.ipc == modePod {
		c.Linux.Sysctls["kernel.msgmax"] = "9001"
		c.Linux.Sysctls["kernel.sem"] = "250 32001 100 128"
		c.Linux.Sysctls["fs.mqueue.msg_max"] = "11"
	}
	if m.user {
		ids := []*runtime.IDMapping{{ContainerId: 0, HostId: userFirst, Length: userLength}}
		o.UsernsOptions = &runtime.UserNamespace{Mode: modePod, Uids: ids, Gids: ids}
	}
}

// reaping is a script whose shell reaps what is left to it.
const reaping = "while :; do sleep 1000 & wait $!; done"

// admin lets a container set the host name.
func admin(c *runtime.ContainerConfig) {
	c.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
}

func TestModes(t *testing.T) {
	for _, m := range allModes() {
		t.Run(m.String(), func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) {
				if m.impossible() {
					expectRefused(t, m, m.handler(shim))
					return
				}
				p := runPod(t, m.handler(shim), m.apply)
				a := p.startAs("a", reaping, admin)
				checkNamespaces(t, p, m, a)
				checkSysctls(t, p, a)
				checkReaping(t, p, m, a)
				b := p.startAs("b", reaping, admin)
				checkNamespaces(t, p, m, a, b)
				checkReaping(t, p, m, b)
				checkSharing(t, p, m, a, b)
				if shim != "runc" {
					checkProcesses(t, p, m, a, b)
				}
			})
		})
	}
}

// expectRefused expects that a pod with a container cannot be run: the stock shim
// fails with the sandbox already, as it mounts the same for it.
func expectRefused(t *testing.T, m mode, handler string) {
	t.Helper()
	ctx := testContext(t)
	moveIn(t, handler)
	p, err := theNode.RunPod(ctx, handler, m.apply)
	if err != nil {
		return
	}
	id, err := p.CreateContainer(ctx, "a", []string{"sh", "-c", reaping}, nil)
	must(t, err)
	if err := theNode.StartContainer(ctx, id); err == nil {
		t.Error("the container could be started")
	}
}

// startAs creates and starts a container that runs a script.
func (p *pod) startAs(name, script string, change func(*runtime.ContainerConfig)) (id string) {
	p.t.Helper()
	id, err := p.CreateContainer(p.ctx, name, []string{"sh", "-c", script}, change)
	must(p.t, err)
	must(p.t, theNode.StartContainer(p.ctx, id))
	return id
}

// checkNamespaces compares the containers' namespaces with each other's, the
// sandbox's and the host's.
func checkNamespaces(t *testing.T, p *pod, m mode, containers ...string) {
	t.Helper()
	hosts := map[string]bool{
		"net": m.net == modeNode, "uts": m.net == modeNode, "ipc": m.ipc == modeNode, "pid": m.pid == modeNode, "user": !m.user, "mnt": false,
	}
	own := map[string]bool{"mnt": true, "pid": m.pid == modeContainer}
	for kind, ofHost := range hosts {
		seen := make(map[string]bool)
		for _, id := range containers {
			ns := namespace(t, p.containerPid(id), kind)
			seen[ns] = true
			if ofHost != (ns == namespace(t, "self", kind)) {
				t.Errorf("%s of %s: the host's: %t, want %t", kind, id, !ofHost, ofHost)
			}
		}
		if own[kind] && len(seen) != len(containers) || !own[kind] && len(seen) != 1 {
			t.Errorf("%d containers have %d different %s namespaces", len(containers), len(seen), kind)
		}
	}
	// What CRI tells of the sandbox leads to the pod's.
	for _, kind := range []string{"net", "ipc", "uts"} {
		expectEqual(t, kind, namespace(t, p.containerPid(containers[0]), kind), namespace(t, p.sandboxPid(), kind))
	}
}

// checkSysctls reads what the pod's configuration has set.
func checkSysctls(t *testing.T, p *pod, id string) {
	t.Helper()
	for key, value := range p.Config.Linux.Sysctls {
		path := "/proc/sys/" + strings.ReplaceAll(key, ".", "/")
		expectEqual(t, key, strings.Join(strings.Fields(p.exec(id, "cat "+path)), " "), value)
		host, err := os.ReadFile(path)
		must(t, err)
		if strings.Join(strings.Fields(string(host)), " ") == value {
			t.Errorf("%s is %s on the host as well", key, value)
		}
	}
}

// checkReaping leaves an orphan behind: its parents have ended when it ends.
func checkReaping(t *testing.T, p *pod, m mode, id string) {
	t.Helper()
	orphan := p.exec(id, `sh -c '(sleep 1000 >/dev/null 2>&1 & echo $!)'`)
	if m.pid != modeNode {
		expectEqual(t, "parent of the orphan", p.exec(id, "awk '{print $4}' /proc/"+orphan+"/stat"), "1")
	}
	p.exec(id, "kill "+orphan)
	eventually(t, "the orphan is reaped", func() bool {
		return p.exec(id, "test -d /proc/"+orphan+" || echo gone") == "gone"
	})
}

// checkSharing has one container write what the other reads.
func checkSharing(t *testing.T, p *pod, m mode, a, b string) {
	t.Helper()
	for _, dir := range []string{"/dev/mqueue/", "/dev/shm/"} {
		file := dir + theNode.ID // the host's perhaps
		p.exec(a, "touch "+file)
		p.exec(b, "rm "+file)
	}
	if m.net == modeNode {
		host, err := os.Hostname()
		must(t, err)
		expectEqual(t, "host name", p.exec(a, "hostname"), host)
		return
	}
	expectEqual(t, "host name", p.exec(a, "hostname"), p.Config.Hostname)
	p.exec(a, "hostname changed")
	expectEqual(t, "host name", p.exec(b, "hostname"), "changed")
}

// checkProcesses looks for processes of the pod beside the shim and those of the
// containers: there is none but the init of a shared PID namespace.
func checkProcesses(t *testing.T, p *pod, m mode, containers ...string) {
	t.Helper()
	known := make(map[int]bool)
	for _, id := range containers {
		known[p.containerPid(id)] = true
	}
	var others []string
	for _, process := range p.children() {
		if !known[process.Pid] {
			others = append(others, strings.Join(process.Args, " "))
		}
	}
	want := ""
	if m.pid == modePod {
		want = "/pause"
	}
	expectEqual(t, "other processes of the pod", strings.Join(others, ", "), want)
}

// children are those of the pod's shim, but for what is in a cgroup of another pod in it.
func (p *pod) children() (children []node.Process) {
	p.t.Helper()
	shim, err := p.ShimPid()
	must(p.t, err)
	others := p.cgroupsOfOthers()
	for _, process := range node.Processes() {
		if process.Parent != shim {
			continue
		}
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", process.Pid))
		if err != nil {
			continue // it has ended
		}
		if !slices.ContainsFunc(others, func(id string) bool { return strings.Contains(string(cgroup), id) }) {
			children = append(children, process)
		}
	}
	return children
}

// cgroupsOfOthers are what the cgroups of all other pods are named by: the ids of the
// sandboxes and their containers.
func (p *pod) cgroupsOfOthers() (ids []string) {
	p.t.Helper()
	pods, err := theNode.CRI().ListPodSandbox(p.ctx, &runtime.ListPodSandboxRequest{})
	must(p.t, err)
	for _, other := range pods.Items {
		if other.Id != p.ID {
			ids = append(ids, other.Id)
		}
	}
	containers, err := theNode.CRI().ListContainers(p.ctx, &runtime.ListContainersRequest{})
	must(p.t, err)
	for _, c := range containers.Containers {
		if c.PodSandboxId != p.ID {
			ids = append(ids, c.Id)
		}
	}
	return ids
}
