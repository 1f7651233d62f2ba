package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
)

// Pods of a Deployment answer through its Service, before and after they have been replaced.
func TestDeploymentAndService(t *testing.T) {
	each(t, func(s *scenario) {
		const name, replicas = "web", 2
		deployments := theCluster.Client.AppsV1().Deployments(s.handler)
		_, err := deployments.Create(s.ctx, s.newDeployment(name, replicas), metav1.CreateOptions{})
		must(s.T, err)
		s.Cleanup(func() { s.deleteDeployment(name) })
		services := theCluster.Client.CoreV1().Services(s.handler)
		service, err := services.Create(s.ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.ServiceSpec{
				Selector: map[string]string{"app": name},
				Ports:    []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
			},
		}, metav1.CreateOptions{})
		must(s.T, err)
		s.Cleanup(func() { must(s.T, services.Delete(context.Background(), name, metav1.DeleteOptions{})) })
		s.rolledOut(name, replicas)
		client := s.newPod("client")
		client.Spec.Containers = []corev1.Container{webServer()}
		client = s.run(client)
		first := s.answers(client, service.Spec.ClusterIP, replicas)

		deployment, err := deployments.Get(s.ctx, name, metav1.GetOptions{})
		must(s.T, err)
		deployment.Spec.Template.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "GENERATION", Value: "2"}}
		_, err = deployments.Update(s.ctx, deployment, metav1.UpdateOptions{})
		must(s.T, err)
		s.rolledOut(name, replicas)
		for _, pod := range s.answers(client, service.Spec.ClusterIP, replicas) {
			if slices.Contains(first, pod) {
				s.Errorf("pod %s was not replaced", pod)
			}
		}
	})
}

// webServer is a container that says by HTTP on port 8080 what its host name is, and dials others.
func webServer() corev1.Container {
	return corev1.Container{
		Name: "web", Image: cluster.Agnhost, Args: []string{"netexec", "--http-port=8080"},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}},
			PeriodSeconds: 1,
		},
	}
}

// get asks a web server, from the node.
func (s *scenario) get(url string) (string, error) {
	request, err := http.NewRequestWithContext(s.ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func (s *scenario) newDeployment(name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	pod := s.newPod(name)
	pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	pod.Spec.Containers = []corev1.Container{webServer()}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
		},
	}
}

// rolledOut waits until all pods of a deployment are those of its present template.
func (s *scenario) rolledOut(name string, replicas int32) {
	s.Helper()
	s.eventually("deployment "+name+" is rolled out", func() error {
		d, err := theCluster.Client.AppsV1().Deployments(s.handler).Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		st := d.Status
		if st.ObservedGeneration < d.Generation || st.UpdatedReplicas != replicas || st.AvailableReplicas != replicas || st.Replicas != replicas {
			return fmt.Errorf("%d replicas, %d updated, %d available", st.Replicas, st.UpdatedReplicas, st.AvailableReplicas)
		}
		return nil
	})
}

func (s *scenario) deleteDeployment(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), waitDeadline())
	defer cancel()
	foreground := metav1.DeletePropagationForeground
	deployments := theCluster.Client.AppsV1().Deployments(s.handler)
	if err := deployments.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		s.Error(err)
	}
	s.untilGone(ctx, "deployment "+name, func() error {
		_, err := deployments.Get(ctx, name, metav1.GetOptions{})
		return err
	})
}

// untilGone waits until get says that there is no such thing.
func (s *scenario) untilGone(ctx context.Context, what string, get func() error) {
	for !apierrors.IsNotFound(get()) {
		if ctx.Err() != nil {
			s.Errorf("%s does not go", what)
			return
		}
		sleep()
	}
}

