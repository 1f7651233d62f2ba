package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// onNewNode runs a test on a node without a pause image, instead of on the one of
// all tests. Programs in the directories are found before others.
func onNewNode(t *testing.T, handlers []node.Handler, dirs []string, test func(t *testing.T)) {
	t.Helper()
	withPause(t, func(t *testing.T) {
		usual := theNode
		defer func() { theNode = usual }()
		options := nodeOptions(append(dirs, filepath.SplitList(os.Getenv("PAUSE_TEST_PATH"))...), handlers)
		options.NoPauseImage = true
		n, err := node.Start(t.Context(), options)
		must(t, err)
		theNode = n
		t.Run("node", func(t *testing.T) {
			t.Cleanup(func() { checkLeftovers(t, sandboxHandler) })
			test(t)
		})
		must(t, n.Close())
	})
}

// snapshotsAndImages are what containerd has of CRI.
func snapshotsAndImages(t *testing.T) (snapshots, images []string) {
	t.Helper()
	ctx := testContext(t)
	list, err := theNode.Ctr(ctx, node.CRINamespace, "snapshots", "--snapshotter", theNode.Snapshotter, "ls")
	must(t, err)
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); fields[len(fields)-1] == "Active" {
			snapshots = append(snapshots, fields[0])
		}
	}
	list, err = theNode.Ctr(ctx, node.CRINamespace, "images", "ls", "-q")
	must(t, err)
	return snapshots, strings.Fields(list)
}

func TestPodWithoutPauseImage(t *testing.T) {
	onNewNode(t, handlers(), nil, func(t *testing.T) {
		p := runPod(t, sandboxHandler, func(c *runtime.PodSandboxConfig) {
			c.DnsConfig = &runtime.DNSConfig{Servers: []string{"192.0.2.1"}, Searches: []string{"example.org"}, Options: []string{"ndots:2"}}
			c.PortMappings = []*runtime.PortMapping{{HostPort: freePort(t), ContainerPort: 8080}}
		})
		id := p.start("c", "mkdir /www; echo page >/www/index.html; httpd -p 8080 -h /www; echo logged; sleep 1000")
		snapshots, images := snapshotsAndImages(t)
		expectEqual(t, "snapshots", strings.Join(snapshots, " "), id)
		for _, image := range images {
			if strings.Contains(image, "pause") {
				t.Errorf("there is an image %s", image)
			}
		}
		checkPodFiles(t, p, id)
		eventually(t, "the server answers by the host's port", func() bool {
			return httpGet(fmt.Sprintf("http://%s:%d/", hostAddress(t), p.Config.PortMappings[0].HostPort)) == "page\n"
		})
		expectEqual(t, "answer through port-forward", p.forwarded(8080), "page\n")
		log, err := os.ReadFile(filepath.Join(p.Config.LogDirectory, "c.log"))
		must(t, err)
		if !strings.Contains(string(log), "stdout F logged") {
			t.Errorf("the log is %q", log)
		}
		checkHostAliases(t, p)
		checkRestart(t, p, id)
	})
}

// checkHostAliases mounts a hosts file into a container, as the kubelet does.
func checkHostAliases(t *testing.T, p *pod) {
	t.Helper()
	hosts := filepath.Join(t.TempDir(), "hosts")
	must(t, os.WriteFile(hosts, []byte("192.0.2.7 alias\n"), 0o644)) //nolint:gosec // as kubelet's
	id := p.startAs("aliases", "sleep 1000", func(c *runtime.ContainerConfig) {
		c.Mounts = []*runtime.Mount{{ContainerPath: "/etc/hosts", HostPath: hosts}}
	})
	expectEqual(t, "hosts", p.exec(id, "cat /etc/hosts"), "192.0.2.7 alias")
}

// checkPodFiles reads the files that the sandbox makes, in a container.
func checkPodFiles(t *testing.T, p *pod, id string) {
	t.Helper()
	hosts, err := os.ReadFile("/etc/hosts")
	must(t, err)
	expectEqual(t, "hosts", p.exec(id, "cat /etc/hosts"), strings.TrimSpace(string(hosts)))
	expectEqual(t, "hostname", p.exec(id, "cat /etc/hostname"), p.Config.Hostname)
	expectEqual(t, "resolv.conf", p.exec(id, "cat /etc/resolv.conf"), "search example.org\nnameserver 192.0.2.1\noptions ndots:2")
	expectEqual(t, "size of /dev/shm in KB", p.exec(id, "df -k /dev/shm | awk 'NR == 2 { print $2 }'"), "65536")
	expectEqual(t, "mode of /dev/shm", p.exec(id, "stat -c %a /dev/shm"), "1777")
}

// checkRestart replaces all containers of the pod by one.
func checkRestart(t *testing.T, p *pod, id string) {
	t.Helper()
	before := p.sandboxPid()
	must(t, theNode.StopContainer(p.ctx, id, 0))
	must(t, theNode.RemoveContainer(p.ctx, id))
	again := p.start("c", "sleep 1000")
	expectEqual(t, "exec", p.exec(again, "hostname"), p.Config.Hostname)
	expectEqual(t, "sandbox's pid", p.sandboxPid(), before)
}

// freePort is a TCP port of the host that nobody listens on.
func freePort(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp4", ":0")
	must(t, err)
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// hostAddress is an address of the host that is not its loopback, which port
// mappings leave out.
func hostAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	t.Fatal("the host has no address")
	return ""
}

