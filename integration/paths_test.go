package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// wrongPaths are paths to what cannot be a sandbox's namespace: by the name under
// /proc/<pid>/ns that it should have.
func wrongPaths(t *testing.T, name string) map[string]string {
	t.Helper()
	other := map[string]string{"pid": "user", "user": "pid"}[name]
	return map[string]string{
		"of another type":  fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), other),
		"of the network":   fmt.Sprintf("/proc/%d/ns/net", os.Getpid()),
		"to another file":  fmt.Sprintf("/proc/%d/status", os.Getpid()),
		"to nothing":       filepath.Join(t.TempDir(), "absent"),
		"to a directory":   t.TempDir(),
		"to a device file": "/dev/null",
	}
}

// pathsToHost are ways to spell the host's namespace before there is a shim.
func pathsToHost(t *testing.T, name string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	host := fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), name)
	must(t, os.Symlink(host, link))
	bindMount(t, host, file)
	return map[string]string{
		"of the host, by self":        "/proc/self/ns/" + name,
		"of the host, by thread-self": "/proc/thread-self/ns/" + name,
		"of the host, by a process":   host,
		"of the host, by a dot":       fmt.Sprintf("/proc/./%d/ns/%s", os.Getpid(), name),
		"of the host, by a link":      link,
		"of the host, by a mount":     file,
	}
}

// expectSandboxRefused expects that no sandbox can be made with a namespace by its
// path. runc does not say by which.
func expectSandboxRefused(t *testing.T, shim string, kind specs.LinuxNamespaceType, path string) {
	t.Helper()
	p := podByHand(t, shim, withPath(kind, path))
	reason := ""
	if shim != "runc" {
		reason = path
	}
	expectNoTask(t, p.sandbox, reason)
}

func TestSandboxWithWrongPathIsRefused(t *testing.T) {
	for name, kind := range map[string]specs.LinuxNamespaceType{"pid": specs.PIDNamespace, "user": specs.UserNamespace} {
		for what, path := range wrongPaths(t, name) {
			t.Run(name+" "+what, func(t *testing.T) {
				eachShim(t, func(t *testing.T, shim string) { expectSandboxRefused(t, shim, kind, path) })
			})
		}
	}
}

// Who asks for a user namespace is not to be without one unawares: runc cannot
// enter the one that it is in already (setns(2)).
func TestSandboxWithTheHostsUserNamespaceIsRefused(t *testing.T) {
	for what, path := range pathsToHost(t, "user") {
		t.Run(what, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) { expectSandboxRefused(t, shim, specs.UserNamespace, path) })
		})
	}
}

// With the stock shim the pod then has the host's, as if its spec listed none.
func TestSandboxWithTheHostsPIDNamespaceIsRefused(t *testing.T) {
	for what, path := range pathsToHost(t, "pid") {
		t.Run(what, func(t *testing.T) {
			withPause(t, func(t *testing.T) { expectSandboxRefused(t, "pause", specs.PIDNamespace, path) })
		})
	}
}

// A sandbox may be given the PID namespace of another container. Then it is the
// pod's, or else the shim has to say that it cannot be.
func TestSandboxWithPIDNamespaceOfAnother(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		other := newContainer(t, shim, config{args: []string{"sleep", "1000"}})
		other.run(cio.NullIO)
		path := fmt.Sprintf("/proc/%d/ns/pid", other.task.Pid())
		p := podByHand(t, shim, withPath(specs.PIDNamespace, path))
		var err error
		if p.sandbox.task, err = p.sandbox.NewTask(p.sandbox.ctx, cio.NullIO); err != nil {
			if shim == "runc" || !strings.Contains(err.Error(), path) {
				t.Error(err)
			}
			return
		}
		must(t, p.sandbox.task.Start(p.sandbox.ctx))
		c := p.member(config{args: []string{"sleep", "1000"}})
		c.run(cio.NullIO)
		if namespace(t, c.task.Pid(), "pid") == namespace(t, other.task.Pid(), "pid") {
			t.Error("a container with a PID namespace of its own is in that of the other")
		}
		byPath := p.member(config{
			args: []string{"sleep", "1000"},
			spec: []oci.SpecOpts{withPath(specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", p.pid()))},
		})
		byPath.run(cio.NullIO)
		expectEqual(t, "PID namespace", namespace(t, byPath.task.Pid(), "pid"), namespace(t, other.task.Pid(), "pid"))
	})
}