// answers has a pod ask a service until so many different pods have answered, and returns their names.
func (s *scenario) answers(client *corev1.Pod, ip string, count int) (pods []string) {
	s.Helper()
	s.eventually(fmt.Sprintf("%d pods answer", count), func() error {
		text, err := s.get(fmt.Sprintf("http://%s:8080/dial?request=hostname&protocol=http&host=%s&port=80&tries=1", client.Status.PodIP, ip))
		if err != nil {
			return err
		}
		var answer struct{ Responses, Errors []string }
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			return err
		}
		for _, pod := range answer.Responses {
			if !slices.Contains(pods, pod) {
				pods = append(pods, pod)
			}
		}
		if len(pods) < count {
			return fmt.Errorf("only %q, errors %q", pods, answer.Errors)
		}
		return nil
	})
	return pods
}

// A container whose liveness probe fails is started again, and a pod is ready when its readiness probe says so.
func TestProbesAndRestarts(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("probes", "sh", "-c", "touch /tmp/alive /tmp/started; exec sleep infinity")
		pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
		probe := func(file string, failures int32) *corev1.Probe {
			return &corev1.Probe{
				ProbeHandler:     corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-e", file}}},
				PeriodSeconds:    1,
				TimeoutSeconds:   30,
				FailureThreshold: failures,
			}
		}
		c := &pod.Spec.Containers[0]
		c.StartupProbe = probe("/tmp/started", 100)
		c.ReadinessProbe = probe("/tmp/ready", 1)
		c.LivenessProbe = probe("/tmp/alive", 1)
		s.create(pod)
		s.until(pod.Name, "started, and not ready", func(p *corev1.Pod) bool {
			c := container(p, "main")
			return c != nil && c.Started != nil && *c.Started && !isReady(p)
		})
		s.exec(pod.Name, "main", "touch", "/tmp/ready")
		before := s.until(pod.Name, "ready", isReady)
		expect(s, "restarts of a container that lives", container(before, "main").RestartCount, 0)
		s.exec(pod.Name, "main", "rm", "/tmp/alive")
		s.until(pod.Name, "started again", func(p *corev1.Pod) bool {
			c := container(p, "main")
			return c.RestartCount == 1 && c.State.Running != nil && c.LastTerminationState.Terminated != nil && !isReady(p)
		})
	})
}

// An init container ends before the others start; a sidecar is there from before until after them, and does not keep
// the pod from its end.
func TestInitAndSidecarContainers(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("init", "sh", "-c", "cat /shared/init && until cat /shared/sidecar; do sleep 0.1; done")
		pod.Spec.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		always := corev1.ContainerRestartPolicyAlways
		sidecar := script("sidecar", "trap 'exit 0' TERM; test ! -e /shared/init; echo sidecar >/shared/sidecar; while :; do sleep 0.1; done")
		sidecar.RestartPolicy = &always
		pod.Spec.InitContainers = []corev1.Container{sidecar, script("init", "echo init >/shared/init")}
		mount := []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}}
		pod.Spec.Containers[0].VolumeMounts = mount
		for i := range pod.Spec.InitContainers {
			pod.Spec.InitContainers[i].VolumeMounts = mount
		}
		grace := int64(60)
		pod.Spec.TerminationGracePeriodSeconds = &grace
		done := s.finish(pod)
		expect(s, "phase", done.Status.Phase, corev1.PodSucceeded)
		expect(s, "exit code of the init container", s.terminated(done, "init").ExitCode, 0)
		lines := strings.Split(strings.TrimSpace(s.logs(pod.Name, "main")), "\n")
		expect(s, "first line", lines[0], "init")
		expect(s, "last line", lines[len(lines)-1], "sidecar")
		done = s.until(pod.Name, "without a sidecar", func(p *corev1.Pod) bool { return container(p, "sidecar").State.Terminated != nil })
		expect(s, "exit code of the sidecar", s.terminated(done, "sidecar").ExitCode, 0)
	})
}

