package kubernetes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	taskapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/integration/nodetest"
)

// newLastingPod is a pod whose container is started again when it ends, and says so in its log.
func (s *scenario) newLastingPod(name string) *corev1.Pod {
	pod := s.newPod(name, "sh", "-c", "echo up; exec sleep infinity")
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	return pod
}

// sandbox is the id of a pod's sandbox that is ready.
func (s *scenario) sandbox(pod *corev1.Pod) string {
	s.Helper()
	var id string
	s.eventually("pod "+pod.Name+" has a sandbox", func() error {
		list, err := theCluster.Node.CRI().ListPodSandbox(s.ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{
			LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(pod.UID)},
			State:         &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
		}})
		if err == nil && len(list.Items) != 1 {
			err = fmt.Errorf("there are %d", len(list.Items))
		}
		if err == nil {
			id = list.Items[0].Id
		}
		return err
	})
	return id
}

// stockSockets are sockets of shims that the stock shim may leave, and leaves, when it or its pod is killed.
var stockSockets struct {
	sync.Mutex
	paths []string
}

// mayLeaveSocket is to be called before a sandbox or its shim is killed.
func (s *scenario) mayLeaveSocket(sandbox string) {
	s.Helper()
	if s.handler != cluster.Stock {
		return
	}
	path, err := theCluster.Node.ShimSocket(node.CRINamespace, sandbox)
	must(s.T, err)
	stockSockets.Lock()
	defer stockSockets.Unlock()
	stockSockets.paths = append(stockSockets.paths, path)
}

// recovered waits until a pod runs again, in another sandbox than before, and works.
func (s *scenario) recovered(before *corev1.Pod, sandbox string) {
	s.Helper()
	after := s.until(before.Name, "started again", func(p *corev1.Pod) bool {
		c := container(p, "main")
		return isReady(p) && c.RestartCount > 0 && c.ContainerID != container(before, "main").ContainerID
	})
	expect(s, "the pod", after.UID, before.UID)
	if now := s.sandbox(after); now == sandbox {
		s.Errorf("the sandbox is the one that was killed: %s", now)
	}
	expect(s, "output", s.exec(before.Name, "main", "echo", "hello"), "hello")
}

// A pod whose sandbox is killed gets another one.
func TestSandboxKilled(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newLastingPod("sandbox"))
		id := s.sandbox(pod)
		s.mayLeaveSocket(id)
		if isSandboxAPI(s.handler) {
			// There is no task of the sandbox that could be killed.
			_, err := theCluster.Node.CRI().StopPodSandbox(s.ctx, &runtime.StopPodSandboxRequest{PodSandboxId: id})
			must(s.T, err)
		} else {
			ctx := namespaces.WithNamespace(s.ctx, node.CRINamespace)
			_, err := theCluster.Node.Client().TaskService().Kill(ctx, &taskapi.KillRequest{ContainerID: id, Signal: uint32(unix.SIGKILL)})
			must(s.T, err)
		}
		s.recovered(pod, id)
	})
}

// A pod whose shim is killed is run again by another one.
func TestShimKilled(t *testing.T) {
	eachAlone(t, func(s *scenario) {
		pod := s.run(s.newLastingPod("shim"))
		id := s.sandbox(pod)
		s.mayLeaveSocket(id)
		pid, err := theCluster.Node.ShimPid(node.CRINamespace, id)
		must(s.T, err)
		must(s.T, unix.Kill(pid, unix.SIGKILL))
		s.recovered(pod, id)
	})
}

// A pod goes on while kubelet or containerd, or both, are killed and started again.
func TestDaemonsKilled(t *testing.T) {
	for _, c := range []struct {
		name                string
		kubelet, containerd bool
	}{
		{"kubelet", true, false},
		{"containerd", false, true},
		{"both", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			prepare := func(s *scenario) *corev1.Pod { return s.run(s.newLastingPod("daemons-" + c.name)) }
			together(t, prepare, func(ctx context.Context) {
				if c.kubelet {
					must(t, theCluster.Stop("kubelet", unix.SIGKILL))
				}
				if c.containerd {
					must(t, theCluster.Node.Kill())
					must(t, theCluster.Node.Restart(ctx))
				}
				if c.kubelet {
					must(t, theCluster.StartKubelet(ctx))
				}
			}, func(s *scenario, pod *corev1.Pod) { s.wentOn(pod) })
		})
	}
}

// wentOn checks that a pod has the same container as before, which works.
func (s *scenario) wentOn(before *corev1.Pod) {
	s.Helper()
	s.eventually("a command can be run in the pod", func() error {
		out, code, err := s.execWith(before.Name, &corev1.PodExecOptions{Container: "main", Command: []string{"echo", "hello"}}, "")
		if err == nil && (code != 0 || out != "hello\n") {
			err = fmt.Errorf("exit code %d: %q", code, out)
		}
		return err
	})
	after := s.until(before.Name, "ready", isReady)
	expect(s, "restarts", container(after, "main").RestartCount, 0)
	expect(s, "container", container(after, "main").ContainerID, container(before, "main").ContainerID)
	expect(s, "log", s.logs(before.Name, "main"), "up\n")
}

// A container that ends while containerd is away has ended for kubelet as well, with its exit code. That is not known
// any more with the stock shim, for which containerd then says 255.
func TestEndWhileContainerdIsAway(t *testing.T) {
	dir := t.TempDir()
	var inits []int
	prepare := func(s *scenario) *corev1.Pod {
		pod := s.newPod("away", "sh", "-c", "until test -e /shared/end; do sleep 0.1; done; exit 5")
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
		pod.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: dir},
		}}}
		pod = s.run(pod)
		pid, err := theCluster.Node.ContainerPid(s.ctx, strings.TrimPrefix(container(pod, "main").ContainerID, "containerd://"))
		must(s.T, err)
		inits = append(inits, pid)
		return pod
	}
	together(t, prepare, func(ctx context.Context) {
		must(t, theCluster.Node.Kill())
		must(t, os.WriteFile(filepath.Join(dir, "end"), nil, 0o600))
		nodetest.Eventually(t, waitDeadline(), "all containers have ended", func() bool {
			return !slices.ContainsFunc(inits, func(pid int) bool { return unix.Kill(pid, 0) == nil })
		})
		must(t, theCluster.Node.Restart(ctx))
	}, func(s *scenario, pod *corev1.Pod) {
		want := int32(5)
		if s.handler == cluster.Stock {
			want = 255
		}
		expect(s, "exit code", s.terminated(s.until(pod.Name, "finished", isFinished), "main").ExitCode, want)
	})
}
