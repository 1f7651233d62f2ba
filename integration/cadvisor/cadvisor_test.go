package cadvisor

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/cadvisor/lib/cache/memory"
	"github.com/google/cadvisor/lib/container"
	"github.com/google/cadvisor/lib/manager"
	"github.com/google/cadvisor/lib/model"
	"github.com/google/cadvisor/lib/utils/sysfs"
	"k8s.io/klog/v2"

	// What kubelet has, so that its choice among them is kubelet's. Those of
	// runtimes that are not there do not register.
	_ "github.com/google/cadvisor/lib/container/containerd/install"
	_ "github.com/google/cadvisor/lib/container/crio/install"
	_ "github.com/google/cadvisor/lib/container/systemd/install"

	"containerd-shim-pause-v2/integration/node"
)

// configure tells cAdvisor where containerd is, by the flags that kubelet has for it:
// cAdvisor connects once in a process. What it says goes to a file, since it watches
// all cgroups of the machine and has much to say about those of others.
func configure() error {
	log, err := os.Create(logFile())
	if err != nil {
		return err
	}
	klog.LogToStderr(false)
	klog.SetOutput(log)
	return errors.Join(
		flag.Set("containerd", theNode.Socket()),
		flag.Set("containerd-namespace", node.CRINamespace),
		flag.Set("housekeeping_interval", "10s"), // kubelet's
	)
}

func logFile() string { return filepath.Join(theNode.Dir, "cadvisor.log") }

// cAdvisor is a manager that runs until the end of a test.
type cAdvisor struct{ manager.Manager }

// startCAdvisor wires cAdvisor as kubelet does (cmd/kubelet/app/server.go and
// pkg/kubelet/cadvisor/cadvisor_linux.go of Kubernetes 1.37). The node's cgroup
// is to it what /kubepods is to kubelet.
func startCAdvisor(t *testing.T) *cAdvisor {
	t.Helper()
	longest, dynamic := 15*time.Second, true
	metrics := container.MetricSet{
		container.CpuUsageMetrics:     {},
		container.MemoryUsageMetrics:  {},
		container.DiskIOMetrics:       {},
		container.NetworkUsageMetrics: {},
		container.ProcessMetrics:      {},
		container.OOMMetrics:          {},
		container.DiskUsageMetrics:    {},
	}
	m, err := manager.New(memory.New(2*time.Minute, nil), sysfs.NewRealSysFs(),
		manager.HousekeepingConfig{Interval: &longest, AllowDynamic: &dynamic},
		metrics, []string{"/" + theNode.ID}, nil, "", 0)
	must(t, err)
	must(t, m.Start())
	t.Cleanup(func() {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
		container.ClearContainerHandlerFactories() // they are the process's, not the manager's
	})
	return &cAdvisor{m}
}

// sandbox returns what kubelet uses for the statistics of a pod: among all that
// cAdvisor knows, what has the labels of a pod and a cgroup of the sandbox's ID
// (pkg/kubelet/stats/cri_stats_provider.go). It is nil if there is nothing of that
// kind.
func (c *cAdvisor) sandbox(id string) (*model.ContainerInfo, error) {
	all, err := c.GetContainerInfoV2("/", model.RequestOptions{IdType: model.TypeName, Count: 2, Recursive: true})
	if _, ok := all["/"]; !ok { // otherwise an error is about others, that come and go
		return nil, fmt.Errorf("cannot list what cAdvisor knows: %w", err)
	}
	for cgroup, info := range all {
		labels := info.Spec.Labels
		if path.Base(cgroup) == id && labels["io.kubernetes.pod.name"] != "" && labels["io.kubernetes.pod.namespace"] != "" {
			return &info, nil
		}
	}
	return nil, nil
}

// fresh returns what cAdvisor reports of a cgroup, with statistics as of now.
func (c *cAdvisor) fresh(cgroup string) (*model.ContainerInfo, error) {
	var maxAge time.Duration // older ones are not taken, and so all are read anew
	found, err := c.GetContainerInfoV2(cgroup, model.RequestOptions{IdType: model.TypeName, Count: 2, MaxAge: &maxAge})
	if err != nil {
		return nil, err
	}
	info := found[cgroup]
	if len(info.Stats) == 0 {
		return nil, fmt.Errorf("cAdvisor has no statistics of %s", cgroup)
	}
	return &info, nil
}

// network returns the counters that kubelet would report for a pod: those in the
// last of the statistics, if there is a network to have some.
func network(info *model.ContainerInfo) interfaces {
	if !info.Spec.HasNetwork || len(info.Stats) == 0 {
		return nil
	}
	last := info.Stats[len(info.Stats)-1]
	if last.Network == nil {
		return nil
	}
	found := interfaces{}
	for _, i := range last.Network.Interfaces {
		found[i.Name] = counters{i.RxBytes, i.TxBytes}
	}
	return found
}
