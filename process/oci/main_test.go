package oci

import (
	"context"
	"os"
	"runtime"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"
)

// All tests share one reaper: a second one would mistake the children of the first for orphans.
var reaper *reap.Reaper

// The main thread never ends, so that no test may have it.
func init() { runtime.LockOSThread() }

func TestMain(m *testing.M) {
	proctest.BecomeSubreaper()
	reaper = reap.NewReaper(context.Background())
	proctest.HoldReaper = reaper.Hold
	os.Exit(m.Run())
}
