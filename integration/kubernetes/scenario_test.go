package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
)

// scenario is a test with one handler. Its pods are in the namespace of the handler's name, and are gone when it ends.
type scenario struct {
	*testing.T
	handler string
	ctx     context.Context
	pods    typedv1.PodInterface
}

func newScenario(t *testing.T, handler string) *scenario {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*waitDeadline())
	t.Cleanup(cancel)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of containerd:\n%s\nlog of kubelet:\n%s", theCluster.Node.LogTail(15), theCluster.LogTail("kubelet", 15))
		}
	})
	return &scenario{T: t, handler: handler, ctx: ctx, pods: theCluster.Client.CoreV1().Pods(handler)}
}

// newPod returns a pod of the scenario's handler, whose only container "main" runs a command of busybox. Nothing in it
// waits for its end: it has a second.
func (s *scenario) newPod(name string, command ...string) *corev1.Pod {
	grace, class, no := int64(1), s.handler, false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod": name}},
		Spec: corev1.PodSpec{
			RuntimeClassName:              &class,
			RestartPolicy:                 corev1.RestartPolicyNever,
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			Containers:                    []corev1.Container{busybox("main", command...)},
		},
	}
}

// busybox is a container that runs a command.
func busybox(name string, command ...string) corev1.Container {
	return corev1.Container{Name: name, Image: cluster.Busybox, Command: command}
}

// script is a container that runs a shell script.
func script(name, text string) corev1.Container { return busybox(name, "sh", "-c", text) }

// create makes a pod, which is deleted when the scenario ends.
func (s *scenario) create(pod *corev1.Pod) {
	s.Helper()
	made, err := s.pods.Create(s.ctx, pod, metav1.CreateOptions{})
	must(s.T, err)
	s.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitDeadline())
		defer cancel()
		if s.Failed() {
			s.Log(s.describe(ctx, made.Name))
		}
		if err := s.delete(ctx, made.Name); err != nil {
			s.Error(err)
		}
	})
}

// run makes a pod and waits until it is ready.
func (s *scenario) run(pod *corev1.Pod) *corev1.Pod {
	s.Helper()
	s.create(pod)
	return s.until(pod.Name, "ready", isReady)
}

// finish makes a pod and waits until all of its containers have ended.
func (s *scenario) finish(pod *corev1.Pod) *corev1.Pod {
	s.Helper()
	s.create(pod)
	return s.until(pod.Name, "finished", isFinished)
}

// delete deletes a pod, if it is still there, and waits until it has gone.
func (s *scenario) delete(ctx context.Context, name string) error {
	if err := s.pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("cannot delete pod %s: %w", name, err)
	}
	for {
		_, err := s.pods.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("pod %s does not go: %w", name, ctx.Err())
		}
		time.Sleep(pollInterval)
	}
}

// pollInterval is how often the API server is asked for what a scenario waits for.
const pollInterval = 100 * time.Millisecond

