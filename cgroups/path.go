package cgroups

// Names of cgroups in OCI specs, systemd, /proc/<pid>/cgroup and mountinfo.

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// ResolvePath translates an OCI spec's linux.cgroupsPath into the path of the directory below the mount point. The path
// has the cgroupfs form ("/a/b"; "a/b" is the same) or the systemd form ("slice:prefix:name", see ExpandSystemdPath).
// systemd says which form an OCI runtime would assume; it counts only where the path itself does not tell:
//   - A path that begins with a slash, or does not have two colons, has the cgroupfs form. A runtime that is to use
//     systemd would not take it so: runc refuses it, and crun makes up a scope for it. For a directory without a unit,
//     it is good as it is.
//   - "x.slice:prefix:name" and ":prefix:name" have the systemd form. CRI chooses the form by a pod's cgroup parent
//     alone, so that these also come to a node whose runtime options lack SystemdCgroup (WithCgroup's callers in
//     containerd's internal/cri). An OCI runtime there would make a cgroupfs directory with colons in its name, outside
//     of the pod's slice; a sandbox's cgroup must be where clients look for it.
//   - A slice alone, "x-y.slice", is that slice's directory: a pod's cgroup parent may have this form.
//
// Source: OCI runtime-spec, config-linux.md, "Cgroups Path".
func ResolvePath(p string, systemd bool) (string, error) {
	slice, rest, colon := strings.Cut(p, ":")
	switch {
	case strings.Contains(slice, "/"):
		return cleanPath(p)
	case !colon && strings.HasSuffix(slice, ".slice"):
		return expandSlicePath(p)
	case strings.Count(rest, ":") != 1:
		return cleanPath(p)
	case systemd, slice == "", strings.HasSuffix(slice, ".slice"):
		return ExpandSystemdPath(p)
	}
	return cleanPath(p)
}

func expandSlicePath(p string) (string, error) {
	dir, err := expandSlice(p)
	if err != nil {
		return "", fmt.Errorf("cannot use cgroup path %q: %w", p, err)
	}
	return cleanPath(dir)
}

// cleanPath makes a cgroupfs path absolute. It refuses a path with "..", and the empty path and the root, as they name
// no cgroup that could be made or removed.
func cleanPath(p string) (string, error) {
	clean := path.Clean("/" + p)
	if clean == "/" {
		return "", fmt.Errorf("cannot use cgroup path %q: it names no cgroup: %w", p, errdefs.ErrInvalidArgument)
	}
	if slices.Contains(strings.Split(p, "/"), "..") {
		return "", fmt.Errorf("cannot use cgroup path %q: it contains \"..\": %w", p, errdefs.ErrInvalidArgument)
	}
	return clean, nil
}

// ExpandSystemdPath translates a cgroup path in the systemd form, "slice:prefix:name", into the path of its directory:
//
//	kubepods-burstable-pod1.slice:cri-containerd:abc
//	/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope
//
// Each dash in a slice's name is a level of the hierarchy; "-.slice" is the root; no slice means system.slice. A name
// that ends in .slice is the unit's whole name.
//
// Sources: systemd.slice(5); OCI runtime-spec, config-linux.md, "Cgroups Path"; runc's docs/systemd.md.
func ExpandSystemdPath(p string) (string, error) {
	parts := strings.Split(p, ":")
	if len(parts) != 3 {
		return "", fmt.Errorf("cannot use cgroup path %q: it is not of the form slice:prefix:name: %w", p, errdefs.ErrInvalidArgument)
	}
	slice, prefix, name := parts[0], parts[1], parts[2]
	if slice == "" {
		slice = "system.slice"
	}
	dir, err := expandSlice(slice)
	if err != nil {
		return "", fmt.Errorf("cannot use cgroup path %q: %w", p, err)
	}
	unit := name
	if !strings.HasSuffix(name, ".slice") {
		unit = name + ".scope"
		if prefix != "" {
			unit = prefix + "-" + unit
		}
	}
	if name == "" || strings.Contains(unit, "/") {
		return "", fmt.Errorf("cannot use cgroup path %q: invalid unit name %q: %w", p, unit, errdefs.ErrInvalidArgument)
	}
	return path.Join(dir, unit), nil
}

// expandSlice returns the directory of a slice unit: each dash-separated prefix is a slice, too.
func expandSlice(slice string) (string, error) {
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.Contains(name, "/") {
		return "", fmt.Errorf("invalid slice name %q: %w", slice, errdefs.ErrInvalidArgument)
	}
	if name == "-" {
		return "/", nil
	}
	levels := strings.Split(name, "-")
	dir := "/"
	for i, level := range levels {
		if level == "" {
			return "", fmt.Errorf("invalid slice name %q: %w", slice, errdefs.ErrInvalidArgument)
		}
		dir = path.Join(dir, strings.Join(levels[:i+1], "-")+".slice")
	}
	return dir, nil
}

// procCgroup is a line of /proc/<pid>/cgroup (cgroups(7)).
type procCgroup struct {
	id          int
	controllers []string // empty for v2
	path        string
	deleted     bool // the cgroup was removed; the process is dying in it
}

func (c *procCgroup) unified() bool {
	return c.id == 0 && len(c.controllers) == 0
}

func (c procCgroup) same(other procCgroup) bool { return c.id == other.id && c.path == other.path }

func parseProcCgroup(file, text string) ([]procCgroup, error) {
	var lines []procCgroup
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return nil, fmt.Errorf("cannot parse %s: invalid line %q", file, line)
		}
		id, err := strconv.Atoi(parts[0])
		if err != nil {
			return nil, fmt.Errorf("cannot parse %s: line %q: %w", file, line, err)
		}
		c := procCgroup{id: id}
		if parts[1] != "" {
			c.controllers = strings.Split(parts[1], ",")
		}
		c.path, c.deleted = strings.CutSuffix(parts[2], " (deleted)")
		lines = append(lines, c)
	}
	return lines, nil
}

// mount has the fields that are needed of a line of /proc/<pid>/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	root, mountpoint, fstype, options string
}

// parseMount parses a line; false if it is malformed. Options are those of the superblock, which name v1's
// controllers.
func parseMount(line string) (mount, bool) {
	before, after, ok := strings.Cut(line, " - ")
	fields, tail := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 6 || len(tail) < 3 {
		return mount{}, false
	}
	return mount{root: unescape(fields[3]), mountpoint: unescape(fields[4]), fstype: tail[0], options: tail[len(tail)-1]}, true
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash. They are rare, and a Replacer is
// large, so it is made only if it is needed.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
