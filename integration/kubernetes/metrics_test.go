package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
)

// fromKubelet returns what kubelet answers, through the API server.
func (s *scenario) fromKubelet(path string) ([]byte, error) {
	return theCluster.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(cluster.NodeName).SubResource("proxy").Suffix(path).DoRaw(s.ctx)
}

// summary is what of kubelet's summary is looked at (k8s.io/kubelet/pkg/apis/stats/v1alpha1).
type summary struct {
	Pods []struct {
		PodRef  struct{ Name, Namespace string }
		CPU     struct{ UsageCoreNanoSeconds *uint64 }
		Memory  struct{ WorkingSetBytes *uint64 }
		Network *struct {
			Interfaces []struct{ RxBytes, TxBytes *uint64 }
		}
		Containers []struct {
			Name   string
			CPU    struct{ UsageCoreNanoSeconds *uint64 }
			Memory struct{ WorkingSetBytes *uint64 }
		}
	}
}

// newBusyPod is a pod of which there is something to be seen in all metrics.
func (s *scenario) newBusyPod(name string) *corev1.Pod {
	return s.newPod(name, "sh", "-c", "while :; do cat /proc/meminfo >/dev/null; sleep 0.1; done")
}

// Kubelet's summary has a pod and its container with processor and memory; and the pod's network, unless the pod is
// made through the Sandbox API: then kubelet asks cAdvisor for a container that containerd does not know.
func TestSummary(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newBusyPod("summary"))
		s.eventually("the summary has the pod", func() error {
			text, err := s.fromKubelet("stats/summary")
			if err != nil {
				return err
			}
			var all summary
			if err := json.Unmarshal(text, &all); err != nil {
				return err
			}
			return s.checkSummary(all, pod.Name)
		})
	})
}

func (s *scenario) checkSummary(all summary, pod string) error {
	for _, p := range all.Pods {
		if p.PodRef.Name != pod || p.PodRef.Namespace != s.handler {
			continue
		}
		positive := func(v *uint64) bool { return v != nil && *v > 0 }
		switch {
		case !positive(p.CPU.UsageCoreNanoSeconds):
			return fmt.Errorf("no processor time of the pod")
		case !positive(p.Memory.WorkingSetBytes):
			return fmt.Errorf("no memory of the pod")
		case len(p.Containers) != 1 || p.Containers[0].Name != "main":
			return fmt.Errorf("the containers are %v", p.Containers)
		case !positive(p.Containers[0].CPU.UsageCoreNanoSeconds):
			return fmt.Errorf("no processor time of the container")
		case !positive(p.Containers[0].Memory.WorkingSetBytes):
			return fmt.Errorf("no memory of the container")
		case hasNetworkMetrics(s.handler) && (p.Network == nil || len(p.Network.Interfaces) == 0 || p.Network.Interfaces[0].RxBytes == nil):
			return fmt.Errorf("no network of the pod")
		case !hasNetworkMetrics(s.handler) && p.Network != nil:
			s.Fatal("the summary has a network of the pod: docs/kubernetes.md says that it has none")
		}
		return nil
	}
	return fmt.Errorf("no such pod among %d", len(all.Pods))
}

// hasNetworkMetrics says whether kubelet finds the network counters of a handler's pods: with its defaults it takes them
// from cAdvisor, and with a feature gate from CRI.
func hasNetworkMetrics(handler string) bool {
	return !isSandboxAPI(handler) || strings.Contains(os.Getenv("PAUSE_TEST_GATES"), "PodAndContainerStatsFromCRI: true")
}

// cAdvisor has the same kinds of metrics of a pod and its container as with the stock handler.
func TestCadvisorMetrics(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newBusyPod("cadvisor"))
		wanted := []string{
			"container_cpu_usage_seconds_total main", "container_memory_working_set_bytes main", "container_start_time_seconds main",
			"container_cpu_usage_seconds_total pod", "container_memory_working_set_bytes pod",
		}
		if hasNetworkMetrics(s.handler) {
			wanted = append(wanted, "container_network_receive_bytes_total pod", "container_network_transmit_bytes_total pod")
		}
		s.eventually("cAdvisor has the pod", func() error { return s.hasMetrics("metrics/cadvisor", pod.Name, wanted) })
	})
}

// The resource metrics, which `kubectl top` shows, have a pod and its container.
func TestResourceMetrics(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newBusyPod("resource"))
		wanted := []string{
			"container_cpu_usage_seconds_total main", "container_memory_working_set_bytes main", "container_start_time_seconds main",
			"pod_cpu_usage_seconds_total pod", "pod_memory_working_set_bytes pod",
		}
		s.eventually("the resource metrics have the pod", func() error { return s.hasMetrics("metrics/resource", pod.Name, wanted) })
	})
}

var metric = regexp.MustCompile(`^(\w+)\{(.*)\} `)

// hasMetrics fails if kubelet lacks a metric of a pod: its name, and that of the container, or "pod" if the metric is
// the pod's.
func (s *scenario) hasMetrics(path, pod string, wanted []string) error {
	text, err := s.fromKubelet(path)
	if err != nil {
		return err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		match := metric.FindStringSubmatch(line)
		if match == nil || !strings.Contains(match[2], `pod="`+pod+`"`) || !strings.Contains(match[2], `namespace="`+s.handler+`"`) {
			continue
		}
		of := "pod"
		if strings.Contains(match[2], `container="main"`) {
			of = "main"
		}
		found = append(found, match[1]+" "+of)
	}
	for _, w := range wanted {
		if !slices.Contains(found, w) {
			return fmt.Errorf("no %q among %d", w, len(found))
		}
	}
	return nil
}
