package cadvisor

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// counters are the bytes that went through an interface.
type counters struct{ received, sent uint64 }

// interfaces are the counters of a network namespace, by name and without lo.
type interfaces map[string]counters

// pod is a pod with one container, which answers on the pod's network.
type pod struct {
	*node.Pod
	t         *testing.T
	ctx       context.Context
	container string
	address   string
}

// What goes to a pod and what comes back differ, so that one cannot be taken for
// the other.
const (
	requestSize  = 100_000
	responseSize = 700_000
)

// runPod runs a pod with kubelet's labels, by which kubelet knows it in what
// cAdvisor reports.
func runPod(t *testing.T, handler string) *pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testDeadline)
	t.Cleanup(cancel)
	p, err := theNode.RunPod(ctx, handler, func(c *runtime.PodSandboxConfig) {
		c.Labels = map[string]string{
			"io.kubernetes.pod.name":      c.Metadata.Name,
			"io.kubernetes.pod.namespace": c.Metadata.Namespace,
			"io.kubernetes.pod.uid":       c.Metadata.Uid,
		}
	})
	must(t, err)
	t.Cleanup(func() { checkLeftovers(t) })
	server := fmt.Sprintf("head -c %d >/dev/null; head -c %d /dev/zero", requestSize, responseSize)
	id, err := p.CreateContainer(ctx, "server", []string{"nc", "-ll", "-p", "8080", "-e", "sh", "-c", server}, func(c *runtime.ContainerConfig) {
		c.Labels = p.Config.Labels
	})
	must(t, err)
	must(t, theNode.StartContainer(ctx, id))
	s, err := p.Status(ctx)
	must(t, err)
	return &pod{p, t, ctx, id, net.JoinHostPort(s.Network.Ip, "8080")}
}

// cgroup is the name of the sandbox's cgroup in its hierarchies.
func (p *pod) cgroup() string { return p.Config.Linux.CgroupParent + "/" + p.ID }

func (p *pod) shimPid() int {
	p.t.Helper()
	pid, err := p.ShimPid()
	must(p.t, err)
	return pid
}

// inside returns the counters as the container sees them.
func (p *pod) inside() interfaces {
	p.t.Helper()
	r, err := theNode.Exec(p.ctx, p.container, "cat", "/proc/net/dev")
	must(p.t, err)
	found := interfaces{}
	for _, line := range strings.Split(string(r.Stdout), "\n") {
		var c counters
		var skipped [7]uint64 // packets, errs, drop, fifo, frame, compressed, multicast
		name, values, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "lo" {
			continue
		}
		_, err := fmt.Sscan(values, &c.received, &skipped[0], &skipped[1], &skipped[2], &skipped[3], &skipped[4], &skipped[5], &skipped[6], &c.sent)
		must(p.t, err)
		found[name] = c
	}
	return found
}

// exchange sends a request of requestSize to the pod and takes the response of
// responseSize.
func (p *pod) exchange() {
	p.t.Helper()
	var conn net.Conn
	eventually(p.t, "pod listens", func() (ok bool) {
		c, err := net.DialTimeout("tcp", p.address, 10*time.Second)
		conn = c
		return err == nil
	})
	defer conn.Close()
	must(p.t, conn.SetDeadline(time.Now().Add(waitDeadline)))
	_, err := conn.Write(make([]byte, requestSize))
	must(p.t, err)
	n, err := io.Copy(io.Discard, conn)
	must(p.t, err)
	if n != responseSize {
		p.t.Fatalf("the pod's response has %d bytes, not %d", n, responseSize)
	}
}

// criStats returns the counters that CRI reports, with kubelet's feature
// PodAndContainerStatsFromCRI for /stats/summary.
func (p *pod) criStats() (interfaces, error) {
	r, err := theNode.CRI().PodSandboxStats(p.ctx, &runtime.PodSandboxStatsRequest{PodSandboxId: p.ID})
	if err != nil {
		return nil, err
	}
	found := interfaces{}
	for _, i := range r.GetStats().GetLinux().GetNetwork().GetInterfaces() {
		found[i.Name] = counters{i.RxBytes.GetValue(), i.TxBytes.GetValue()}
	}
	delete(found, "lo")
	return found, nil
}

// criMetrics returns the counters that CRI reports, with the same feature for
// /metrics/cadvisor.
func (p *pod) criMetrics() (interfaces, error) {
	r, err := theNode.CRI().ListPodSandboxMetrics(p.ctx, &runtime.ListPodSandboxMetricsRequest{})
	if err != nil {
		return nil, err
	}
	found := interfaces{}
	for _, s := range r.GetPodMetrics() {
		if s.GetPodSandboxId() != p.ID {
			continue
		}
		for _, m := range s.GetMetrics() {
			if len(m.GetLabelValues()) == 0 {
				continue
			}
			name := m.LabelValues[len(m.LabelValues)-1]
			c := found[name]
			switch m.GetName() {
			case "container_network_receive_bytes_total":
				c.received = m.GetValue().GetValue()
			case "container_network_transmit_bytes_total":
				c.sent = m.GetValue().GetValue()
			default:
				continue
			}
			found[name] = c
		}
	}
	return found, nil
}
