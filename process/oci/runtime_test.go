package oci

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
)

func TestLastErrorOfALog(t *testing.T) {
	for _, tc := range []struct{ name, before, log, want string }{
		{"none", "", "", ""},
		{"one", "", `{"level":"error","msg":"boom","time":"2026-01-01T00:00:00Z"}`, "boom"},
		{"fatal", "", `{"level":"fatal","msg":" boom\n"}`, "boom"},
		{"the last of many", "", "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n", "b"},
		{"other levels", "", "{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\"warning\",\"msg\":\"b\"}\n", "a"},
		{"garbage", "", "oops\n{\"level\":\"error\",\"msg\":\"a\"}\n{\"level\":\n[1]\n\"x\"\n", "a"},
		{"an earlier call's", "{\"level\":\"error\",\"msg\":\"old\"}\n", "{\"level\":\"info\",\"msg\":\"x\"}\n", ""},
		{"after an earlier call's", "{\"level\":\"error\",\"msg\":\"old\"}\n", "{\"level\":\"error\",\"msg\":\"new\"}\n", "new"},
		{"after a long line", "", strings.Repeat("x", 100_000) + "\n{\"level\":\"error\",\"msg\":\"a\"}\n", "a"},
		{"in a long line", "", `{"level":"error","msg":"` + strings.Repeat("x", 100_000) + `"}`, strings.Repeat("x", 100_000)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log.json")
			proctest.Must(t, os.WriteFile(path, []byte(tc.before+tc.log), 0o600))
			if got := lastError(path, int64(len(tc.before))); got != tc.want {
				t.Errorf("got %.100q, want %.100q", got, tc.want)
			}
		})
	}
	if got := lastError(filepath.Join(t.TempDir(), "none"), 0); got != "" {
		t.Errorf("without a log got %q", got)
	}
}
