package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eachUserMode runs a test with all pods that can have a user namespace.
func eachUserMode(t *testing.T, test func(t *testing.T, shim string, m mode)) {
	t.Helper()
	for _, m := range allModes() {
		if !m.user || m.impossible() {
			continue
		}
		t.Run(m.String(), func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) { test(t, shim, m) })
		})
	}
}

// kubelet runs no pod with a user namespace by a handler for which CRI does not announce them.
func TestUserNamespacesAreAnnouncedWhereContainersCanHaveThem(t *testing.T) {
	withPause(t, func(t *testing.T) {
		ctx := testContext(t)
		status, err := theNode.CRI().Status(ctx, &runtime.StatusRequest{})
		must(t, err)
		announced := make(map[string]bool)
		for _, h := range status.RuntimeHandlers {
			announced[h.Name] = h.Features.GetUserNamespaces()
		}
		for _, handler := range []string{"runc-current", "pause-current", "pause-shared-current", genericHandler} {
			p := runPod(t, handler, mode{user: true}.apply)
			id, err := p.CreateContainer(ctx, "c", []string{"sleep", "1000"}, nil)
			must(t, err)
			err = theNode.StartContainer(ctx, id)
			expectEqual(t, "whether user namespaces are announced for "+handler, announced[handler], err == nil)
			if handler == genericHandler {
				expectEqual(t, "whether containerd could not add to the options", strings.Contains(fmt.Sprint(err), "runtimeoptions.v1.Options"), true)
			} else {
				must(t, err)
			}
		}
	})
}

// volume mounts a directory of the host, with the mappings of the pod if mapped.
func (p *pod) volume(dir string, mapped bool) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		m := &runtime.Mount{HostPath: dir, ContainerPath: "/v"}
		if mapped {
			o := p.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			m.UidMappings, m.GidMappings = o.Uids, o.Gids
		}
		c.Mounts = append(c.Mounts, m)
	}
}

// owners is who owns a file of the host.
func owners(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

func TestOwnersInMappedVolumeAreTheSameOnTheHost(t *testing.T) {
	eachUserMode(t, func(t *testing.T, shim string, m mode) {
		dir := t.TempDir()
		of56 := filepath.Join(dir, "of-5-6")
		must(t, os.WriteFile(of56, nil, 0o600))
		must(t, os.Chown(of56, 5, 6))
		p := runPod(t, m.handler(shim), m.apply)
		id := p.startAs("c", "exec sleep 1000", p.volume(dir, true))
		p.exec(id, "touch /v/of-root /v/of-7-8 && chown 7:8 /v/of-7-8")
		expectEqual(t, "owners, in the container, of the host's", p.exec(id, "stat -c %u:%g /v/of-5-6"), "5:6")
		expectEqual(t, "owners, on the host, of root's", owners(t, filepath.Join(dir, "of-root")), "0:0")
		expectEqual(t, "owners, on the host, of another's", owners(t, filepath.Join(dir, "of-7-8")), "7:8")
	})
}

// Without mappings, root of the pod is nobody to the files of the host's root.
func TestVolumeWithoutMappingsIsTheHosts(t *testing.T) {
	eachUserMode(t, func(t *testing.T, shim string, m mode) {
		dir := t.TempDir()
		must(t, os.Chmod(dir, 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "secret"), []byte(secretText), 0o600))
		p := runPod(t, m.handler(shim), m.apply)
		id := p.startAs("c", "exec sleep 1000", p.volume(dir, false))
		expectEqual(t, "owners", p.exec(id, "stat -c %u:%g /v/secret"), "65534:65534")
		p.expectDenied(id, "cat /v/secret", noAccess)
		p.expectDenied(id, "touch /v/file", noAccess)
	})
}

// The root file system is mapped as well: its owners are not those on the host.
func TestRootFileSystemIsOwnedByRootOfThePod(t *testing.T) {
	eachUserMode(t, func(t *testing.T, shim string, m mode) {
		p := runPod(t, m.handler(shim), m.apply)
		id := p.start("c", "exec sleep 1000")
		expectEqual(t, "owners of the program", p.exec(id, "stat -c %u:%g /bin/busybox"), "0:0")
		expectEqual(t, "mapping", p.exec(id, "awk '{ print $1, $2, $3 }' /proc/self/uid_map"), fmt.Sprintf("0 %d %d", userFirst, userLength))
		p.exec(id, "touch /file")
		expectEqual(t, "owners, on the host, of a new file",
			owners(t, fmt.Sprintf("/proc/%d/root/file", p.containerPid(id))), fmt.Sprintf("%d:%d", userFirst, userFirst))
	})
}

// Two pods may have the same IDs, but not the same namespaces.
func TestPodsWithUserNamespacesShareNone(t *testing.T) {
	eachUserMode(t, func(t *testing.T, shim string, m mode) {
		var seen []map[string]string
		for range 2 {
			p := runPod(t, m.handler(shim), m.apply)
			pid := p.containerPid(p.start("c", "exec sleep 1000"))
			seen = append(seen, map[string]string{
				"user": namespace(t, pid, "user"), "ipc": namespace(t, pid, "ipc"), "pid": namespace(t, pid, "pid"),
			})
		}
		for kind, first := range seen[0] {
			if seen[1][kind] == first {
				t.Errorf("the pods share %s", kind)
			}
		}
	})
}

func TestPodWithUserNamespaceEndsWithItsInit(t *testing.T) {
	for name, end := range map[string]func(p *pod, id string){
		"told from inside": func(p *pod, id string) {
			theNode.Exec(p.ctx, id, "kill", "-TERM", "1") // it may end with the pod
		},
		"killed from outside": func(p *pod, id string) {
			must(p.t, unix.Kill(p.podInit(id), unix.SIGKILL))
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, net := range []runtime.NamespaceMode{modePod, modeNode} {
				m := mode{pid: modePod, net: net, user: true}
				t.Run(m.String(), func(t *testing.T) {
					m.eachHandler(t, func(t *testing.T, shim string) {
						p := runPod(t, m.handler(shim), m.apply)
						id := p.start("c", "sleep 1000")
						end(p, id)
						p.expectExited(id, 137)
						p.expectNotReady()
						p.removeInTheEnd()
					})
				})
			}
		})
	}
}
