package shim

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
)

const (
	// quiet is how long no RPC may have begun or ended for memory to be given
	// back to the kernel.
	quiet = 200 * time.Millisecond

	// worthCollecting is by how many bytes the process must have grown for a
	// collection then.
	worthCollecting = 64 << 10

	// gcPercent, after the first burst, lets the heap grow to an eighth of the 4 MB that
	// Go lets each program have before it collects garbage (runtime.heapMinimum). What
	// describes the largest heap that there was stays for good. In the first burst, a
	// collection would only keep the pod waiting.
	gcPercent = 12

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

	trimming sync.Mutex // guards what follows
	used     int        // bytes that growth is counted from, 0 before the first trim
	trimmed  bool       // there has been no burst since memory was given back
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
		t.timer = time.AfterFunc(quiet, t.trim)
		return
	}
	t.timer.Reset(quiet)
}

// trim collects garbage and gives free memory back if the process has come to use more
// of it. Package runtime/metrics could tell of the heap alone, but takes a third of a
// millisecond when a program starts; and runtime.ReadMemStats returns all spans to the
// runtime's lists, which take memory for good (Makefile, GORUNTIME).
func (t *trimmer) trim() {
	t.trimming.Lock()
	defer t.trimming.Unlock()
	first := t.used == 0
	if first {
		debug.SetGCPercent(gcPercent)
	}
	used, err := anonymousMemory()
	if err != nil {
		log.L.WithError(err).Debug("cannot tell how much memory there is to give back")
		debug.FreeOSMemory()
		return
	}
	growth := used - t.used
	if !t.isWorth(used) {
		return
	}
	for {
		debug.FreeOSMemory()
		last := used
		if used, err = anonymousMemory(); err != nil {
			return
		}
		// What was in a [sync.Pool], say, is garbage only to the collection after the next. After the
		// first burst there is little of it, and containers are about to be made.
		if first || growth < 4*worthCollecting || used > last-worthCollecting/4 {
			break
		}
	}
	t.used, t.trimmed = used, true
}

// isWorth says whether memory is to be given back, after a burst that has left so many bytes
// in use. To what is in use after the first one that follows a trim it gets used: each burst
// needs so much again, such as those in which containerd asks for statistics, each second.
func (t *trimmer) isWorth(used int) bool {
	switch growth := used - t.used; {
	case t.trimmed && growth < 2*worthCollecting:
		t.used = used
	case growth < worthCollecting:
		t.used = min(t.used, used)
	default:
		return true
	}
	t.trimmed = false
	return false
}

// anonymousMemory returns how many bytes of this process are in memory, and of no file:
// Anonymous of proc_pid_smaps(5). The counters in statm and status may be off by more
// than what matters here on machines with many CPUs.
func anonymousMemory() (int, error) {
	const path = "/proc/self/smaps_rollup"
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(data, []byte("\nAnonymous:"))
	kB, _, _ := bytes.Cut(rest, []byte(" kB\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(kB)))
	if err != nil {
		return 0, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return n << 10, nil
}
