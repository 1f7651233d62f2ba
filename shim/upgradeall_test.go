package shim

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Pods end while others are upgraded. That is no failure of the upgrade.
func TestShimThatHasEndedIsNotOneThatWasNotUpgraded(t *testing.T) {
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	c := &call{stdout: &out}
	shims := []*runningShimProcess{{pid: ended.ProcessState.Pid(), socket: filepath.Join(t.TempDir(), "gone")}}
	if err := c.upgradeEach(t.Context(), "/no/such/program", shims); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "has ended with its last pod") {
		t.Errorf("output:\n%s", out.String())
	}
}
