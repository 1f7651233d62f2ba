package kubernetes

import (
	"fmt"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A container ends by itself at SIGTERM, after its preStop hook has ended; one that ignores the signal is killed when
// its time is over. The finalizer keeps the pod until this has been seen.
func TestDeletion(t *testing.T) {
	t.Parallel()
	const finalizer = "test/seen"
	for _, c := range []struct {
		name, script string
		preStop      string
		grace        int64
		code         int32
		log          string
	}{
		{"term", "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.1; done", "", 120, 3, "up\nterm\n"},
		{"prestop", "trap 'echo term; exit 4' TERM; echo up; while :; do sleep 0.1; done", "echo hook >/proc/1/fd/1; sleep 1; echo end >/proc/1/fd/1", 120, 4, "up\nhook\nend\nterm\n"},
		{"ignored", "trap '' TERM; echo up; while :; do sleep 0.1; done", "", 2, 137, "up\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			each(t, func(s *scenario) {
				pod := s.newPod("deletion-"+c.name, "sh", "-c", c.script)
				pod.Finalizers = []string{finalizer}
				pod.Spec.TerminationGracePeriodSeconds = &c.grace
				if c.preStop != "" {
					pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
						Exec: &corev1.ExecAction{Command: []string{"sh", "-c", c.preStop}},
					}}
				}
				defer s.removeFinalizers(pod.Name)
				s.run(pod)
				s.eventually("the container has set its trap", func() error {
					if log := s.logs(pod.Name, "main"); !strings.HasPrefix(log, "up") {
						return fmt.Errorf("its log is %q", log)
					}
					return nil
				})
				stream, err := s.pods.GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(s.ctx)
				must(s.T, err)
				defer stream.Close()
				must(s.T, s.pods.Delete(s.ctx, pod.Name, metav1.DeleteOptions{}))
				log := new(strings.Builder)
				_, err = io.Copy(log, stream)
				must(s.T, err)
				expect(s, "log", log.String(), c.log)
				done := s.until(pod.Name, "ended", func(p *corev1.Pod) bool { return container(p, "main").State.Terminated != nil })
				expect(s, "exit code", s.terminated(done, "main").ExitCode, c.code)
			})
		})
	}
}

func (s *scenario) removeFinalizers(pod string) {
	s.Helper()
	_, err := s.pods.Patch(s.ctx, pod, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	must(s.T, err)
}

// A container over its memory limit is reported as killed for that.
func TestOOMKilled(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("oom")
		limits := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Mi")}
		pod.Spec.Containers = []corev1.Container{busybox("main", "tail", "/dev/zero"), busybox("other", "sleep", "infinity")}
		pod.Spec.Containers[0].Resources.Limits = limits
		s.create(pod)
		done := s.until(pod.Name, "out of memory", func(p *corev1.Pod) bool {
			c := container(p, "main")
			return c != nil && c.State.Terminated != nil
		})
		expect(s, "reason", s.terminated(done, "main").Reason, "OOMKilled")
		expect(s, "exit code", s.terminated(done, "main").ExitCode, 137)
		expect(s, "the other container runs", container(done, "other").State.Running != nil, true)
	})
}

// The message of a container is what it has written into a file, or the end of its log if it fails; the exit code and
// the reason say how it ended.
func TestTermination(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("termination")
		fallback := script("log", "echo from the log; exit 7")
		fallback.TerminationMessagePolicy = corev1.TerminationMessageFallbackToLogsOnError
		pod.Spec.Containers = []corev1.Container{
			script("file", "echo -n from the file >/dev/termination-log"),
			fallback,
			busybox("missing", "/no/such/program"),
		}
		s.create(pod)
		done := s.until(pod.Name, "finished", isFinished)
		for name, want := range map[string]corev1.ContainerStateTerminated{
			"file":    {Reason: "Completed", Message: "from the file"},
			"log":     {Reason: "Error", ExitCode: 7, Message: "from the log\n"},
			"missing": {Reason: "StartError", ExitCode: 128},
		} {
			got := s.terminated(done, name)
			expect(s, "reason of "+name, got.Reason, want.Reason)
			expect(s, "exit code of "+name, got.ExitCode, want.ExitCode)
			if name != "missing" {
				expect(s, "message of "+name, got.Message, want.Message)
			} else if !strings.Contains(got.Message, "/no/such/program") {
				s.Errorf("message of missing: %q", got.Message)
			}
		}
	})
}

// The limits of a container are changed while it runs, without a restart.
func TestResizeInPlace(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("resize", "sleep", "infinity")
		limits := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi"), corev1.ResourceCPU: resource.MustParse("100m")}
		pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: limits, Requests: limits}
		before := s.run(pod)
		expect(s, "limit before", s.podMemoryLimit(before), 32<<20)
		patch := `{"spec":{"containers":[{"name":"main","resources":{"limits":{"memory":"48Mi","cpu":"200m"},"requests":{"memory":"48Mi","cpu":"200m"}}}]}}`
		_, err := s.pods.Patch(s.ctx, pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize")
		must(s.T, err)
		after := s.until(pod.Name, "resized", func(p *corev1.Pod) bool {
			r := container(p, "main").Resources
			return r != nil && r.Limits.Memory().Value() == 48<<20 && r.Limits.Cpu().MilliValue() == 200
		})
		expect(s, "limit after", s.podMemoryLimit(after), 48<<20)
		expect(s, "restarts", container(after, "main").RestartCount, 0)
		expect(s, "container", container(after, "main").ContainerID, container(before, "main").ContainerID)
	})
}

// A debug container sees the processes of the container that it is for.
func TestEphemeralContainer(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newPod("debug", "sleep", "1001"))
		pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{
			EphemeralContainerCommon: corev1.EphemeralContainerCommon(busybox("debugger", "sh", "-c", "ps -o pid,args; exec sleep infinity")),
			TargetContainerName:      "main",
		}}
		_, err := s.pods.UpdateEphemeralContainers(s.ctx, pod.Name, pod, metav1.UpdateOptions{})
		must(s.T, err)
		s.until(pod.Name, "debugged", func(p *corev1.Pod) bool {
			c := container(p, "debugger")
			return c != nil && c.State.Running != nil
		})
		expect(s, "process 1", s.exec(pod.Name, "debugger", "sh", "-c", "tr '\\0' ' ' </proc/1/cmdline"), "sleep 1001 ")
		expect(s, "namespace", s.namespace(pod.Name, "debugger", "pid"), s.namespace(pod.Name, "main", "pid"))
	})
}
