package reap

import (
	"context"
	"os"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
)

// One reaper serves all tests: a second one would take the first one's children for orphans.
var reaper *Reaper

func TestMain(m *testing.M) {
	proctest.BecomeSubreaper()
	reaper = NewReaper(context.Background())
	proctest.HoldReaper = reaper.Hold
	os.Exit(m.Run())
}
