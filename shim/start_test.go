package shim

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// groupIn returns the group that the first of the annotations names in the spec at path.
func groupIn(path string, names []string) (string, error) {
	a, err := readAnnotations(path)
	if err != nil {
		return "", err
	}
	return a.group(names...)
}

func TestGroupOfASpec(t *testing.T) {
	annotations := []string{"first", "second"}
	for _, tc := range []struct{ name, spec, want string }{
		{"the first in order of precedence", `{"ociVersion":"1.2.0","annotations":{"second":"b","first":"a"},"linux":{"namespaces":[{"type":"pid"}]}}`, "a"},
		{"the second alone", `{"annotations":{"other":"x","second":"b"}}`, "b"},
		{"none", `{"annotations":{"other":"x"}}`, ""},
		{"no annotations", `{"process":{"args":["sh"]}}`, ""},
		{"null annotations", `{"annotations":null}`, ""},
		{"null", `null`, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(tc.spec), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := groupIn(path, annotations); err != nil || got != tc.want {
				t.Errorf("got %q and error %v, want %q", got, err, tc.want)
			}
		})
	}

	// The socket's address is computed from containerd's address, the namespace and the group
	// joined as a path, and the group also names the bundle of its sandbox.
	for _, bad := range []string{".", "..", "/", "/pod", "pod/", "a/b", "../k8s.io/pod", "../../other", "pod\x00", strings.Repeat("x", 256)} {
		t.Run("bad group "+bad, func(t *testing.T) {
			spec, err := json.Marshal(map[string]any{"annotations": map[string]string{"second": bad, "other": "/"}})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, spec, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := groupIn(path, annotations)
			if err == nil || !strings.Contains(err.Error(), "annotation second of "+path) || len(err.Error()) > 512+len(path) {
				t.Errorf("got %q and error %v, want one that names the annotation and the file", got, err)
			}
		})
	}
	for _, good := range []string{"...", "..pod", "pod..", "a pod", "a\\b", "-", strings.Repeat("x", 255), ""} {
		t.Run("group "+good, func(t *testing.T) {
			spec, err := json.Marshal(map[string]any{"annotations": map[string]string{"first": good, "second": "/"}})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, spec, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := groupIn(path, annotations); err != nil || got != good {
				t.Errorf("got %q and error %v, want %q", got, err, good)
			}
		})
	}

	t.Run("no spec", func(t *testing.T) {
		if got, err := groupIn(filepath.Join(t.TempDir(), "config.json"), annotations); err != nil || got != "" {
			t.Errorf("got %q and error %v, want neither", got, err)
		}
	})
	for _, bad := range []string{"", "{", `{"annotations":[]}`} {
		t.Run("bad spec "+bad, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := groupIn(path, annotations); err == nil || !strings.Contains(err.Error(), path) {
				t.Errorf("got %q and error %v, want one that names the file", got, err)
			}
		})
	}
}
