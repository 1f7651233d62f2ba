package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/userns"
)

// maxOOMScore is OOM_SCORE_ADJ_MAX of the kernel's include/uapi/linux/oom.h.
const maxOOMScore = 1000

// adjustOOMScore makes the kernel prefer this process to containerd, whose score
// it has inherited, when memory runs out, by one point of oom_score_adj (proc(5)).
// Without the privilege to do so it leaves things as they are.
func adjustOOMScore() error {
	path := oomScorePath(os.Getpid())
	score, err := readOOMScore(path)
	if err == nil {
		err = os.WriteFile(path, []byte(strconv.Itoa(shimOOMScore(score))), 0)
		if errors.Is(err, fs.ErrPermission) && (os.Geteuid() != 0 || userns.RunningInUserNS()) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("cannot adjust OOM score of shim: %w", err)
	}
	return nil
}

// shimOOMScore returns the score of a shim whose daemon has the score daemon.
func shimOOMScore(daemon int) int {
	return min(daemon+1, maxOOMScore)
}

func readOOMScore(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return score, nil
}

func oomScorePath(pid int) string {
	return fmt.Sprintf("/proc/%d/oom_score_adj", pid)
}
