package shim

import (
	"context"
	"path"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
)

const (
	// settle is how long after an RPC that changes something memory is given back:
	// longer than a pod takes to start, so that it does not wait for it.
	settle = time.Second

	// gcPercent lets the heap grow to an eighth of the 4 MB that Go lets each program
	// have before it collects garbage (runtime.heapMinimum): containerd asks for
	// statistics each second, and each answer leaves some. It is set when the first
	// pod has started.
	gcPercent = 12
)

// trimmer gives memory back to the kernel after RPCs that leave garbage, which Go would
// keep for minutes, or for good in a process that has little to do. It does so at most
// once in a while however many RPCs there are, and not at all in an idle process.
type trimmer struct{ pending atomic.Bool }

// intercept implements [ttrpc.UnaryServerInterceptor].
func (t *trimmer) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if !isQuestion(info.FullMethod) {
		defer t.schedule()
	}
	return method(ctx, unmarshal)
}

// isQuestion says whether a method of the Task or Sandbox API, "/service/Method", only
// asks for something. Such RPCs come all the time, and leave little.
func isQuestion(fullMethod string) bool {
	switch path.Base(fullMethod) {
	case "State", "Stats", "Pids", "Connect", "Wait",
		"SandboxStatus", "SandboxMetrics", "PingSandbox", "Platform", "WaitSandbox":
		return true
	}
	return false
}

func (t *trimmer) schedule() {
	if t.pending.CompareAndSwap(false, true) {
		time.AfterFunc(settle, t.trim)
	}
}

func (t *trimmer) trim() {
	t.pending.Store(false)
	debug.SetGCPercent(gcPercent)
	debug.FreeOSMemory()
}
