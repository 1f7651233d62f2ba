package shim

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/ttrpc"
)

func TestGateClosesWhenNothingIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		end := g.begin()
		closed := make(chan error, 1)
		go func() { closed <- g.close(t.Context()) }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("closed while something is under way: %v", err)
		default:
		}
		g.begin()() // what is under way may need something else
		end()
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		var begun atomic.Bool
		go func() {
			defer g.begin()()
			begun.Store(true)
		}()
		synctest.Wait()
		if begun.Load() {
			t.Error("something has begun behind the closed gate")
		}
		g.open()
		synctest.Wait()
		if !begun.Load() {
			t.Error("nothing has begun though the gate is open")
		}
	})
}

func TestGateStaysOpenIfTheWorkDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		defer g.begin()()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.close(ctx); !errors.Is(err, errBusy) {
			t.Errorf("got %v, want %v", err, errBusy)
		}
		g.begin()()
		doRequest(t, g, "/service/State", func() {})
	})
}

// doRequest makes an RPC.
func doRequest(t *testing.T, g *gate, method string, f func()) {
	t.Helper()
	_, err := g.intercept(t.Context(), nil, &ttrpc.UnaryServerInfo{FullMethod: method}, func(context.Context, func(any) error) (any, error) {
		f()
		return nil, nil
	})
	if err != nil {
		t.Error(err)
	}
}

// Requests that come without end must not keep the gate open; those that wait do not count.
func TestGateClosesThoughRequestsCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		exited, stop := make(chan struct{}), make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() { doRequest(t, g, "/containerd.task.v3.Task/Wait", func() { <-exited }) })
		for i := range 2 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / 2)
				for {
					select {
					case <-stop:
						return
					default:
						doRequest(t, g, "/containerd.task.v3.Task/State", func() { time.Sleep(time.Second) })
					}
				}
			})
		}
		time.Sleep(3 * time.Second / 4)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := g.close(ctx); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := g.handled(); n != 3 { // one waits for the exit, and two for the gate
			t.Errorf("%d requests are handled, want 3", n)
		}
		close(stop)
		close(exited)
		g.open()
		all.Wait()
	})
}

// containerd takes a shim that does not tell a state for one that has ended.
func TestGateLetsQuestionsThroughWhileItWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate()
		long, created := make(chan struct{}), make(chan struct{})
		var all sync.WaitGroup
		all.Go(func() { doRequest(t, g, "/containerd.task.v3.Task/Start", func() { <-long }) })
		synctest.Wait()
		closed := make(chan error, 1)
		go func() { closed <- g.close(t.Context()) }()
		time.Sleep(drainEvery + drainFor/2)
		all.Go(func() { doRequest(t, g, "/containerd.task.v3.Task/Create", func() { close(created) }) })
		for _, method := range asks {
			begin := time.Now()
			doRequest(t, g, "/service"+method, func() {})
			if took := time.Since(begin); took > 0 {
				t.Errorf("%s has waited for %s", method, took)
			}
		}
		synctest.Wait()
		select {
		case <-created:
			t.Error("a request that changes something has begun while the gate is to be closed")
		default:
		}
		time.Sleep(drainFor)
		<-created // what hangs must not keep others waiting as long as it does
		close(long)
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		g.open()
		all.Wait()
	})
}
