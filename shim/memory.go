package shim

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

const (
	// quiet is how long no RPC may have begun or ended for memory to be given
	// back to the kernel.
	quiet = 200 * time.Millisecond

	// worthCollecting is how many bytes of garbage and free memory are worth a
	// collection then.
	worthCollecting = 256 << 10

	godebugEnv = "GODEBUG"

	// noHugePages keeps the Go heap from huge pages (runtime, "Environment
	// Variables"): with transparent_hugepage=always the first byte in use
	// would cost 2 MiB. The runtime reads it from the environment before main
	// runs; the process cannot set it for itself.
	//
	// Not PR_SET_THP_DISABLE: fork and exec inherit that (prctl(2)), so it
	// would take huge pages from every container that the shim starts.
	noHugePages = "disablethp=1"
)

// withoutHugePages returns the environment entry that switches huge pages off
// in a Go program, besides what the variable says already.
func withoutHugePages() string {
	if v := os.Getenv(godebugEnv); v != "" {
		return godebugEnv + "=" + v + "," + noHugePages
	}
	return godebugEnv + "=" + noHugePages
}

// Nobody reads a memory profile, and each sample of it, one in 512 kB, touches another
// page of a table (runtime.stkbucket).
func init() { runtime.MemProfileRate = 0 }

// saveMemory takes back what serverEnvironment put into the environment: it has
// been read, and is not meant for the OCI runtime, which is a Go program, too.
func saveMemory() {
	os.Unsetenv("GOMAXPROCS")
	switch v, _ := strings.CutSuffix(os.Getenv(godebugEnv), noHugePages); v {
	case "":
		os.Unsetenv(godebugEnv)
	default:
		os.Setenv(godebugEnv, strings.TrimSuffix(v, ","))
	}
}

// trimmer gives memory back to the kernel after a burst of RPCs, rather than by
// a clock: an idle shim stays idle. The Go runtime would keep it for minutes.
type trimmer struct {
	mu    sync.Mutex
	timer *time.Timer // guarded by mu
}

// intercept implements ttrpc.UnaryServerInterceptor.
func (t *trimmer) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	t.touch()
	defer t.touch() // a Wait lasts as long as its process
	return method(ctx, unmarshal)
}

// touch puts the next trim off.
func (t *trimmer) touch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		t.timer = time.AfterFunc(quiet, trim)
		return
	}
	t.timer.Reset(quiet)
}

// trim collects garbage and gives free memory back if there is enough of them.
// runtime.ReadMemStats would tell as much, but returns all spans to the runtime's
// lists, which take memory for good (Makefile, SPANSETS).
func trim() {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/heap/live:bytes"}, // at the end of the last collection
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	objects, live, free := samples[0].Value.Uint64(), samples[1].Value.Uint64(), samples[2].Value.Uint64()
	if objects+free > live+worthCollecting {
		debug.FreeOSMemory()
	}
}
