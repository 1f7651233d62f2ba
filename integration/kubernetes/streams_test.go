package kubernetes

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
)

// Commands in a container have their input, output, exit code and, if they want one, a terminal.
func TestExec(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newPod("exec", "sleep", "infinity")).Name
		input := strings.Repeat("0123456789abcde\n", 64<<10) // 1 MiB
		for _, c := range []struct {
			what    string
			options corev1.PodExecOptions
			input   string
			output  string
			code    int
		}{
			{"output", corev1.PodExecOptions{Command: []string{"echo", "hello"}}, "", "hello\n", 0},
			{"standard error", corev1.PodExecOptions{Command: []string{"sh", "-c", "echo oops >&2"}}, "", "oops\n", 0},
			{"exit code", corev1.PodExecOptions{Command: []string{"sh", "-c", "exit 42"}}, "", "", 42},
			{"signal", corev1.PodExecOptions{Command: []string{"sh", "-c", "kill -KILL $$"}}, "", "", 137},
			{"input", corev1.PodExecOptions{Command: []string{"wc", "-c"}}, input, "1048576\n", 0},
			{"input and output", corev1.PodExecOptions{Command: []string{"cat"}}, input, input, 0},
			{"terminal", corev1.PodExecOptions{Command: []string{"tty"}, TTY: true}, "", "/dev/pts/0\r\n", 0},
		} {
			output, code, err := s.execWith(pod, &c.options, c.input)
			if err != nil || output != c.output || code != c.code {
				s.Errorf("%s: exit code %d, error %v, %d bytes, %.80q; want exit code %d, %d bytes, %.80q",
					c.what, code, err, len(output), output, c.code, len(c.output), c.output)
			}
		}
	})
}

// What is attached to a container writes into its standard input, and reads what it writes.
func TestAttach(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("attach", "sh", "-c", "while read line; do echo got $line; done")
		pod.Spec.Containers[0].Stdin, pod.Spec.Containers[0].StdinOnce = true, true
		s.run(pod)
		request := theCluster.Client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.handler).Name(pod.Name).SubResource("attach").
			VersionedParams(&corev1.PodAttachOptions{Container: "main", Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec)
		executor, err := remotecommand.NewWebSocketExecutor(theCluster.Config, "GET", request.URL().String())
		must(s.T, err)
		var out sink
		must(s.T, executor.StreamWithContext(s.ctx, remotecommand.StreamOptions{
			Stdin: strings.NewReader("one\ntwo\n"), Stdout: &out, Stderr: &out,
		}))
		expect(s, "output", out.String(), "got one\ngot two\n")
		s.until(pod.Name, "finished after the end of its input", isFinished)
	})
}

// Logs can be followed, and those of a container's earlier run are there.
func TestLogs(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("logs", "sh", "-c", "echo first; until test -e /tmp/go; do sleep 0.1; done; echo last")
		pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
		s.run(pod)
		stream, err := s.pods.GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(s.ctx)
		must(s.T, err)
		defer stream.Close()
		lines := bufio.NewScanner(stream)
		if !lines.Scan() || lines.Text() != "first" {
			s.Fatalf("the first line is %q, error %v", lines.Text(), lines.Err())
		}
		s.exec(pod.Name, "main", "touch", "/tmp/go")
		rest := ""
		for lines.Scan() {
			rest += lines.Text()
		}
		expect(s, "rest of the log", rest, "last")
		s.until(pod.Name, "started again", func(p *corev1.Pod) bool { return container(p, "main").RestartCount > 0 })
		previous, err := s.pods.GetLogs(pod.Name, &corev1.PodLogOptions{Previous: true}).DoRaw(s.ctx)
		must(s.T, err)
		expect(s, "log of the run before", string(previous), "first\nlast\n")
	})
}

// kubectl copies files into a container and out of it.
func TestCopy(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.run(s.newPod("copy", "sleep", "infinity")).Name
		dir := s.TempDir()
		content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		must(s.T, os.WriteFile(filepath.Join(dir, "there"), content, 0o600))
		for _, args := range [][]string{
			{"cp", filepath.Join(dir, "there"), pod + ":/tmp/file"},
			{"cp", pod + ":/tmp/file", filepath.Join(dir, "back")},
		} {
			if out, err := s.kubectl(args...).CombinedOutput(); err != nil {
				s.Fatalf("kubectl %q: %v: %s", args, err, out)
			}
		}
		back, err := os.ReadFile(filepath.Join(dir, "back"))
		must(s.T, err)
		if !bytes.Equal(back, content) {
			s.Errorf("%d bytes came back, which are not the %d that were sent", len(back), len(content))
		}
	})
}

// kubectl forwards a port into the pod's network namespace.
func TestPortForward(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("forward")
		pod.Spec.Containers = []corev1.Container{webServer()}
		s.run(pod)
		forward := s.kubectl("port-forward", "pod/"+pod.Name, ":8080")
		forward.Stderr = os.Stderr
		out, err := forward.StdoutPipe()
		must(s.T, err)
		must(s.T, forward.Start())
		defer func() { forward.Process.Kill(); forward.Wait() }()
		line, err := bufio.NewReader(out).ReadString('\n')
		must(s.T, err)
		var port int
		if _, err := fmt.Sscanf(line, "Forwarding from 127.0.0.1:%d -> 8080", &port); err != nil {
			s.Fatalf("kubectl port-forward: %q", line)
		}
		name, err := s.get(fmt.Sprintf("http://127.0.0.1:%d/hostname", port))
		must(s.T, err)
		expect(s, "answer", name, pod.Name)
	})
}
