package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// namesScript prints the name and program of each process, with a shell that
// forks nothing.
const namesScript = `for p in /proc/[0-9]*; do read name <$p/comm; echo $name; done`

func TestShimIsNotInThePIDNamespace(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p, id := a.invade(t, shim)
				want := []string{"sh", "sleep"}
				if a.meetsInit() {
					want = []string{"pause", "sh", "sleep"}
				}
				names := strings.Fields(p.exec(id, namesScript))
				slices.Sort(names)
				expectEqual(t, "processes", strings.Join(names, " "), strings.Join(want, " "))
				if programs := p.exec(id, "readlink /proc/[0-9]*/exe || true"); strings.Contains(programs, "shim") {
					t.Errorf("programs: %s", programs)
				}
			})
		})
	}
}

func TestShimCannotBeReachedByItsPid(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p, id := a.invade(t, shim)
				pid, err := p.ShimPid()
				must(t, err)
				p.expectDenied(id, fmt.Sprintf("ls /proc/%d", pid), noFile)
				for _, signal := range []string{"0", "9", "15", "19"} {
					p.expectDenied(id, fmt.Sprintf("kill -%s %d", signal, pid), noProcess)
				}
				p.expectDenied(id, fmt.Sprintf("nsenter -t %d -m true", pid), noFile)
				after, err := p.ShimPid()
				must(t, err)
				expectEqual(t, "pid of the shim", after, pid)
				expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
			})
		})
	}
}

// kill -9 -1 reaches all that a process may send signals to.
func TestShimSurvivesSignalToAll(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p, id := a.invade(t, shim)
				pid, err := p.ShimPid()
				must(t, err)
				_, err = theNode.Exec(p.ctx, id, "sh", "-c", "kill -9 -1")
				must(t, err)
				after, err := p.ShimPid()
				must(t, err)
				expectEqual(t, "pid of the shim", after, pid)
				expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
			})
		})
	}
}

// shimSocket is the path of the socket that a pod's shim serves.
func shimSocket(t *testing.T, namespace, id string) string {
	t.Helper()
	var bootstrap struct{ Address string }
	must(t, json.Unmarshal([]byte(readFile(t, filepath.Join(theNode.Bundle(namespace, id), "bootstrap.json"))), &bootstrap))
	return strings.TrimPrefix(bootstrap.Address, "unix://")
}

// With the network namespace of the host, only the files' modes are in the way:
// root gets through, which shows that the program works.
func TestShimSocketIsForRootOnly(t *testing.T) {
	connect, err := theNode.LookPath("connect")
	must(t, err)
	for name, test := range map[string]struct {
		mode      mode
		user      int64
		listing   string
		connected string
	}{
		"user 1000":                {mode{pid: modeContainer, net: modeNode}, 1000, noAccess, noAccess},
		"root of a user namespace": {mode{pid: modeContainer, net: modeNode, user: true}, 0, noAccess, noAccess},
		"root, who is let in":      {mode{pid: modeContainer, net: modeNode}, 0, "", "Success"},
	} {
		t.Run(name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p := runPod(t, test.mode.handler(shim), test.mode.apply)
				socket := shimSocket(t, node.CRINamespace, p.ID)
				id := p.startAs("c", "exec sleep 1000", func(c *runtime.ContainerConfig) {
					c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: test.user}
					c.Mounts = []*runtime.Mount{
						{HostPath: filepath.Dir(socket), ContainerPath: "/s"},
						{HostPath: connect, ContainerPath: "/connect", Readonly: true},
					}
				})
				output, _ := p.try(id, "/connect /s/"+filepath.Base(socket))
				expectEqual(t, "connect", strings.TrimSpace(output), test.connected)
				if output, _ := p.try(id, "ls /s"); !strings.Contains(output, test.listing) {
					t.Errorf("ls: %s", output)
				}
				p.exec(id, "true")
			})
		})
	}
}

// An abstract socket would be open to all in its network namespace (unix(7)).
func TestShimHasNoAbstractSocket(t *testing.T) {
	withPause(t, func(t *testing.T) {
		for _, m := range []mode{{pid: modeContainer}, {pid: modeContainer, net: modeNode}, {pid: modePod, user: true}} {
			p := runPod(t, m.handler("pause"), m.apply)
			p.start("c", "sleep 1000")
			pid, err := p.ShimPid()
			must(t, err)
			names := append(unixSockets(t, pid, fmt.Sprint(pid)), unixSockets(t, pid, "self")...)
			if !slices.Contains(names, shimSocket(t, node.CRINamespace, p.ID)) {
				t.Errorf("%s: the shim's socket is not found: %q", m, names)
			}
			for _, name := range names {
				if strings.HasPrefix(name, "@") {
					t.Errorf("%s: abstract socket %s", m, name)
				}
			}
		}
	})
}

// unixSockets are the names of a process's sockets in the network namespace that
// another one is in (proc(5), /proc/net/unix).
func unixSockets(t *testing.T, pid int, place string) (names []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	inodes := make(map[string]bool)
	for _, link := range links {
		target, _ := os.Readlink(link) // it may have been closed
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for line := range strings.Lines(readFile(t, "/proc/"+place+"/net/unix")) {
		if fields := strings.Fields(line); len(fields) == 8 && inodes[fields[6]] {
			names = append(names, fields[7])
		}
	}
	return names
}
