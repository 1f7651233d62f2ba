package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLinksOfTheHostStayInItsRoot(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"usr/bin", "etc", "data/v1"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"bin": "usr/bin", "abs": "/usr", "etc/up": "../../../usr", "data/current": "v1", "usr/bin/last": "/etc", "loop": "loop",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"/":                    "/",
		"/bin/x":               "/usr/bin/x",
		"/abs/bin/x":           "/usr/bin/x",
		"/etc/up/bin/x":        "/usr/bin/x",
		"/data/current/a/b":    "/data/v1/a/b",
		"/usr/bin/last":        "/usr/bin/last", // the last part is not followed
		"/usr/bin/last/up/bin": "/usr/bin",
		"/../../etc/x":         "/etc/x",
		"/missing/a":           "/missing/a",
	} {
		got, err := root(dir).resolve(name)
		if err != nil || strings.TrimSuffix(got, "/") != strings.TrimSuffix(filepath.Join(dir, want), "/") {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	if got, err := root(dir).follow("/usr/bin/last"); err != nil || got != filepath.Join(dir, "etc") {
		t.Errorf("followed to %s, %v", got, err)
	}
	for _, name := range []string{"/loop/x", "/loop"} {
		if got, err := root(dir).follow(name); err == nil {
			t.Errorf("%s leads to %s", name, got)
		}
	}
}