func httpGet(url string) string {
	r, err := http.Get(url)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// forwarded is what a server in the pod answers through crictl's port-forward.
func (p *pod) forwarded(port int) (answer string) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.ctx)
	done := make(chan struct{})
	local := freePort(p.t)
	go func() {
		defer close(done)
		_, _ = theNode.Crictl(ctx, nil, "port-forward", p.ID, fmt.Sprintf("%d:%d", local, port)) // it ends when it is told to
	}()
	defer func() {
		cancel()
		<-done
	}()
	eventually(p.t, "port-forward answers", func() bool {
		answer = httpGet(fmt.Sprintf("http://127.0.0.1:%d/", local))
		return answer == "page\n"
	})
	return answer
}

// The image that the shim writes is all that a node needs.
func TestReadmeSandboxImage(t *testing.T) {
	onNewNode(t, handlers(), nil, func(t *testing.T) {
		_, err := theNode.RunPod(testContext(t), "pause", nil)
		if err == nil {
			t.Fatal("a pod runs without an image for its sandbox")
		}
		command := readmeBlock(t, "### Without a pause image")
		shim, err := theNode.LookPath("containerd-shim-pause-v2")
		must(t, err)
		nodeShell(t, "export SANDBOX_IMAGE="+theNode.PauseImage+" PATH="+filepath.Dir(shim)+":$PATH\n"+command)
		p := runPod(t, "pause", nil)
		expectEqual(t, "exec", p.exec(p.start("c", "sleep 1000"), "echo works"), "works")
	})
}

func TestSandboxByCtr(t *testing.T) {
	withPause(t, func(t *testing.T) {
		ctx := testContext(t)
		spec := filepath.Join(t.TempDir(), "spec.json")
		must(t, os.WriteFile(spec, []byte(`{"ociVersion": "1.0.2", "hostname": "by-ctr", "linux": {"namespaces": [{"type": "uts"}, {"type": "ipc"}, {"type": "network"}, {"type": "pid"}]}}`), 0o600))
		_, err := theNode.Ctr(ctx, theNode.ID, "sandboxes", "run", "--runtime", node.PauseType, spec, "sb")
		must(t, err)
		list, err := theNode.Ctr(ctx, theNode.ID, "sandboxes", "ls")
		must(t, err)
		expectLine(t, list, "sb")
		_, err = theNode.Ctr(ctx, theNode.ID, "sandboxes", "rm", "--force", "sb")
		must(t, err)
		list, err = theNode.Ctr(ctx, theNode.ID, "sandboxes", "ls")
		must(t, err)
		if strings.Contains(list, "sb") {
			t.Errorf("the sandbox is left: %s", list)
		}
	})
}

func TestUpdatePodSandboxResources(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		_, err := theNode.CRI().UpdatePodSandboxResources(p.ctx, &runtime.UpdatePodSandboxResourcesRequest{
			PodSandboxId: p.ID, Resources: &runtime.LinuxContainerResources{CpuShares: 77},
		})
		must(t, err)
		r, err := theNode.CRI().PodSandboxStatus(p.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
		must(t, err)
		if !strings.Contains(r.Info["info"], `"cpu_shares":77`) {
			t.Errorf("the status does not tell: %s", r.Info["info"])
		}
	})
}

func TestInspectOfSandbox(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		r, err := theNode.CRI().PodSandboxStatus(p.ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
		must(t, err)
		var info struct {
			Pid         int
			Status      string `json:"processStatus"`
			Config      *runtime.PodSandboxConfig
			RuntimeSpec struct{ Hostname string }
		}
		must(t, json.Unmarshal([]byte(r.Info["info"]), &info))
		if info.Pid == 0 || info.Status != "running" {
			t.Errorf("pid %d, status %s", info.Pid, info.Status)
		}
		expectEqual(t, "host name in the configuration", info.Config.GetHostname(), p.Config.Hostname)
		expectEqual(t, "host name in the spec", info.RuntimeSpec.Hostname, p.Config.Hostname)
	})
}

// Under the stock shim's name, this one gets options of a type that containerd can
// add to, also with the Sandbox API: so pods can have user namespaces.
func TestUserNamespacesBySandboxAPI(t *testing.T) {
	shim, err := theNode.LookPath("containerd-shim-pause-v2")
	must(t, err)
	dir := t.TempDir()
	must(t, os.Symlink(shim, filepath.Join(dir, "containerd-shim-runc-v2")))
	const handler = "drop-in"
	dropIn := []node.Handler{{Name: handler, Type: node.StockType, OCIRuntime: currentRuntime, Sandboxer: "shim"}}
	onNewNode(t, dropIn, []string{dir}, func(t *testing.T) {
		for _, m := range []mode{
			{pid: modeContainer, user: true},
			{pid: modePod, user: true},
			{pid: modeContainer, net: modeNode, user: true},
			{pid: modePod, net: modeNode, user: true},
		} {
			t.Run(m.String(), func(t *testing.T) {
				p := runPod(t, handler, m.apply)
				a, b := p.startAs("a", reaping, admin), p.startAs("b", reaping, admin)
				checkNamespaces(t, p, m, a, b)
				checkSysctls(t, p, a)
				checkReaping(t, p, m, b)
				checkSharing(t, p, m, a, b)
				checkProcesses(t, p, m, a, b)
				expectEqual(t, "ID map", strings.Join(strings.Fields(p.exec(a, "cat /proc/self/uid_map")), " "), fmt.Sprint(0, " ", userFirst, " ", userLength))
				expectEqual(t, "mode of /dev/shm", p.exec(a, "stat -c %a /dev/shm"), "1777")
				expectEqual(t, "owner of the host name's file", p.exec(a, "stat -c %u:%g /etc/hostname"), "0:0")
			})
		}
	})
}
