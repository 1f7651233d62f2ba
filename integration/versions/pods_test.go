package versions

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

func testPods(t *testing.T, handlers ...string) {
	runCases(t, []testCase{
		{"two containers", testTwoContainers},
		{"exec", testExec},
		{"log and exit code", testLogAndExitCode},
		{"stats", testStats},
		{"shared PID namespace", testSharedPid},
		{"host network", testHostNetwork},
		{"shim is killed", testShimKilled},
		{"containerd is killed", testContainerdKilled},
	}, handlers...)
}

// testPodsBySandboxAPI runs the tests of pods, and those of what only this way has.
func testPodsBySandboxAPI(t *testing.T) {
	testPods(t, sandboxHandler, sharedSandboxHandler)
	testManyPods(t, sharedSandboxHandler)
	runCases(t, []testCase{{"no pause image", testNoPauseImage}}, sandboxHandler, sharedSandboxHandler)
}

func testTwoContainers(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	a := p.start("a", "mkdir /www; echo page >/www/index.html; httpd -f -p 8080 -h /www")
	b := p.start("b", "sleep 1000")
	p.expectServed(a)
	p.expectJoined(a)
	p.expectJoined(b)
	if handler != "runc" {
		expectSandboxIn(t, p.sandboxPid(), p.shimPid(), handler)
	}
	// By the pod's loopback, from the other container, and from the host.
	eventually(t, "server answers", func() bool {
		r, err := theNode.Exec(p.ctx, b, "wget", "-q", "-O", "-", "http://127.0.0.1:8080/")
		must(t, err)
		return string(r.Stdout) == "page\n"
	})
	client := http.Client{Timeout: patience * 10 * time.Second}
	r, err := client.Get("http://" + p.status().Network.Ip + ":8080/")
	must(t, err)
	r.Body.Close()
	expectEqual(t, "answer", r.StatusCode, http.StatusOK)
	p.exec(a, "echo shared >/dev/shm/x")
	expectEqual(t, "/dev/shm/x", p.exec(b, "cat /dev/shm/x"), "shared")
	p.remove()
}

func testExec(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	r, err := theNode.Exec(p.ctx, id, "sh", "-c", "echo to stdout; echo to stderr >&2; exit 3")
	must(t, err)
	expectEqual(t, "stdout", string(r.Stdout), "to stdout\n")
	expectEqual(t, "stderr", string(r.Stderr), "to stderr\n")
	expectEqual(t, "exit code", r.ExitCode, 3)
	expectEqual(t, "/etc/hostname", p.exec(id, "cat /etc/hostname"), p.Config.Hostname)
	p.remove()
}

func testLogAndExitCode(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "echo one; echo two >&2; exit 4")
	p.expectExited(id, 4)
	log := filepath.Join(p.Config.LogDirectory, "c.log")
	eventually(t, "the log is complete", func() bool {
		b, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(b), " stdout F one\n") && strings.Contains(string(b), " stderr F two\n")
	})
	trapped := p.startTrapping("trapping")
	must(t, theNode.StopContainer(p.ctx, trapped, 60))
	p.expectExited(trapped, 9)
	killed := p.start("killed", "sleep 1000")
	must(t, theNode.StopContainer(p.ctx, killed, 0))
	p.expectExited(killed, 137)
	must(t, theNode.RemoveContainer(p.ctx, killed))
	p.remove()
}

func testStats(t *testing.T, handler string) {
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	p.expectStats(id)
	r, err := theNode.CRI().ListContainerStats(p.ctx, &runtime.ListContainerStatsRequest{})
	must(t, err)
	expectEqual(t, "containers with stats", len(r.Stats), 1)
	p.remove()
}

func testSharedPid(t *testing.T, handler string) {
	p := runPod(t, handler, sharedPid)
	a, b := p.start("a", "sleep 1000"), p.start("b", "sleep 1000")
	expectEqual(t, "PID namespace", namespace(t, p.containerPid(b), "pid"), namespace(t, p.containerPid(a), "pid"))
	expectEqual(t, "PID 1", p.exec(a, "tr '\\0' ' ' </proc/1/cmdline"), "/pause")
	if namespace(t, p.containerPid(a), "pid") == namespace(t, os.Getpid(), "pid") {
		t.Error("the PID namespace is the host's")
	}
	p.expectServed(a)
	p.remove()
}

