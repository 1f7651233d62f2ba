package shim

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

// gate counts what changes the state of a shim: requests, and what happens without one, such
// as the end of a process. While the gate is closed nothing does, so that the state can be
// handed over to another program.
type gate struct {
	mu       sync.Mutex // guards the fields below
	changed  *sync.Cond // of mu; anything below has changed
	working  int        // what is under way
	asking   int        // requests among that which only ask
	requests int        // requests that have been read and not answered, even if they only wait
	closing  bool       // close waits for a moment when nothing is under way
	draining bool       // new requests that change something wait, so that the work comes to an end
	closed   bool       // all new work waits
}

func newGate() *gate {
	g := &gate{}
	g.changed = sync.NewCond(&g.mu)
	return g
}

// begin waits until the gate is open, and counts what the caller does until it calls end.
func (g *gate) begin() (end func()) { return g.enter(0, func() bool { return g.closed }) }

// enter counts what the caller does until it calls leave; asking is 1 if it only asks.
func (g *gate) enter(asking int, mustWait func() bool) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for mustWait() {
		g.changed.Wait()
	}
	g.working++
	g.asking += asking
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.working--
		g.asking -= asking
		g.changed.Broadcast()
	}
}

// waits are the methods of requests that change nothing, and may take as long as a container
// runs. They go along with a connection that is handed over, and so does the request to hand
// it over.
var waits = []string{"/Wait", "/WaitSandbox", "/" + upgradeMethod}

// asks are the methods of requests that change nothing, and are answered at once. containerd waits
// no longer than 2 s for some of them (io.containerd.timeout.task.state), so they must not wait for
// other requests to end.
var asks = []string{"/State", "/Pids", "/Stats", "/Connect", "/SandboxStatus", "/SandboxMetrics", "/PingSandbox"}

// intercept implements [ttrpc.UnaryServerInterceptor].
func (g *gate) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	g.count(1)
	defer g.count(-1)
	is := func(suffix string) bool { return strings.HasSuffix(info.FullMethod, suffix) }
	switch {
	case slices.ContainsFunc(waits, is):
	case slices.ContainsFunc(asks, is):
		// Once nothing else is under way, there is no end of them if they keep coming.
		defer g.enter(1, func() bool { return g.closed || g.draining && g.working == g.asking })()
	default:
		defer g.enter(0, func() bool { return g.closed || g.draining })()
	}
	return method(ctx, unmarshal)
}

func (g *gate) count(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.requests += n
}

// handled returns how many requests have been read and not answered.
func (g *gate) handled() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.requests
}

// close closes the gate at a moment when nothing is under way. If there is no such moment for some
// time, it keeps new requests waiting now and then, as far as they change something. It fails if
// there is none before ctx ends; then the gate is open.
func (g *gate) close(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	wake := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changed.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	turn := g.drainInTurns()
	defer func() {
		turn.Stop()
		g.closing, g.draining = false, false
		g.changed.Broadcast()
	}()
	for g.working > 0 {
		if ctx.Err() != nil {
			return errBusy
		}
		g.changed.Wait()
	}
	g.closed = true
	return nil
}

// Requests are kept waiting for drainFor, and then begun for drainEvery, in turn: one that hangs
// must not keep all others waiting for as long as it does.
const (
	drainEvery = time.Second
	drainFor   = time.Second
)

// drainInTurns begins to keep new requests waiting in turn, as long as the gate is being closed. The
// caller holds mu.
func (g *gate) drainInTurns() (turn *time.Timer) {
	g.closing = true
	turn = time.AfterFunc(drainEvery, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.closing {
			return
		}
		if g.draining = !g.draining; g.draining {
			turn.Reset(drainFor)
		} else {
			turn.Reset(drainEvery)
		}
		g.changed.Broadcast()
	})
	return turn
}

var errBusy = errors.New("something has been under way for too long, such as a call of the OCI runtime, a hook, or an output that nobody reads")

// open opens the gate.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed, g.draining = false, false
	g.changed.Broadcast()
}
