package integration

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// gatekeeper stands before the socket on which containerd takes events. It refuses those of some
// containers, and passes on all others.
type gatekeeper struct {
	t    *testing.T
	real eventsapi.TTRPCEventsService

	mu      sync.Mutex
	refuses map[string]bool // guarded by mu: ids of containers
	count   map[string]int  // guarded by mu: how often an event was refused
}

// newGatekeeper lets a gatekeeper stand there until the end of the test, for shims that connect
// from now on.
func newGatekeeper(t *testing.T) *gatekeeper {
	t.Helper()
	path := theNode.Socket() + ".ttrpc"
	behind := path + ".behind"
	must(t, os.Rename(path, behind))
	t.Cleanup(func() { must(t, os.Rename(behind, path)) })
	conn, err := net.Dial("unix", behind)
	must(t, err)
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	g := &gatekeeper{t: t, real: eventsapi.NewTTRPCEventsClient(client), refuses: make(map[string]bool), count: make(map[string]int)}
	l, err := net.Listen("unix", path)
	must(t, err)
	server, err := ttrpc.NewServer()
	must(t, err)
	eventsapi.RegisterTTRPCEventsService(server, g)
	go server.Serve(context.Background(), l) // it ends by Close
	t.Cleanup(func() { server.Close() })
	return g
}

// Forward implements the service.
func (g *gatekeeper) Forward(ctx context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	v, err := typeurl.UnmarshalAny(r.Envelope.Event)
	if err != nil {
		g.t.Errorf("event %s: %v", r.Envelope.Topic, err)
		return nil, err
	}
	id, _ := describe("", v)
	if g.isRefused(id) {
		return nil, status.Errorf(codes.InvalidArgument, "no events of %s are taken", id)
	}
	return g.real.Forward(ctx, r)
}

func (g *gatekeeper) isRefused(id string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.refuses[id] {
		g.count[id]++
	}
	return g.refuses[id]
}

// refuse says whether events of a container are refused from now on.
func (g *gatekeeper) refuse(id string, refuse bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuses[id] = refuse
}

// refused is how often an event of a container was refused.
func (g *gatekeeper) refused(id string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count[id]
}

// A shim has one queue of events, from which a refused event is dropped after some attempts.
func TestRefusedEventsHoldUpNoOtherContainers(t *testing.T) {
	withShared(t, "containers", func(t *testing.T) {
		g := newGatekeeper(t)
		others := newOthers(t)
		c := startContainer(t, sharedShim, sh("exec sleep 1000"))
		shim, err := theNode.ShimPid(theNode.ID, c.ID())
		must(t, err)
		expectEqual(t, "shim", shim, others.shim)
		events := subscribe(t, c)
		c.exec("before", nil, nil, "true").mustFinish(0)
		events.expect("exit before")

		g.refuse(c.ID(), true)
		// There is always something that waits, whatever has been dropped.
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					stopped <- nil
					return
				default:
				}
				if err := numberedExec(c, i%100); err != nil {
					stopped <- err
					return
				}
			}
		}()
		eventually(t, "an event is refused", func() bool { return g.refused(c.ID()) > 0 })
		known := events.get()
		for range 3 {
			refused := g.refused(c.ID())
			others.expectUndisturbed()
			eventually(t, "more events are refused", func() bool { return g.refused(c.ID()) > refused })
		}
		if got := events.get(); !slices.Equal(got, known) {
			t.Errorf("events of the refused container: %s", strings.Join(got, ", "))
		}
		close(stop)
		must(t, <-stopped)

		g.refuse(c.ID(), false)
		c.exec("after", nil, nil, "true").mustFinish(0)
		must(t, c.task.Kill(c.ctx, unix.SIGKILL))
		expectEqual(t, "exit code", c.wait(), 137)
		c.remove()
		events.expect("delete")
		all := strings.Join(events.get(), ", ")
		if want := "exec-added after, exec-started after, exit after, exit, delete"; !strings.HasSuffix(all, want) {
			t.Errorf("events: %s\nwant at the end: %s", all, want)
		}
		expectExecsInOrder(t, events.get())
		others.expectUndisturbed()
	})
}

// expectExecsInOrder expects that of each exec that was started the start was reported before the exit.
func expectExecsInOrder(t *testing.T, events []string) {
	t.Helper()
	last := make(map[string]string)
	order := map[string]string{"exec-started": "exec-added", "exit": "exec-started"}
	for _, e := range events {
		var word, id string
		if _, err := fmt.Sscan(e, &word, &id); err != nil {
			continue // of the container itself
		}
		if before := last[id]; before != "" && before != "exit" && before != order[word] {
			t.Errorf("%s of exec %s came after %s", word, id, before)
		}
		last[id] = word
	}
}
