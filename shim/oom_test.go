package shim

import (
	"os"
	"path/filepath"
	"testing"
)

func TestShimOOMScore(t *testing.T) {
	for daemon, want := range map[int]int{-1000: -999, -999: -998, -1: 0, 0: 1, 999: 1000, 1000: 1000} {
		if got := shimOOMScore(daemon); got != want {
			t.Errorf("for a daemon with %d got %d, want %d", daemon, got, want)
		}
	}
}

func TestOOMScoreThatIsNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "oom_score_adj")
	for _, text := range []string{"", "high\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := readOOMScore(path); err == nil {
			t.Errorf("%q gives %d and no error", text, got)
		}
	}
}
