package integration

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A container that comes after a restart of containerd is in the same namespaces
// as those from before, or as the pod's first one is without a restart.
func TestContainersJoinTheSamePodAfterRestart(t *testing.T) {
	eachKind(t, func(t *testing.T, shim string, m mode) {
		used, empty := runPod(t, m.handler(shim), m.apply), runPod(t, m.handler(shim), m.apply)
		early := used.startAs("early", reaping, admin)
		must(t, theNode.Kill())
		must(t, theNode.Restart(used.ctx))
		checkWhole(t, used, m, early, used.startAs("late", reaping, admin))
		checkWhole(t, empty, m, empty.startAs("a", reaping, admin), empty.startAs("b", reaping, admin))
	})
}

// checkWhole expects that two containers are all that a pod has.
func checkWhole(t *testing.T, p *pod, m mode, a, b string) {
	t.Helper()
	checkNamespaces(t, p, m, a, b)
	checkSharing(t, p, m, a, b)
	checkReaping(t, p, m, b)
	if !strings.HasPrefix(p.Handler, "runc") {
		checkProcesses(t, p, m, a, b)
	}
}

// The namespaces are the pod's, not those of the containers that happen to be there.
func TestNamespacesStayWithoutContainers(t *testing.T) {
	eachKind(t, func(t *testing.T, shim string, m mode) {
		p := runPod(t, m.handler(shim), m.apply)
		id := p.startAs("first", "exec sleep 1000", admin)
		shared := []string{"net", "ipc", "uts", "user"}
		if m.pid != modeContainer {
			shared = append(shared, "pid")
		}
		before := make(map[string]string)
		for _, kind := range shared {
			before[kind] = namespace(t, p.containerPid(id), kind)
		}
		must(t, theNode.StopContainer(p.ctx, id, 0))
		must(t, theNode.RemoveContainer(p.ctx, id))
		id = p.startAs("second", "exec sleep 1000", admin)
		for _, kind := range shared {
			expectEqual(t, kind, namespace(t, p.containerPid(id), kind), before[kind])
		}
		expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
	})
}

// In a shared PID namespace containers see each other, and end one by one.
func TestContainersOfSharedPIDNamespaceSeeEachOther(t *testing.T) {
	for _, m := range []mode{{pid: modePod}, {pid: modePod, user: true}, {pid: modePod, net: modeNode, user: true}} {
		t.Run(m.String(), func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) {
				p := runPod(t, m.handler(shim), m.apply)
				a := p.startAs("a", "exec sleep 1001", nil)
				b := p.startAs("b", "exec sleep 1002", nil)
				processes := p.exec(b, "ps -o pid,args")
				expectLine(t, processes, "1", "/pause")
				for _, args := range []string{"sleep 1001", "sleep 1002"} {
					expectEqual(t, "processes "+args, strings.Count(processes, args), 1)
				}
				p.exec(b, killSleeper(1001))
				p.expectExited(a, 137)
				expectEqual(t, "the other", p.exec(b, "echo goes on"), "goes on")
				expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
			})
		})
	}
}

// killSleeper is a script that kills the one process which sleeps so long.
func killSleeper(seconds int) string {
	return fmt.Sprintf(`kill -9 $(ps -o pid,args | awk '$2 == "sleep" && $3 == %d { print $1 }')`, seconds)
}

// podsOfTargets are those in which a container may be the target of another, as
// one for debugging is: it has a PID namespace of its own.
func podsOfTargets() []mode {
	return []mode{{pid: modeContainer}, {pid: modeContainer, net: modeNode}, {pid: modeContainer, user: true}}
}

func TestContainerSharesPIDNamespaceOfItsTarget(t *testing.T) {
	for _, m := range podsOfTargets() {
		t.Run(m.String(), func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) {
				p := runPod(t, m.handler(shim), m.apply)
				target := p.start("target", "exec sleep 1001")
				other := p.start("other", "exec sleep 1002")
				id := p.startAs("debugger", "exec sleep 1003", targeting(m, target))
				for _, kind := range []string{"pid", "net", "ipc", "uts", "user"} {
					expectEqual(t, kind, namespace(t, p.containerPid(id), kind), namespace(t, p.containerPid(target), kind))
				}
				if namespace(t, p.containerPid(other), "pid") == namespace(t, p.containerPid(id), "pid") {
					t.Error("a third container is in the same PID namespace")
				}
				expectEqual(t, "PID 1", p.exec(id, "tr '\\0' ' ' </proc/1/cmdline"), "sleep 1001")
				p.exec(id, killSleeper(1003))
				p.expectExited(id, 137)
				expectEqual(t, "state of the target", p.container(target).State, runtime.ContainerState_CONTAINER_RUNNING)
			})
		})
	}
}

// It ends with its target, whose process is PID 1.
func TestContainerEndsWithItsTarget(t *testing.T) {
	for _, m := range podsOfTargets() {
		t.Run(m.String(), func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) {
				p := runPod(t, m.handler(shim), m.apply)
				target := p.start("target", "exec sleep 1000")
				id := p.startAs("debugger", "exec sleep 1000", targeting(m, target))
				must(t, unix.Kill(p.containerPid(target), unix.SIGKILL))
				p.expectExited(target, 137)
				p.expectExited(id, 137)
				expectEqual(t, "state of the pod", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
			})
		})
	}
}

// targeting gives a container the PID namespace of another one of its pod.
func targeting(m mode, target string) func(*runtime.ContainerConfig) {
	return func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtime.NamespaceOption{
			Network: m.net, Ipc: m.ipc, Pid: runtime.NamespaceMode_TARGET, TargetId: target,
			UsernsOptions: c.Linux.SecurityContext.NamespaceOptions.GetUsernsOptions(),
		}
	}
}
