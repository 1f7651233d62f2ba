package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGroupOfASpec(t *testing.T) {
	annotations := []string{"first", "second"}
	for _, tc := range []struct{ name, spec, want string }{
		{"the first in order of precedence", `{"ociVersion":"1.2.0","annotations":{"second":"b","first":"a"},"linux":{"namespaces":[{"type":"pid"}]}}`, "a"},
		{"the second alone", `{"annotations":{"other":"x","second":"b"}}`, "b"},
		{"none", `{"annotations":{"other":"x"}}`, ""},
		{"no annotations", `{"process":{"args":["sh"]}}`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(tc.spec), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := groupOf(path, annotations); err != nil || got != tc.want {
				t.Errorf("got %q and error %v, want %q", got, err, tc.want)
			}
		})
	}

	t.Run("no spec", func(t *testing.T) {
		if got, err := groupOf(filepath.Join(t.TempDir(), "config.json"), annotations); err != nil || got != "" {
			t.Errorf("got %q and error %v, want neither", got, err)
		}
	})
	for _, bad := range []string{"", "{", `{"annotations":[]}`} {
		t.Run("bad spec "+bad, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := groupOf(path, annotations); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %q and error %v, want one that names the file", got, err)
			}
		})
	}
}
