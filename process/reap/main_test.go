package reap

import (
	"context"
	"os"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
)

// All tests share one reaper: a second one would mistake the children of the first for orphans.
var reaper *Reaper

func TestMain(m *testing.M) {
	proctest.BecomeSubreaper()
	reaper = NewReaper(context.Background())
	proctest.HoldReaper = reaper.Hold
	os.Exit(m.Run())
}
