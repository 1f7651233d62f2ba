package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// handPod is a pod that is made by a client of containerd, not by CRI.
type handPod struct {
	t       *testing.T
	shim    string
	sandbox *container
}

// asSandbox annotates a container that is to be the sandbox of a pod.
func asSandbox(_ context.Context, _ oci.Client, c *containers.Container, s *oci.Spec) error {
	if s.Annotations == nil {
		s.Annotations = make(map[string]string)
	}
	s.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
	s.Annotations["io.kubernetes.cri.sandbox-id"] = c.ID
	return nil
}

// podByHand makes a pod, whose sandbox has a process that sleeps if the shim is
// the stock one.
func podByHand(t *testing.T, shim string, opts ...oci.SpecOpts) *handPod {
	t.Helper()
	sandbox := newContainer(t, shim, config{args: []string{"sleep", "1000"}, spec: append([]oci.SpecOpts{asSandbox}, opts...)})
	return &handPod{t: t, shim: shim, sandbox: sandbox}
}

// withUserNamespace gives a container a user namespace whose root is not root.
func withUserNamespace() oci.SpecOpts {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: userFirst, Size: userLength}}
	return oci.WithUserNamespace(ids, ids)
}

// run creates and starts the sandbox.
func (p *handPod) run() {
	p.t.Helper()
	p.sandbox.run(cio.NullIO)
}

// pid is that of the sandbox.
func (p *handPod) pid() int { return int(p.sandbox.task.Pid()) }

// member makes a container of the pod, without a task.
func (p *handPod) member(cfg config) *container {
	p.t.Helper()
	annotations := oci.WithAnnotations(map[string]string{
		"io.kubernetes.cri.container-type": "container",
		"io.kubernetes.cri.sandbox-id":     p.sandbox.ID(),
	})
	cfg.spec = append([]oci.SpecOpts{annotations}, cfg.spec...)
	return newContainer(p.t, p.shim, cfg)
}

// hostPaths are ways to spell the host's namespace, by the name under
// /proc/<pid>/ns, to a shim that runs with the pod's.
func hostPaths(t *testing.T, shim int, name string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	host := fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), name)
	must(t, os.Symlink(host, link))
	bindMount(t, host, file)
	return map[string]string{
		"thread of the shim":      fmt.Sprintf("/proc/%d/task/%d/ns/%s", shim, otherThread(t, shim), name),
		"init of the host":        "/proc/1/ns/" + name,
		"thread-self":             "/proc/thread-self/ns/" + name,
		"symbolic link":           link,
		"bind mount":              file,
		"root of the shim":        fmt.Sprintf("/proc/%d/root/proc/1/ns/%s", shim, name),
		"another process":         host,
		"another process, by dot": fmt.Sprintf("/proc/./%d/ns/%s", os.Getpid(), name),
	}
}

// mainThreadPaths are ways to spell the namespaces of the shim's main thread:
// the host's of those types that this is not in.
func mainThreadPaths(shim int, name string) map[string]string {
	return map[string]string{
		"self":                 "/proc/self/ns/" + name,
		"shim by dot":          fmt.Sprintf("/proc/./%d/ns/%s", shim, name),
		"main thread":          fmt.Sprintf("/proc/%d/task/%d/ns/%s", shim, shim, name),
		"shim by way of /proc": fmt.Sprintf("/proc/../proc/%d/ns/%s", shim, name),
	}
}

// bindMount makes a file that is another one.
func bindMount(t *testing.T, source, file string) {
	t.Helper()
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, exec.CommandContext(testContext(t), "mount", "--bind", source, file).Run())
	t.Cleanup(func() {
		if out, err := exec.Command("umount", file).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// otherThread is a thread of a process that is not its main one.
func otherThread(t *testing.T, pid int) int {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must(t, err)
	for _, thread := range threads {
		if tid, _ := strconv.Atoi(thread.Name()); tid != pid {
			return tid
		}
	}
	t.Fatal("there is only one thread")
	return 0
}

// expectRefused expects that no member can be made whose namespace of a type is
// found by a path, and that nothing is left of the attempt.
func (p *handPod) expectRefused(t *testing.T, kind specs.LinuxNamespaceType, path string) {
	t.Helper()
	c := p.member(config{args: []string{"true"}, spec: []oci.SpecOpts{withPath(kind, path)}})
	_, err := c.NewTask(c.ctx, cio.NullIO)
	if err == nil {
		t.Errorf("%s: no error", path)
		return
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("error does not name %s: %v", path, err)
	}
	c.expectGone(t)
}

// expectGone expects that nothing is left of a task, whatever else there is.
func (c *container) expectGone(t *testing.T) {
	t.Helper()
	for _, dir := range []string{theNode.Bundle(theNode.ID, c.ID()), filepath.Join(theNode.RuntimeRoot(), theNode.ID, c.ID())} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left", dir)
		}
	}
	if _, err := c.Task(c.ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("task %s is left: %v", c.ID(), err)
	}
}

