package shim

import (
	"cmp"
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
	if !tr.trimmed || tr.used == 0 {
		t.Errorf("it does not know that it has trimmed: %+v", &tr)
	}
	if tr.trim(); tr.trimmed {
		t.Error("it has collected again for nothing")
	}
}

func TestWhatBurstsNeedAgainIsKept(t *testing.T) {
	const kB = 1 << 10
	tr := &trimmer{}
	trimmed := func(used int) { tr.used, tr.trimmed = used, true }
	for i, step := range []struct {
		used  int
		worth bool
		after int // 0 for as much as now
	}{
		{2000 * kB, true, 1000 * kB},
		{1080 * kB, false, 0}, // what a burst needs
		{1080 * kB, false, 0},
		{1130 * kB, false, 1080 * kB},
		{1144 * kB, true, 1000 * kB},
		{1080 * kB, false, 0},
		{900 * kB, false, 0}, // somebody else has collected
		{964 * kB, true, 900 * kB},
		{1028 * kB, true, 950 * kB}, // too much to be needed each time
		{1077 * kB, false, 0},
	} {
		if got := tr.isWorth(step.used); got != step.worth {
			t.Errorf("step %d: it is worth it: %t", i, got)
		}
		if step.worth {
			trimmed(step.after)
		} else if want := cmp.Or(step.after, step.used); tr.used != want {
			t.Errorf("step %d: growth is counted from %d kB", i, tr.used/kB)
		}
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
