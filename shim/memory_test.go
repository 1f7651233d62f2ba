package shim

import (
	"bytes"
	"context"
	"os"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
)

func TestTrimGivesMemoryBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
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
	(&trimmer{}).trim()
	// The race detector keeps memory of its own for each that there was.
	if after := anonymousMemory(t); after > peak-size*9/10 {
		t.Errorf("%d bytes are in memory, %d were with the garbage", after, peak)
	}
}

// A process that answers RPCs all the time must give memory back, too.
func TestRPCsDoNotPutATrimOff(t *testing.T) {
	tr := &trimmer{}
	call := func(method string) {
		_, err := tr.intercept(context.Background(), nil, &ttrpc.UnaryServerInfo{FullMethod: "/containerd.task.v3.Task/" + method},
			func(context.Context, func(any) error) (any, error) { return nil, nil })
		if err != nil {
			t.Fatal(err)
		}
	}
	call("Stats")
	if tr.pending.Load() {
		t.Error("a question has brought about a trim")
	}
	call("Create")
	if !tr.pending.Load() {
		t.Fatal("Create has not brought about a trim")
	}
	for deadline := time.Now().Add(time.Minute); debug.SetGCPercent(100) != gcPercent; time.Sleep(time.Millisecond) {
		call("Start")
		call("State")
		if time.Now().After(deadline) {
			t.Fatal("no memory is given back while RPCs go on")
		}
	}
	defer debug.SetGCPercent(100)
	call("Delete")
	if !tr.pending.Load() {
		t.Error("there is no second trim")
	}
}

// anonymousMemory returns how many bytes of this process are in memory and of no file:
// Anonymous of proc_pid_smaps(5).
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
