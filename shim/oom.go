package shim

import (
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/sys"
)

// adjustOOMScore makes the kernel prefer this process to containerd, whose score
// it has inherited, when memory runs out, by one point of oom_score_adj (proc(5)).
// Without the privilege to do so it leaves things as they are.
func adjustOOMScore() error {
	score, err := sys.GetOOMScoreAdj(os.Getpid())
	if err == nil {
		err = sys.AdjustOOMScore(os.Getpid(), score+1)
	}
	if err != nil {
		return fmt.Errorf("cannot adjust OOM score of shim: %w", err)
	}
	return nil
}
