package integration

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A rootless containerd: root of a user namespace, with a mount and a network namespace of its own,
// as RootlessKit makes them, and without any right in the host's. Its IDs are the host's here, so
// that it may use the tests' programs, and make cgroups: containerd 2 makes no pod without.

// rootlessEnv tells this program that it is such a user, by the name of one of rootlessHosts.
const rootlessEnv = "PAUSE_TEST_ROOTLESS"

// rootlessHosts are the namespaces that the user has beside those of the first three types.
var rootlessHosts = map[string]uintptr{
	// RootlessKit's default. What enters a pod's namespace cannot get back to the host's.
	"usual": 0,
	// Only so can pods use the host's network, whose host name goes with it.
	"all": unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
}

func rootless() bool { return os.Getenv(rootlessEnv) != "" }

// TestRootless runs this program once more as such a user, with the tests of pods below.
func TestRootless(t *testing.T) {
	if rootless() {
		t.Skip("this is one")
	}
	if systemdCgroup {
		t.Skip("this user has no systemd that would make cgroups")
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: userLength}}
	for name, flags := range rootlessHosts {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.v", "-test.run", "^TestRootlessPods$", "-test.timeout", (testDeadline() / 2).String())
			cmd.Env = append(os.Environ(), rootlessEnv+"="+name)
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | flags,
				UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
				Credential: &syscall.Credential{Uid: 0, Gid: 0},
			}
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: TestRootlessPods") {
				t.Fatalf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}

// becomeRootless makes what the user of a rootless containerd has, before anything else: /run and
// /var/lib that can be written to. They go with the mount namespace.
func becomeRootless() error {
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("rootless", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("cannot mount %s: %w", dir, err)
		}
	}
	out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput()
	if err != nil {
		return fmt.Errorf("cannot use the network: %w: %s", err, out)
	}
	return nil
}

// TestRootlessPods runs in that program.
func TestRootlessPods(t *testing.T) {
	if !rootless() {
		t.Skip("TestRootless runs this")
	}
	modes := []mode{{pid: modeContainer}, {pid: modePod}}
	if os.Getenv(rootlessEnv) == "all" {
		modes = append(modes, mode{pid: modeContainer, net: modeNode})
	}
	for _, m := range modes {
		t.Run(m.String(), func(t *testing.T) {
			eachHandler(t, func(t *testing.T, handler string) {
				p := runPod(t, handler, m.apply)
				a, b := p.startAs("a", reaping, admin), p.startAs("b", reaping, admin)
				for _, kind := range []string{"net", "ipc", "uts"} {
					expectEqual(t, kind, namespace(t, p.containerPid(a), kind), namespace(t, p.containerPid(b), kind))
				}
				checkSharing(t, p, m, a, b)
				expectEqual(t, "user namespace", namespace(t, p.containerPid(a), "user"), namespace(t, "self", "user"))
				must(t, theNode.StopContainer(p.ctx, a, 0))
				p.expectExited(a, 137)
				must(t, p.Stop(p.ctx))
				p.expectExited(b, 137)
				p.expectNotReady()
				if strings.Contains(readFile(t, theNode.LogFile()), "cannot leave the pod's") {
					t.Error("the shim has kept a namespace of the pod")
				}
			})
		})
	}
}
