package shim

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
)

// trimDelay is how long after an RPC memory is given back, and the least time between two
// such occasions: longer than a pod takes to start, so that it does not wait for it.
const trimDelay = 3 * time.Second

// trimmer gives memory back to the kernel after RPCs, whose garbage Go would keep for
// minutes: containerd asks for statistics each second, and each answer leaves 50 kB. It
// does so at most once in a while however many RPCs there are, and not at all in an idle
// process. What that wins is in docs/benchmarks.md.
type trimmer struct{ pending atomic.Bool }

// intercept implements [ttrpc.UnaryServerInterceptor].
func (t *trimmer) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	defer t.schedule()
	return method(ctx, unmarshal)
}

func (t *trimmer) schedule() {
	if t.pending.CompareAndSwap(false, true) {
		time.AfterFunc(trimDelay, func() {
			t.pending.Store(false)
			debug.FreeOSMemory()
		})
	}
}
