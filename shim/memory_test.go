package shim

import (
	"runtime/debug"
	"testing"
)

func TestTrimGivesMemoryBack(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	const size = 64 << 20
	debug.FreeOSMemory() // of other tests
	before := anonymous(t)
	garbage := make([]byte, size)
	for i := range garbage {
		garbage[i] = 1
	}
	peak := anonymous(t)
	if peak < before+size*9/10 {
		t.Errorf("%d bytes were written to, in memory were %d before and %d after", size, before, peak)
	}
	var tr trimmer
	tr.trim()
	// The race detector keeps memory of its own for each that there was.
	if after := anonymous(t); after > peak-size*9/10 {
		t.Errorf("%d bytes are in memory, %d were with the garbage", after, peak)
	}
	used := tr.used
	if tr.trim(); tr.used != used {
		t.Error("it has collected again for nothing")
	}
}

func anonymous(t *testing.T) int {
	t.Helper()
	n, err := anonymousMemory()
	if err != nil {
		t.Fatal(err)
	}
	return n
}
