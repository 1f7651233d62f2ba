package integration

import (
	"os"
	"path/filepath"
	"testing"
)

// A program that calls runc is to see all that runc is asked for, whatever it is called.
func TestWrapperOfRuncSeesEachCommand(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for _, name := range []string{"runc", "runc-audit"} {
			f := newFakeRuntime(t, "none")
			path := filepath.Join(filepath.Dir(f.path), name)
			must(t, os.Rename(f.path, path))
			f.path = path
			c := startContainer(t, shim, f.config("exit 2"))
			expectEqual(t, "exit code", c.wait(), 2)
			c.remove()
			for _, verb := range []string{"create", "start", "delete"} {
				if len(f.called(verb)) == 0 {
					t.Errorf("%s: %s was not called", name, verb)
				}
			}
		}
	})
}