// until waits until a condition holds for a pod, and ends the test if it does not in time.
func (s *scenario) until(name, what string, condition func(*corev1.Pod) bool) (pod *corev1.Pod) {
	s.Helper()
	s.eventually("pod "+name+" is "+what, func() error {
		p, err := s.pods.Get(s.ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if pod = p; !condition(p) {
			return fmt.Errorf("it is %s", state(p))
		}
		return nil
	})
	return pod
}

// eventually calls condition until it returns no error, and ends the test if it does not in time.
func (s *scenario) eventually(what string, condition func() error) {
	s.Helper()
	for start := time.Now(); ; time.Sleep(pollInterval) {
		err := condition()
		if err == nil {
			return
		}
		if time.Since(start) > waitDeadline() || s.ctx.Err() != nil {
			s.Fatalf("not within %v: %s: %v", waitDeadline(), what, err)
		}
	}
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func isFinished(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// state says in a line how a pod and its containers are.
func state(p *corev1.Pod) string {
	text := []string{string(p.Status.Phase)}
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
		line := fmt.Sprintf("%s: %d restarts", c.Name, c.RestartCount)
		switch {
		case c.State.Waiting != nil:
			line += ", waiting, " + c.State.Waiting.Reason + " " + c.State.Waiting.Message
		case c.State.Terminated != nil:
			line += fmt.Sprintf(", %s, exit code %d %s", c.State.Terminated.Reason, c.State.Terminated.ExitCode, c.State.Terminated.Message)
		case c.State.Running != nil:
			line += ", running"
		}
		text = append(text, line)
	}
	return strings.Join(text, "; ")
}

// describe is state with the events of the pod.
func (s *scenario) describe(ctx context.Context, name string) string {
	pod, err := s.pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err.Error()
	}
	text := "pod " + name + ": " + state(pod)
	events, err := theCluster.Client.CoreV1().Events(s.handler).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
	if err != nil {
		return text + ": " + err.Error()
	}
	for _, e := range events.Items {
		text += fmt.Sprintf("\n  %s (%d): %s", e.Reason, e.Count, e.Message)
	}
	return text
}

// container is the status of a container of a pod; nil if it has none yet.
func container(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if c.Name == name {
			return &c
		}
	}
	return nil
}

// terminated is how a container of a pod ended, and ends the test if it has not.
func (s *scenario) terminated(p *corev1.Pod, name string) *corev1.ContainerStateTerminated {
	s.Helper()
	c := container(p, name)
	if c == nil || c.State.Terminated == nil {
		s.Fatalf("container %s has not ended: %s", name, state(p))
	}
	return c.State.Terminated
}

// exec runs a command in a container, and returns what it writes without the last newline. It ends the test if the
// command fails.
func (s *scenario) exec(pod, container string, command ...string) string {
	s.Helper()
	out, code, err := s.execWith(pod, &corev1.PodExecOptions{Container: container, Command: command}, "")
	must(s.T, err)
	if code != 0 {
		s.Fatalf("%q in %s: exit code %d: %s", command, pod, code, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// execWith runs a command in a container with an input, and returns what it writes, and its exit code.
func (s *scenario) execWith(pod string, o *corev1.PodExecOptions, input string) (output string, code int, err error) {
	o.Stdin, o.Stdout, o.Stderr = input != "", true, !o.TTY
	request := theCluster.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.handler).Name(pod).
		SubResource("exec").VersionedParams(o, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(theCluster.Config, "GET", request.URL().String())
	if err != nil {
		return "", 0, err
	}
	var out sink
	streams := remotecommand.StreamOptions{Stdout: &out, Tty: o.TTY}
	if !o.TTY {
		streams.Stderr = &out
	}
	if o.Stdin {
		streams.Stdin = strings.NewReader(input)
	}
	err = executor.StreamWithContext(s.ctx, streams)
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return out.String(), exit.Code, nil
	}
	return out.String(), 0, err
}

// sink takes what is written by two streams at a time.
type sink struct {
	mu   sync.Mutex
	text []byte
}

func (o *sink) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	return len(p), nil
}

func (o *sink) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// logs returns what a container has written.
func (s *scenario) logs(pod, container string) string {
	s.Helper()
	out, err := s.pods.GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(s.ctx)
	must(s.T, err)
	return string(out)
}

// kubectl returns the command line of kubectl in the scenario's namespace.
func (s *scenario) kubectl(args ...string) *exec.Cmd {
	s.Helper()
	path, err := theCluster.Kubectl()
	must(s.T, err)
	return exec.CommandContext(s.ctx, path, append([]string{"--kubeconfig", theCluster.Kubeconfig(), "-n", s.handler}, args...)...)
}

// expect fails the test, and lets it go on, if two values differ.
func expect[V comparable](s *scenario, what string, got, want V) {
	s.Helper()
	if got != want {
		s.Errorf("%s: got %v, want %v", what, got, want)
	}
}
