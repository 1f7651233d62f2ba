package cadvisor

import (
	"maps"
	"slices"
	"testing"

	"github.com/google/cadvisor/lib/model"
)

// handler is a way to make a pod.
type handler struct {
	name   string
	found  bool // by cAdvisor, as a pod's sandbox
	shared bool // pods share a shim
}

// handlers are all ways. By the Sandbox API there is a sandbox in containerd, but no
// container, and containers are all that cAdvisor asks it for: it finds a cgroup and does
// not know whose.
var handlers = []handler{
	{name: "runc", found: true}, // the stock shim, with a pause container, shows that the test is right
	{name: "pause", found: true},
	{name: sharedShim, found: true, shared: true},
	{name: sandboxHandler},
	{name: sharedSandboxHandler, shared: true},
}

// run runs a pod. One that shares its shim has a neighbour there, with counters of its own,
// so that both sandboxes are threads of one process.
func (h handler) run(t *testing.T) *pod {
	t.Helper()
	if !h.shared {
		return runPod(t, h.name)
	}
	neighbour := runPod(t, h.name)
	neighbour.exchange()
	p := runPod(t, h.name)
	expectEqual(t, "shim", p.shimPid(), neighbour.shimPid())
	return p
}

// Either kubelet is there when a pod starts, and cAdvisor sees its cgroup appear;
// or kubelet is started again, and cAdvisor finds what there is.
var orders = []struct {
	name     string
	podFirst bool
}{
	{"new pod", false},
	{"pod that was there", true},
}

func TestCAdvisorFindsNetworkOfPod(t *testing.T) {
	for _, o := range orders {
		for _, h := range handlers {
			t.Run(o.name+"/"+h.name, func(t *testing.T) {
				c, p := startBoth(t, h, o.podFirst)
				eventually(t, "cAdvisor knows "+p.cgroup(), func() bool { return c.Exists(p.cgroup()) })
				if h.found {
					c.expectSandbox(t, p)
				} else {
					c.expectUnknown(t, p)
				}
				c.expectNoNetworkOfContainer(t, p)
				must(t, p.Stop(p.ctx))
				must(t, p.Remove(p.ctx))
				eventually(t, "cAdvisor has forgotten "+p.cgroup(), func() bool { return !c.Exists(p.cgroup()) })
			})
		}
	}
}

// The counters that CRI reports are there in all ways: they need neither cAdvisor
// nor a process. By the Sandbox API kubelet has them with its feature
// PodAndContainerStatsFromCRI, and only then.
func TestCRIReportsNetworkOfPod(t *testing.T) {
	for _, h := range handlers {
		t.Run(h.name, func(t *testing.T) {
			p := h.run(t)
			p.expectCounters("PodSandboxStats", p.criStats)
			p.expectCounters("ListPodSandboxMetrics", p.criMetrics)
		})
	}
}

func startBoth(t *testing.T, h handler, podFirst bool) (*cAdvisor, *pod) {
	t.Helper()
	if podFirst {
		p := h.run(t)
		return startCAdvisor(t), p
	}
	c := startCAdvisor(t)
	return c, h.run(t)
}

// expectSandbox checks that cAdvisor knows the pod's sandbox for what it is, and
// that it has the pod's counters.
func (c *cAdvisor) expectSandbox(t *testing.T, p *pod) {
	t.Helper()
	var info *model.ContainerInfo
	eventually(t, "cAdvisor reports the pod as kubelet wants it", func() bool {
		var err error
		info, err = c.sandbox(p.ID)
		must(t, err)
		return info != nil
	})
	expectEqual(t, "cgroup", info.Name, p.cgroup())
	expectEqual(t, "ID", info.Id, p.ID)
	expectEqual(t, "source", info.Namespace, "containerd")
	expectEqual(t, "kind", info.Spec.Labels["io.cri-containerd.kind"], "sandbox")
	p.expectCounters("cAdvisor", func() (interfaces, error) {
		info, err := c.fresh(info.Name)
		if err != nil {
			return nil, err
		}
		return network(info), nil
	})
}

// expectUnknown checks that cAdvisor has nothing but a cgroup, without what kubelet
// takes a pod's network from.
func (c *cAdvisor) expectUnknown(t *testing.T, p *pod) {
	t.Helper()
	p.exchange()
	raw, err := c.fresh(p.cgroup())
	must(t, err)
	expectEqual(t, "source", raw.Namespace, "")
	expectEqual(t, "labels", len(raw.Spec.Labels), 0)
	expectEqual(t, "has network", raw.Spec.HasNetwork, false)
	expectEqual(t, "counters", len(network(raw)), 0)
	info, err := c.sandbox(p.ID)
	must(t, err)
	if info != nil {
		t.Errorf("cAdvisor takes %s for the sandbox", info.Name)
	}
}

// expectNoNetworkOfContainer checks that there are no counters with the container,
// which would count for the pod a second time.
func (c *cAdvisor) expectNoNetworkOfContainer(t *testing.T, p *pod) {
	t.Helper()
	cgroup := p.Config.Linux.CgroupParent + "/" + p.container
	eventually(t, "cAdvisor knows "+cgroup, func() bool { return c.Exists(cgroup) })
	info, err := c.fresh(cgroup)
	must(t, err)
	expectEqual(t, "source of container", info.Namespace, "containerd")
	expectEqual(t, "container has network", info.Spec.HasNetwork, false)
	expectEqual(t, "counters of container", len(network(info)), 0)
}

// expectCounters checks a source of counters: it has the interfaces that the pod
// has, with values between those that the pod has before and after, and they grow
// by what goes through.
func (p *pod) expectCounters(source string, read func() (interfaces, error)) {
	p.t.Helper()
	p.exchange()
	first := p.compare(source, read)
	p.exchange()
	second := p.compare(source, read)
	p.t.Logf("%s: eth0 %+v, then %+v", source, first, second)
	expectWithin(p.t, source+", received", second.received-first.received, requestSize, 2*requestSize)
	expectWithin(p.t, source+", sent", second.sent-first.sent, responseSize, 2*responseSize)
}

// compare returns the counters of eth0. Some packets come without being asked for
// (IPv6 looks for neighbours and routers), so values may differ by them.
func (p *pod) compare(source string, read func() (interfaces, error)) counters {
	p.t.Helper()
	before := p.inside()
	got, err := read()
	must(p.t, err)
	after := p.inside()
	names := slices.Sorted(maps.Keys(got))
	if want := slices.Sorted(maps.Keys(before)); !slices.Equal(names, want) {
		p.t.Fatalf("%s: interfaces are %v, want %v", source, names, want)
	}
	for _, n := range names {
		expectWithin(p.t, source+", received by "+n, got[n].received, before[n].received, after[n].received)
		expectWithin(p.t, source+", sent by "+n, got[n].sent, before[n].sent, after[n].sent)
	}
	eth0, ok := got["eth0"] // the only one that kubelet takes for the pod's
	if !ok || eth0.received == 0 || eth0.sent == 0 {
		p.t.Fatalf("%s: nothing went through eth0: %+v", source, got)
	}
	return eth0
}

func expectWithin(t *testing.T, what string, got, low, high uint64) {
	t.Helper()
	if got < low || got > high {
		t.Errorf("%s: %d, want %d to %d", what, got, low, high)
	}
}
