package integration

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// Pods that podsandbox refuses are refused by the Sandbox API, too, where nobody but the
// shim can, with the name of the field.
func TestPodsThatPodsandboxRefuses(t *testing.T) {
	ids := []*runtime.IDMapping{{HostId: userFirst, Length: userLength}}
	two := append([]*runtime.IDMapping{{HostId: userFirst + userLength, ContainerId: userLength, Length: 1}}, ids...)
	for name, tc := range map[string]struct {
		change func(*runtime.PodSandboxConfig, *runtime.LinuxSandboxSecurityContext)
		want   string
	}{
		"user namespace of a container": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: modeContainer, Uids: ids, Gids: ids}
		}, "userns_options.mode = CONTAINER"},
		"user namespace of a target": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_TARGET, Uids: ids, Gids: ids}
		}, "userns_options.mode = TARGET"},
		// With a network of the pod CRI itself refuses these.
		"several mappings": {func(c *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.Network, c.Hostname = modeNode, ""
			s.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: modePod, Uids: two, Gids: ids}
		}, "userns_options.uids = 2 mappings"},
		"mappings of the host's": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.UsernsOptions = &runtime.UserNamespace{Mode: modeNode, Uids: ids, Gids: ids}
		}, "userns_options.uids"},
		"host name with the host's network": {func(c *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.Network, c.Hostname = modeNode, "own-name"
		}, `hostname = "own-name"`},
		"SELinux level": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.SelinuxOptions = &runtime.SELinuxOption{Level: "high"}
		}, `selinux_options.level = "high"`},
		"group without a user": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.RunAsGroup = &runtime.Int64Value{Value: 7}
		}, "run_as_group = 7"},
		"user that is none": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.RunAsUser = &runtime.Int64Value{Value: 1 << 32}
		}, "run_as_user = 4294967296"},
		"seccomp profile that is absent": {func(_ *runtime.PodSandboxConfig, s *runtime.LinuxSandboxSecurityContext) {
			s.Seccomp = &runtime.SecurityProfile{ProfileType: runtime.SecurityProfile_Localhost, LocalhostRef: "/no/such/profile"}
		}, `seccomp.localhost_ref = "/no/such/profile"`},
	} {
		t.Run(name, func(t *testing.T) {
			eachHandler(t, func(t *testing.T, handler string) {
				moveIn(t, handler)
				p, err := theNode.RunPod(testContext(t), handler, func(c *runtime.PodSandboxConfig) {
					tc.change(c, c.Linux.SecurityContext)
				})
				if err == nil {
					atEnd(t, p.Remove)
					t.Fatal("no error")
				}
				if isSandboxAPI(handler) && !strings.Contains(err.Error(), tc.want) {
					t.Errorf("the error is without %s: %v", tc.want, err)
				}
			})
		})
	}
}

// The node's settings for all pods do not reach a shim by the Sandbox API: they are
// options of the handler.
func TestDefaultSysctlsAreOptionsOfTheHandler(t *testing.T) {
	const strict = "pause-strict"
	handlers := append(handlers(), node.Handler{
		Name: strict, Type: node.PauseType, OCIRuntime: ociRuntime, Sandboxer: "shim",
		Options: "  enable_unprivileged_ports = false\n  enable_unprivileged_icmp = false\n",
	})
	onNewNode(t, handlers, nil, func(t *testing.T) {
		for handler, want := range map[string]string{sandboxHandler: "0 0 2147483647", strict: "1024 1 0"} {
			p := runPod(t, handler, nil)
			id := p.start("c", "sleep 1000")
			got := p.exec(id, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range")
			expectEqual(t, "sysctls of a pod of "+handler, strings.Join(strings.Fields(got), " "), want)
		}
	})
}

// A containerd that is killed after it has started a shim and before it has asked it for
// the sandbox finds that shim when it is back. The pod is not ready, and can be removed.
func TestPodOfWhichTheShimNeverHeardIsRemoved(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := runPod(t, sandboxHandler, nil)
		shim, err := p.ShimPid()
		must(t, err)
		must(t, theNode.Kill())
		must(t, unix.Kill(shim, unix.SIGKILL))
		eventually(t, "the shim has ended", func() bool { return unix.Kill(shim, 0) == unix.ESRCH })
		startShim(t, p.ID)
		must(t, theNode.Restart(p.ctx))

		status := p.status()
		expectEqual(t, "state", status.State, runtime.PodSandboxState_SANDBOX_NOTREADY)
		if age := time.Since(time.Unix(0, status.CreatedAt)); age < 0 || age > testDeadline() {
			t.Errorf("the pod is %s old", age)
		}
		_, err = theNode.Crictl(p.ctx, nil, "rmp", "--force", p.ID)
		must(t, err)
		if _, err := p.Status(p.ctx); err == nil {
			t.Error("the pod is still there")
		}
	})
}

// startShim starts the shim of a pod of the Sandbox API as containerd does, in the bundle
// that is there.
func startShim(t *testing.T, id string) {
	t.Helper()
	program, err := theNode.LookPath("containerd-shim-pause-v2")
	must(t, err)
	sockets := filepath.Join(theNode.Dir, "s")
	params, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: node.CRINamespace, ContainerdVersion: "v2.4.2",
		ContainerdGrpcAddress: theNode.Socket(), ContainerdTtrpcAddress: theNode.Socket() + ".ttrpc", SocketDir: &sockets,
	})
	must(t, err)
	cmd := exec.CommandContext(t.Context(), program, "-namespace", node.CRINamespace, "-id", id, "-address", theNode.Socket(), "start")
	cmd.Dir = filepath.Join(theNode.Dir, "state/io.containerd.sandbox.controller.v1.shim", node.CRINamespace, id)
	cmd.Stdin = bytes.NewReader(params)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}
