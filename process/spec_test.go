package process

import (
	"os"
	"path/filepath"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ReadSpec adds missing sections, so that its callers need not check for nil.
func TestSpecWithoutSections(t *testing.T) {
	for _, text := range []string{`{}`, `null`, `{"process": null, "linux": null}`} {
		bundle := t.TempDir()
		proctest.Must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(text), 0o600))
		s, err := oci.ReadSpec(bundle)
		proctest.Must(t, err)
		if s.Process == nil || s.Linux == nil {
			t.Errorf("%s: a section is missing", text)
		}
	}
	given := &specs.Spec{Hostname: "pod"}
	s, err := specOf(CreateRequest{Spec: given})
	proctest.Must(t, err)
	if s.Process == nil || s.Linux == nil || s.Hostname != "pod" {
		t.Errorf("got %+v", s)
	}
	if given.Linux != nil {
		t.Error("the client's spec has been changed")
	}
}
