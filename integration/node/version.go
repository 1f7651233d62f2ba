package node

import (
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// Version is a minor version of containerd, which is what its configuration and
// its abilities go by.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// AtLeast says whether v is that version or a later one.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Those are the first versions that have what the configuration names. Sources: the
// toml tags in internal/cri/config/config.go and core/runtime/v2/shim_manager.go of
// 2.0.14, 2.1.9, 2.2.9, 2.3.7 and 2.4.2, pkg/cri/config/config.go of 1.6.20 and 1.7.35.

func (v Version) hasCDI() bool               { return v.AtLeast(1, 7) }
func (v Version) hasNRI() bool               { return v.AtLeast(1, 7) }
func (v Version) hasConfigVersion3() bool    { return v.AtLeast(2, 0) }
func (v Version) hasSandboxers() bool        { return v.AtLeast(2, 0) }
func (v Version) hasManyCNIDirs() bool       { return v.AtLeast(2, 1) }
func (v Version) hasSocketDir() bool         { return v.AtLeast(2, 3) }
func (v Version) hasPodsWithoutImages() bool { return v.AtLeast(2, 4) }

// passesOptions says whether CRI passes the options of a handler whose type is not
// the stock shim's; 1.6 only passes the path of a file that has them (loadOptions
// and generateRuntimeOptions in pkg/cri/server/helpers.go of 1.6 and 1.7).
func (v Version) passesOptions() bool { return v.AtLeast(1, 7) }

var versionPattern = regexp.MustCompile(`^containerd \S+ v?((\d+)\.(\d+)\.\S+)`)

// versionOf asks a containerd for its version. There are two forms, the first of
// which is Debian's:
//
//	containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3
//	containerd github.com/containerd/containerd/v2 v2.4.2
func versionOf(path string) (v Version, release string, err error) {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return v, "", fmt.Errorf("cannot find the version of %s: %w", path, err)
	}
	match := versionPattern.FindStringSubmatch(string(out))
	if match == nil {
		return v, "", fmt.Errorf("cannot find the version of %s in %q", path, out)
	}
	v.Major, _ = strconv.Atoi(match[2])
	v.Minor, _ = strconv.Atoi(match[3])
	return v, match[1], nil
}