// withPath lets a container have a namespace by its path. That of a user
// namespace comes with ID mappings, as CRI has it.
func withPath(kind specs.LinuxNamespaceType, path string) oci.SpecOpts {
	if kind != specs.UserNamespace {
		return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path})
	}
	return oci.Compose(withUserNamespace(), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path}))
}

func TestPathsToTheHostsNamespacesAreRefused(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause", withUserNamespace())
		p.run()
		for kind, name := range map[specs.LinuxNamespaceType]string{
			specs.PIDNamespace: "pid", specs.UserNamespace: "user", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
		} {
			paths := hostPaths(t, p.pid(), name)
			if kind == specs.PIDNamespace || kind == specs.UserNamespace {
				for what, path := range mainThreadPaths(p.pid(), name) {
					paths[what] = path
				}
			}
			for what, path := range paths {
				t.Run(name+" of "+what, func(t *testing.T) { p.expectRefused(t, kind, path) })
			}
		}
		status, err := p.sandbox.task.Status(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "state of the sandbox", status.Status, containerd.Running)
	})
}

// The one path of the host's PID namespace that is not taken for what it is.
func TestPIDPathOfTheSandboxLeadsToThePods(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause")
		p.run()
		path := fmt.Sprintf("/proc/%d/ns/pid", p.pid())
		var seen []string
		for range 2 {
			c := p.member(config{args: []string{"sleep", "1000"}, spec: []oci.SpecOpts{withPath(specs.PIDNamespace, path)}})
			c.run(cio.NullIO)
			seen = append(seen, namespace(t, c.task.Pid(), "pid"))
		}
		expectEqual(t, "PID namespace of the other", seen[1], seen[0])
		for _, host := range []string{"self", fmt.Sprint(p.pid())} {
			if seen[0] == namespace(t, host, "pid") {
				t.Errorf("it is that of %s", host)
			}
		}
	})
}

// The sandbox's network is the pod's under any name, so that none is refused.
func TestPathsToThePodsNamespacesAreTaken(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause")
		p.run()
		for name, kind := range map[string]specs.LinuxNamespaceType{"net": specs.NetworkNamespace, "ipc": specs.IPCNamespace, "uts": specs.UTSNamespace} {
			for what, path := range mainThreadPaths(p.pid(), name) {
				c := p.member(config{args: []string{"sleep", "1000"}, spec: []oci.SpecOpts{withPath(kind, path)}})
				c.run(cio.NullIO)
				expectEqual(t, name+" of "+what, namespace(t, c.task.Pid(), name), namespace(t, p.pid(), name))
				c.remove()
			}
		}
	})
}

// With a sandbox that has ended, the path of its thread is the host's.
func TestPathsOfAnEndedSandboxAreRefused(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause")
		p.run()
		keeper := p.member(config{args: []string{"sleep", "1000"}})
		keeper.run(cio.NullIO)
		must(t, p.sandbox.task.Kill(p.sandbox.ctx, 9))
		expectEqual(t, "exit code", exitCode(t, p.sandbox.exited), 137)
		late := p.member(config{args: []string{"true"}, spec: []oci.SpecOpts{withPath(specs.NetworkNamespace, fmt.Sprintf("/proc/%d/ns/net", p.pid()))}})
		_, err := late.NewTask(late.ctx, cio.NullIO)
		if err == nil || !strings.Contains(err.Error(), "sandbox "+p.sandbox.ID()+" has ended") {
			t.Errorf("error: %v", err)
		}
		late.expectGone(t)
	})
}
