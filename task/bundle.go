package task

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// maxID is the length of the longest name of a file in bytes (NAME_MAX in limits.h(0p)).
const maxID = 255

// checkBundle refuses an id by which files cannot be named, and a path of a bundle that
// leads to another place than the client means: relative to the shim's own bundle, it could
// be that. It returns the path without links, by which a bundle is told from others.
func checkBundle(id, bundle string) (string, error) {
	if id == "" || id == "." || id == ".." || strings.ContainsAny(id, "/\x00") || len(id) > maxID {
		return "", fmt.Errorf("id %q cannot be the name of a file: %w", id, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(bundle) {
		return "", fmt.Errorf("bundle %q is not an absolute path: %w", bundle, errdefs.ErrInvalidArgument)
	}
	resolved, err := filepath.EvalSymlinks(bundle)
	if err != nil {
		return "", fmt.Errorf("cannot find the bundle: %w", err)
	}
	return resolved, nil
}

// bundles are the owners of bundles, by the paths from checkBundle. Two in one bundle would
// overwrite each other's records.
type bundles map[string]string

func (b bundles) take(bundle, owner string) error {
	if other, ok := b[bundle]; ok {
		return fmt.Errorf("bundle %s is that of %s: %w", bundle, other, errdefs.ErrInvalidArgument)
	}
	b[bundle] = owner
	return nil
}

func (b bundles) giveBack(owner string) {
	maps.DeleteFunc(b, func(_, of string) bool { return of == owner })
}