// All pods of a Job complete, each once.
func TestJob(t *testing.T) {
	each(t, func(s *scenario) {
		const name = "job"
		completions, parallelism := int32(20), int32(4)
		jobs := theCluster.Client.BatchV1().Jobs(s.handler)
		_, err := jobs.Create(s.ctx, &batchv1.Job{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: batchv1.JobSpec{
				Completions: &completions, Parallelism: &parallelism,
				Template: corev1.PodTemplateSpec{Spec: s.newPod(name, "true").Spec},
			},
		}, metav1.CreateOptions{})
		must(s.T, err)
		s.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), waitDeadline())
			defer cancel()
			foreground := metav1.DeletePropagationForeground
			if err := jobs.Delete(ctx, name, metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
				s.Error(err)
			}
			s.untilGone(ctx, "job "+name, func() error {
				_, err := jobs.Get(ctx, name, metav1.GetOptions{})
				return err
			})
		})
		// As long as pods end it goes on, however long that takes.
		for ended := int32(0); ended < completions; {
			s.eventually(fmt.Sprintf("more than %d pods of the job have ended", ended), func() error {
				job, err := jobs.Get(s.ctx, name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				now := job.Status.Succeeded + job.Status.Failed
				if now <= ended {
					return fmt.Errorf("%d succeeded, %d failed", job.Status.Succeeded, job.Status.Failed)
				}
				ended = now
				return nil
			})
		}
		job, err := jobs.Get(s.ctx, name, metav1.GetOptions{})
		must(s.T, err)
		expect(s, "failed pods", job.Status.Failed, 0)
	})
}

// A pod of a manifest in kubelet's directory is run, is shown by the API server, and goes with the manifest.
func TestStaticPod(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("static", "sleep", "infinity")
		pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		pod.Namespace = s.handler
		manifest, err := yaml.Marshal(pod)
		must(s.T, err)
		// Kubelet reads the file as soon as it is there.
		file := filepath.Join(theCluster.ManifestDir(), s.handler+".yaml")
		must(s.T, os.WriteFile(filepath.Join(theCluster.Node.Dir, s.handler+".yaml"), manifest, 0o600))
		must(s.T, os.Rename(filepath.Join(theCluster.Node.Dir, s.handler+".yaml"), file))
		s.Cleanup(func() { os.Remove(file) })
		name := pod.Name + "-" + cluster.NodeName
		s.until(name, "ready", isReady)
		expect(s, "host name", s.exec(name, "main", "hostname"), name)
		must(s.T, os.Remove(file))
		ctx, cancel := context.WithTimeout(s.ctx, waitDeadline())
		defer cancel()
		s.untilGone(ctx, "pod "+name, func() error {
			_, err := s.pods.Get(ctx, name, metav1.GetOptions{})
			return err
		})
	})
}

// Containers of a pod share a volume in memory, of the size that was asked for.
func TestEmptyDirInMemory(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("memory", "sh", "-c", "echo hello >/memory/file; exec sleep infinity")
		size := resource.MustParse("16Mi")
		pod.Spec.Volumes = []corev1.Volume{{Name: "memory", VolumeSource: corev1.VolumeSource{
			EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: &size},
		}}}
		pod.Spec.Containers = append(pod.Spec.Containers, busybox("other", "sleep", "infinity"))
		for i := range pod.Spec.Containers {
			pod.Spec.Containers[i].VolumeMounts = []corev1.VolumeMount{{Name: "memory", MountPath: "/memory"}}
		}
		s.run(pod)
		s.eventually("the other container sees the file", func() error {
			out, code, err := s.execWith(pod.Name, &corev1.PodExecOptions{Container: "other", Command: []string{"cat", "/memory/file"}}, "")
			if err == nil && (code != 0 || out != "hello\n") {
				err = fmt.Errorf("exit code %d: %q", code, out)
			}
			return err
		})
		mounts := s.exec(pod.Name, "other", "grep", " /memory ", "/proc/mounts")
		if !strings.HasPrefix(mounts, "tmpfs ") || !strings.Contains(mounts, "size=16384k") {
			s.Errorf("/memory is mounted as %q", mounts)
		}
	})
}