// Of the releases with the Sandbox API, 2.0 to 2.2 want a pause image for a pod by
// podsandbox only (Controller.Start in internal/cri/server/podsandbox/sandbox_run.go),
// and 2.4 for every pod unless its handler has disable_pause_image_pull.
func testNoPauseImage(t *testing.T, handler string) {
	if theNode.Version.String() == "2.3" {
		t.Skip("containerd 2.3 wants a pause image for every pod, and leaves the shim running that it has started before " +
			"it has found none (RunPodSandbox in internal/cri/server/sandbox_run.go)")
	}
	hidePauseImage(t)
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	p.expectServed(id)
	p.expectJoined(id)
	p.remove()
}

// hidePauseImage takes the pause image's name away until the end of the test.
func hidePauseImage(t *testing.T) {
	t.Helper()
	images := theNode.Client().ImageService()
	ctx := namespaces.WithNamespace(testContext(t), node.CRINamespace)
	image, err := images.Get(ctx, theNode.PauseImage)
	must(t, err)
	// Another name keeps the content, and CRI has a third one, the image's ID.
	kept := image
	kept.Name = "localhost/kept:1"
	_, err = images.Create(ctx, kept)
	must(t, err)
	must(t, images.Delete(ctx, image.Name))
	expectPauseImage(ctx, t, false)
	t.Cleanup(func() {
		ctx := namespaces.WithNamespace(context.Background(), node.CRINamespace)
		_, err := images.Create(ctx, image)
		must(t, errors.Join(err, images.Delete(ctx, kept.Name)))
		expectPauseImage(ctx, t, true)
	})
}

// expectPauseImage waits until CRI has learned of the image's name, or its loss.
func expectPauseImage(ctx context.Context, t *testing.T, there bool) {
	t.Helper()
	eventually(t, "CRI has learned of the image's name", func() bool {
		r, err := theNode.Images().ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: theNode.PauseImage}})
		must(t, err)
		return (r.Image != nil) == there
	})
}

func sharedPid(c *runtime.PodSandboxConfig) {
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_POD
}

func testHostNetwork(t *testing.T, handler string) {
	if isSandboxAPI(handler) && !theNode.Version.AtLeast(2, 3) {
		t.Skip("containerd 2.0 to 2.2 panic: they store the network namespace of a pod, and read the pod's empty spec with " +
			"it; without one the spec is nil, and used (NewBundle in core/runtime/v2/bundle.go)")
	}
	p := runPod(t, handler, node.HostNetwork)
	pid := p.containerPid(p.start("c", "sleep 1000"))
	for _, kind := range []string{"net", "uts"} {
		expectEqual(t, kind, namespace(t, pid, kind), namespace(t, os.Getpid(), kind))
	}
	expectEqual(t, "ipc", namespace(t, pid, "ipc"), namespace(t, p.sandboxPid(), "ipc"))
	p.remove()
}

// containerd cleans up after a shim that was killed, by the shim's delete call.
func testShimKilled(t *testing.T, handler string) {
	if v := theNode.Version; handler == "runc" && v.AtLeast(2, 0) && !v.AtLeast(2, 4) {
		t.Skip("containerd 2.0 to 2.3 forget the containers of a shim that serves Task API version 3, and they run on " +
			"(ShimManager.Start in core/runtime/v2/shim_manager.go)")
	}
	p := runPod(t, handler, nil)
	id := p.start("c", "sleep 1000")
	init := p.containerPid(id)
	must(t, unix.Kill(p.shimPid(), unix.SIGKILL))
	p.expectNotReady()
	eventually(t, "init has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	p.expectEnded(id)
	p.removeInTheEnd()
	forgiveSocket(t, handler)
}

// needsRestart skips a test of pods that containerd does not find again.
func needsRestart(t *testing.T, handler string) {
	t.Helper()
	if isSandboxAPI(handler) && theNode.Version.String() == "2.0" {
		t.Skip("containerd 2.0 looks for pods of the Sandbox API in the wrong directory when it starts: LoadExistingShims in " +
			"plugins/sandbox/controller.go is called with root and state exchanged")
	}
}

func testContainerdKilled(t *testing.T, handler string) {
	needsRestart(t, handler)
	p := runPod(t, handler, nil)
	stays, ends := p.start("stays", "sleep 1000"), p.startTrapping("ends")
	sandbox, shim := p.sandboxPid(), p.shimPid()
	init := p.containerPid(ends)
	must(t, theNode.Kill())
	must(t, unix.Kill(init, unix.SIGTERM))
	eventually(t, "container has ended", func() bool { return unix.Kill(init, 0) == unix.ESRCH })
	must(t, theNode.Restart(p.ctx))
	p.expectExitedWhileAway(ends)
	p.expectServed(stays)
	expectEqual(t, "sandbox's pid", p.sandboxPid(), sandbox)
	expectEqual(t, "shim's pid", p.shimPid(), shim)
	p.expectJoined(p.start("new", "sleep 1000"))
	p.remove()
}
