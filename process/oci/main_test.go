package oci

import (
	"context"
	"os"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"
)

// One reaper serves all tests: a second one would take the first one's children for orphans.
var reaper *reap.Reaper

func TestMain(m *testing.M) {
	proctest.BecomeSubreaper()
	reaper = reap.NewReaper(context.Background())
	proctest.HoldReaper = reaper.Hold
	os.Exit(m.Run())
}