// A pod finds services by their names, and a headless one's pods.
func TestDNS(t *testing.T) {
	each(t, func(s *scenario) {
		services := theCluster.Client.CoreV1().Services(s.handler)
		_, err := services.Create(s.ctx, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "headless"},
			Spec: corev1.ServiceSpec{
				ClusterIP: corev1.ClusterIPNone, Selector: map[string]string{"pod": "named"},
				Ports: []corev1.ServicePort{{Port: 80}},
			},
		}, metav1.CreateOptions{})
		must(s.T, err)
		s.Cleanup(func() { must(s.T, services.Delete(context.Background(), "headless", metav1.DeleteOptions{})) })
		pod := s.newPod("named", "sleep", "infinity")
		pod.Spec.Hostname, pod.Spec.Subdomain = "first", "headless"
		named := s.run(pod)
		for name, want := range map[string]string{
			"kubernetes.default.svc.cluster.local":               "10.96.0.1",
			"first.headless." + s.handler + ".svc.cluster.local": named.Status.PodIP,
		} {
			s.eventually(name+" is "+want, func() error {
				out, _, err := s.execWith(pod.Name, &corev1.PodExecOptions{Command: []string{"nslookup", name}}, "")
				if err == nil && !slices.Contains(strings.Fields(out), want) {
					err = fmt.Errorf("nslookup says %q", out)
				}
				return err
			})
		}
	})
}

// A pod has the host names that it was given.
func TestHostNames(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("names", "sleep", "infinity")
		pod.Spec.Hostname, pod.Spec.Subdomain = "first", "group"
		pod.Spec.HostAliases = []corev1.HostAlias{{IP: "192.0.2.1", Hostnames: []string{"alias.example"}}}
		made := s.run(pod)
		full := "first.group." + s.handler + ".svc.cluster.local"
		expect(s, "host name", s.exec(pod.Name, "main", "hostname"), "first")
		expect(s, "full name", s.exec(pod.Name, "main", "hostname", "-f"), full)
		hosts := strings.Fields(s.exec(pod.Name, "main", "cat", "/etc/hosts"))
		for _, want := range []string{full, "alias.example", "192.0.2.1", made.Status.PodIP} {
			if !slices.Contains(hosts, want) {
				s.Errorf("%s is not in /etc/hosts: %q", want, hosts)
			}
		}
		if resolv := s.exec(pod.Name, "main", "cat", "/etc/resolv.conf"); !strings.Contains(resolv, "search "+s.handler+".svc.cluster.local") {
			s.Errorf("resolv.conf is %q", resolv)
		}
	})
}

// The overhead of a RuntimeClass is added to a pod's limits, and its node selector to the pod's.
func TestRuntimeClassOverheadAndScheduling(t *testing.T) {
	each(t, func(s *scenario) {
		class := s.handler + "-overhead"
		overhead := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Mi"), corev1.ResourceCPU: resource.MustParse("10m")}
		classes := theCluster.Client.NodeV1().RuntimeClasses()
		_, err := classes.Create(s.ctx, &nodev1.RuntimeClass{
			ObjectMeta: metav1.ObjectMeta{Name: class},
			Handler:    s.handler,
			Overhead:   &nodev1.Overhead{PodFixed: overhead},
			Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"handler-" + s.handler: "yes"}},
		}, metav1.CreateOptions{})
		must(s.T, err)
		s.Cleanup(func() { must(s.T, classes.Delete(context.Background(), class, metav1.DeleteOptions{})) })
		pod := s.newPod("overhead", "sleep", "infinity")
		pod.Spec.RuntimeClassName = &class
		limits := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi"), corev1.ResourceCPU: resource.MustParse("100m")}
		pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: limits, Requests: limits}
		s.create(pod)
		s.until(pod.Name, "unschedulable", func(p *corev1.Pod) bool {
			return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Reason == corev1.PodReasonUnschedulable })
		})
		s.labelNode("handler-"+s.handler, `"yes"`)
		s.Cleanup(func() { s.labelNode("handler-"+s.handler, "null") })
		running := s.until(pod.Name, "ready", isReady)
		expect(s, "overhead", running.Spec.Overhead.Memory().String(), "8Mi")
		expect(s, "limit of the pod's cgroup", s.podMemoryLimit(running), 40<<20)
	})
}
