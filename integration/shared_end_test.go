package integration

import (
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// The end of a shim is that of its pods, and of no others.
func TestOneOfTwoSharedShimsEnds(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		for _, away := range []string{"", ", containerd is away"} {
			t.Run(unix.SignalName(signal)+away, func(t *testing.T) {
				eachSharedHandler(t, func(t *testing.T, handler string) {
					handler = bounded(handler, 2)
					pods := tenants(t, handler, 4)
					expectEqual(t, "pods of each shim", sizes(pods), "[2 2]")
					ended, stay := pods[:2], pods[2:]
					if away != "" {
						must(t, theNode.Kill())
					}
					must(t, unix.Kill(ended[0].shim, signal))
					expectEnded(t, ended[0].shim)
					if away != "" {
						must(t, theNode.Restart(ended[0].ctx))
					}
					for _, p := range ended {
						p.expectNotReady()
						p.expectExited(p.sleeper, exitOfKilledShim)
						expectEnded(t, p.pid)
					}
					expectLives(t, stay...)
					// The pods that have ended may still be there when their successors come.
					next := tenants(t, handler, 2)
					expectEqual(t, "pods of each shim", sizes(append(next, stay...)), "[2 2]")
					for _, p := range ended {
						p.removeInTheEnd()
					}
					expectLives(t, append(next, stay...)...)
					expectWorks(t, append(next, stay...)...)
				})
			})
		}
	}
}

// poolSocket is the socket of a pod's shim.
func (p *tenant) poolSocket() string {
	p.t.Helper()
	socket := shimSocket(p.t, node.CRINamespace, p.sleeper)
	if !strings.HasPrefix(filepath.Base(socket), "pool-") {
		p.t.Fatalf("%s is not the socket of a shared shim", socket)
	}
	return socket
}

// leaveSocket makes a socket on which nobody listens, as SIGKILL leaves it.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	must(t, l.Close())
	if _, err := net.Dial("unix", path); !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("the socket is not stale: %v", err)
	}
}

func TestStaleSocketOfASharedShim(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		handler = bounded(handler, 2)
		pods := tenants(t, handler, 3)
		stale := pods[0].poolSocket()
		pods[0].remove()
		pods[1].remove()
		expectEnded(t, pods[0].shim)
		leaveSocket(t, stale)
		// There is room in the other shim.
		pods = append(pods[2:], newTenant(t, handler, node.HostNetwork))
		expectEqual(t, "pods of each shim", sizes(pods), "[2]")
		// Now there is none: the next one takes the number over.
		next := newTenant(t, handler, node.HostNetwork)
		expectEqual(t, "socket of the new shim", next.poolSocket(), stale)
		expectLives(t, append(pods, next)...)
	})
}

// A shim that does not answer is passed over.
func TestStoppedSharedShimIsPassedOver(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		handler = bounded(handler, 2)
		stopped := newTenant(t, handler, node.HostNetwork)
		must(t, unix.Kill(stopped.shim, unix.SIGSTOP))
		t.Cleanup(func() { unix.Kill(stopped.shim, unix.SIGCONT) }) // only a test that has failed needs it
		began := time.Now()
		next := newTenant(t, handler, node.HostNetwork)
		t.Logf("the next pod and its container took %s", time.Since(began))
		if next.shim == stopped.shim {
			t.Error("the next pod is in the shim that is stopped")
		}
		must(t, unix.Kill(stopped.shim, unix.SIGCONT))
		expectLives(t, stopped, next)
		expectWorks(t, stopped, next)
		// The seat that was asked for in the meantime is free again.
		third := newTenant(t, handler, node.HostNetwork)
		expectEqual(t, "shim of the third", third.shim, stopped.shim)
		for _, p := range []*tenant{stopped, next, third} {
			p.remove()
		}
		expectEnded(t, stopped.shim, next.shim)
	})
}

// containerd finds the shim once for each pod when it starts.
func TestContainerdIsKilledWhilePodsShareAShim(t *testing.T) {
	eachSharedHandler(t, func(t *testing.T, handler string) {
		pods := tenants(t, handler, 3)
		var ends []string
		var pids []int
		for _, p := range pods {
			id := p.start("ends", "trap 'exit 9' TERM; touch /up; while :; do sleep 0.1; done")
			eventually(t, "trap is set", func() bool {
				r, err := theNode.Exec(p.ctx, id, "ls", "/up")
				return err == nil && r.ExitCode == 0
			})
			ends, pids = append(ends, id), append(pids, p.containerPid(id))
		}
		must(t, theNode.Kill())
		for _, pid := range pids {
			must(t, unix.Kill(pid, unix.SIGTERM))
			eventually(t, "container has ended", func() bool { return unix.Kill(pid, 0) == unix.ESRCH })
		}
		must(t, theNode.Restart(pods[0].ctx))
		for i, p := range pods {
			p.expectExited(ends[i], 9)
		}
		expectLives(t, pods...)
		expectWorks(t, pods...)
		expectLogged(t, pods[0].shim)
		next := newTenant(t, handler, node.HostNetwork)
		expectEqual(t, "shim of the next", next.shim, pods[0].shim)
	})
}

// containerd calls `delete` for each pod of a shim that it cannot reach, and takes them all
// for removed.
func TestSharedShimThatContainerdHasGivenUpEnds(t *testing.T) {
	for way, giveUp := range waysToGiveUp {
		t.Run(way, func(t *testing.T) {
			eachSharedHandler(t, func(t *testing.T, handler string) {
				pods := []*tenant{newTenant(t, handler, nil), newTenant(t, handler, nil)}
				own := append(podNamespaces(t, pods[0].pid), podNamespaces(t, pods[1].pid)...)
				shim := pods[0].shim
				giveUpShim(t, shim, pods[0].poolSocket(), giveUp)
				must(t, theNode.Restart(pods[0].ctx))
				for _, p := range pods {
					p.expectNotReady()
					p.expectExited(p.sleeper, exitOfKilledShim)
					p.removeInTheEnd()
				}
				// One that is stopped cannot end by itself, and other pods might be in it.
				must(t, ignoreEnded(unix.Kill(shim, unix.SIGCONT)))
				expectEnded(t, pods[0].pid, pods[1].pid, shim)
				expectNoMember(t, own)
			})
		})
	}
}

// ignoreEnded is no error if there is no such process any more.
func ignoreEnded(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
