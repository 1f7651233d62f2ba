package shim

import (
	"bytes"
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
)

// A process that answers RPCs all the time must give memory back, too.
func TestMemoryIsGivenBackWhileRPCsGoOn(t *testing.T) {
	const size = 64 << 20
	debug.FreeOSMemory() // of other tests
	before := anonymousMemory(t)
	garbage := make([]byte, size)
	for i := range garbage {
		garbage[i] = 1
	}
	peak := anonymousMemory(t)
	if peak < before+size*9/10 {
		t.Errorf("%d bytes were written to, in memory were %d before and %d after", size, before, peak)
	}
	runtime.KeepAlive(garbage)
	tr := &trimmer{}
	deadline := time.Now().Add(time.Minute)
	for anonymousMemory(t) > peak-size/4 { // The race detector adds memory of its own, and keeps it.
		_, err := tr.intercept(context.Background(), nil, &ttrpc.UnaryServerInfo{}, func(context.Context, func(any) error) (any, error) { return nil, nil })
		if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("no memory is given back while RPCs go on")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestIdleProcessDoesNothingForItsMemory(t *testing.T) {
	tr := &trimmer{}
	tr.schedule()
	for tr.pending.Load() {
		time.Sleep(time.Millisecond)
	}
	var before, after debug.GCStats
	debug.ReadGCStats(&before)
	time.Sleep(trimDelay + trimDelay/2)
	debug.ReadGCStats(&after)
	if n := after.NumGC - before.NumGC; n > 1 { // The one that is due.
		t.Errorf("it has collected %d times without an RPC", n)
	}
}

// anonymousMemory returns how many bytes of this process are in memory without belonging to
// a file: Anonymous in proc_pid_smaps(5).
func anonymousMemory(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps_rollup")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(data, []byte("\nAnonymous:"))
	kB, _, _ := bytes.Cut(rest, []byte(" kB\n"))
	n, err := strconv.Atoi(string(bytes.TrimSpace(kB)))
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}
