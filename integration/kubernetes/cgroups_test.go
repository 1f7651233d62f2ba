package kubernetes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
)

// podMemoryLimit is the limit of the cgroup of a pod, in bytes, as the kernel has it.
func (s *scenario) podMemoryLimit(pod *corev1.Pod) int64 {
	s.Helper()
	hierarchy, file := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if cgroups.Mode() == cgroups.Unified {
		hierarchy, file = "/sys/fs/cgroup", "memory.max"
	}
	// Guaranteed pods are right below kubepods, others below their class.
	var found []string
	for _, class := range []string{"", "burstable", "besteffort"} {
		paths, err := filepath.Glob(filepath.Join(hierarchy, theCluster.Node.ID, "kubepods", class, "pod"+string(pod.UID), file))
		must(s.T, err)
		found = append(found, paths...)
	}
	if len(found) != 1 {
		s.Fatalf("the cgroups of pod %s are %q", pod.Name, found)
	}
	text, err := os.ReadFile(found[0])
	must(s.T, err)
	limit, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	must(s.T, err)
	return limit
}

// labelNode sets a label of the node to a value in JSON; null removes it.
func (s *scenario) labelNode(label, value string) {
	s.Helper()
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, label, value)
	_, err := theCluster.Client.CoreV1().Nodes().Patch(context.Background(), cluster.NodeName, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	must(s.T, err)
}

// sleep waits until it is worth asking again.
func sleep() { time.Sleep(pollInterval) }
