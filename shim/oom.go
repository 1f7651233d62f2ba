package shim

import (
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/sys"
)

// adjustOOMScore raises oom_score_adj (proc(5)) by one point above the score that
// this process has inherited from containerd, so that the kernel prefers to kill the
// shim when memory runs out. Without the privilege to change the score,
// adjustOOMScore leaves it as it is.
func adjustOOMScore() error {
	score, err := sys.GetOOMScoreAdj(os.Getpid())
	if err == nil {
		err = sys.AdjustOOMScore(os.Getpid(), score+1)
	}
	if err != nil {
		return fmt.Errorf("cannot adjust OOM score of the shim: %w", err)
	}
	return nil
}
