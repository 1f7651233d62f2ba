package task

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
)

// readDir returns what is in a bundle, with the contents.
func readDir(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	proctest.Must(t, err)
	files := make(map[string]string)
	for _, e := range entries {
		if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil {
			files[e.Name()] = string(data)
		}
	}
	text, err := json.Marshal(files)
	proctest.Must(t, err)
	return string(text)
}

func TestIDsAndBundlesThatAreRefused(t *testing.T) {
	n, ctx := newNode(t), proctest.Context(t)
	owner := n.containerRequest("c", forever)
	n.make(owner)
	before := readDir(t, owner.Bundle)
	link := filepath.Join(t.TempDir(), "link")
	proctest.Must(t, os.Symlink(owner.Bundle, link))
	relative := func() string {
		here, err := os.Getwd()
		proctest.Must(t, err)
		path, err := filepath.Rel(here, owner.Bundle)
		proctest.Must(t, err)
		return path
	}()
	for name, tc := range map[string]struct{ id, bundle, want string }{
		"no bundle":                  {"d", "", "not an absolute path"},
		"relative bundle":            {"d", relative, "not an absolute path"},
		"the shim's own":             {"d", ".", "not an absolute path"},
		"another's bundle":           {"d", owner.Bundle, "belongs to task c"},
		"another's, spelled":         {"d", owner.Bundle + "/../" + filepath.Base(owner.Bundle) + "//", "belongs to task c"},
		"another's, by a link":       {"d", link, "belongs to task c"},
		"no id":                      {"", n.control, "cannot be the name"},
		"id that leads elsewhere":    {"..", n.control, "cannot be the name"},
		"id that is the directory":   {".", n.control, "cannot be the name"},
		"id with a slash":            {"../c", n.control, "cannot be the name"},
		"id with NUL":                {"d\x00", n.control, "cannot be the name"},
		"id that is too long a name": {strings.Repeat("d", 256), n.control, "cannot be the name"},
	} {
		t.Run(name, func(t *testing.T) {
			r := n.containerRequest("d", forever)
			r.ID, r.Bundle = tc.id, tc.bundle
			_, err := n.Create(ctx, r)
			wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
			if err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the error lacks %q: %v", tc.want, err)
			}
			_, err = n.sandboxes.CreateSandbox(ctx, &sandboxapi.CreateSandboxRequest{SandboxID: tc.id, BundlePath: tc.bundle})
			wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
			if after := readDir(t, owner.Bundle); after != before {
				t.Errorf("the other's bundle has become\n%s, was\n%s", after, before)
			}
		})
	}
	if _, err := n.Create(ctx, &taskapi.CreateTaskRequest{ID: "d", Bundle: n.control + "/none"}); err == nil {
		t.Error("no error without the bundle")
	}
}

// TestBundleIsFreeAgain after a create that has failed, and after a delete.
func TestBundleIsFreeAgain(t *testing.T) {
	n, h, ctx := newNode(t), newHome(t), proctest.Context(t)
	r := n.containerRequest("c", forever)
	n.tell("fail-create", "not this time")
	if _, err := n.Create(ctx, r); err == nil {
		t.Fatal("no error")
	}
	proctest.Must(t, os.Remove(filepath.Join(n.control, "fail-create")))
	n.make(r)
	n.remove("c")
	r.ID = "d"
	n.make(r)
	n.remove("d")

	s := n.createRequest(h, config(t))
	for range 2 {
		_, err := n.sandboxes.CreateSandbox(ctx, s)
		proctest.Must(t, err)
		_, err = n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"})
		proctest.Must(t, err)
	}
}
