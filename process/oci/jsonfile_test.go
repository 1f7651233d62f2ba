package oci

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

// fullDisk mounts a file system with a spec and little room for anything else.
func fullDisk(t *testing.T, spec string) (bundle string) {
	t.Helper()
	bundle = t.TempDir()
	proctest.Must(t, unix.Mount("full", bundle, "tmpfs", 0, "size=8k"))
	t.Cleanup(func() { proctest.Must(t, unix.Unmount(bundle, unix.MNT_DETACH)) })
	proctest.Must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600))
	return bundle
}

// A write that fails must leave the files as they were.
func TestFullDisk(t *testing.T) {
	const spec = `{"linux":{"namespaces":[{"type":"network"}]}}`
	bundle := fullDisk(t, spec)
	long := map[string]any{"namespaces": strings.Repeat("x", 16<<10)}
	if err := WriteJSON(filepath.Join(bundle, "record.json"), long); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the error of a file is %v", err)
	}
	if err := ChangeSpec(bundle, long); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("the error of a spec is %v", err)
	}
	proctest.Must(t, RestoreSpec(bundle))
	files, err := os.ReadDir(bundle)
	proctest.Must(t, err)
	if len(files) != 1 || files[0].Name() != "config.json" {
		t.Errorf("there are %v", files)
	}
	if got, err := os.ReadFile(filepath.Join(bundle, "config.json")); err != nil || string(got) != spec {
		t.Errorf("the spec is %s, error %v", got, err)
	}
}
