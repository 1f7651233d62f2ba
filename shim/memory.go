package shim

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
)

// trimDelay is the time from an RPC until memory is given back, and the least time between
// two trims. It is longer than a pod takes to start, so that no start waits for a trim.
const trimDelay = 3 * time.Second

// trimmer gives memory back to the kernel after RPCs. Go would keep their garbage for
// minutes: containerd asks for statistics each second, and each answer leaves 50 kB. A
// trimmer trims at most once per trimDelay however many RPCs there are, and never in an
// idle process. docs/benchmarks.md says how much that saves.
type trimmer struct {
	pending atomic.Bool
	first   sync.Once
}

// collectAt is how much garbage, in percent of the memory in use, has Go collect it, once the
// first pod has started: before, collections would hold that up. Go's default of 100 lets
// the heap grow to 4 MB in any case (package runtime, GOGC).
const collectAt = 25

// intercept implements [ttrpc.UnaryServerInterceptor].
func (t *trimmer) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	defer t.schedule()
	return method(ctx, unmarshal)
}

func (t *trimmer) schedule() {
	if t.pending.CompareAndSwap(false, true) {
		time.AfterFunc(trimDelay, func() {
			t.pending.Store(false)
			t.first.Do(func() { debug.SetGCPercent(collectAt) })
			debug.FreeOSMemory()
		})
	}
}
