package oci

import (
	"context"
	"fmt"
	"os"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// One reaper serves all tests: a second one would take the first one's children for orphans.
var reaper *reap.Reaper

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// The runtime's poller keeps descriptors of its own once it is in use.
	r, w, _ := os.Pipe()
	r.Close()
	w.Close()
	reaper = reap.NewReaper(context.Background())
	proctest.HoldReaper = reaper.Hold
	os.Exit(m.Run())
}
