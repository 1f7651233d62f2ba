package cgroups

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestExpandSystemdPath(t *testing.T) {
	for path, want := range map[string]string{
		"kubepods-burstable-pod1.slice:cri-containerd:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
		"kubepods.slice:cri-containerd:abc":                "/kubepods.slice/cri-containerd-abc.scope",
		"-.slice:a:b":                                      "/a-b.scope",
		":a:b":                                             "/system.slice/a-b.scope",
		"a.slice::b":                                       "/a.slice/b.scope",
		"a.slice:p:a-b.slice":                              "/a.slice/a-b.slice",
	} {
		got, err := ExpandSystemdPath(path)
		if got != want || err != nil {
			t.Errorf("%s: got %q, %v; want %q", path, got, err, want)
		}
	}
}

func TestExpandSystemdPathRefuses(t *testing.T) {
	for _, path := range []string{
		"", "/a/b", "a.slice:b", "a.slice:b:c:d", "a:b:c", ".slice:b:c", "a--b.slice:p:n", "-a.slice:p:n", "a-.slice:p:n",
		"a/b.slice:p:n", "a.slice:p:", "a.slice:p:../n", "a.slice:../p:n", "a.slice:p:x/y.slice",
	} {
		if got, err := ExpandSystemdPath(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %q, %v", path, got, err)
		} else if !strings.Contains(err.Error(), path) {
			t.Errorf("%q is not in the error: %v", path, err)
		}
	}
}

func TestResolvePath(t *testing.T) {
	for _, c := range []struct {
		path          string
		plain, asUnit string // without and with systemd; empty for an invalid path
	}{
		{"/a/b", "/a/b", "/a/b"},
		{"a/b", "/a/b", "/a/b"},
		{"name", "/name", "/name"},
		{"/a/b:c:d", "/a/b:c:d", "/a/b:c:d"},
		{"a/b.slice:c:d", "/a/b.slice:c:d", "/a/b.slice:c:d"},
		{"a:b", "/a:b", "/a:b"},
		{"a:b:c", "/a:b:c", ""},
		{"a:b:c:d", "/a:b:c:d", "/a:b:c:d"},
		{"pods-a.slice:cri-containerd:x", "/pods.slice/pods-a.slice/cri-containerd-x.scope", "/pods.slice/pods-a.slice/cri-containerd-x.scope"},
		{":cri-containerd:x", "/system.slice/cri-containerd-x.scope", "/system.slice/cri-containerd-x.scope"},
		{"a--b.slice:p:x", "", ""},
		{"pods-a.slice", "/pods.slice/pods-a.slice", "/pods.slice/pods-a.slice"},
		{"/pods.slice/pods-a.slice", "/pods.slice/pods-a.slice", "/pods.slice/pods-a.slice"},
		{"-.slice", "", ""},
		{"a--b.slice", "", ""},
		{"", "", ""},
		{"../a", "", ""},
		{"/", "", ""},
	} {
		for systemd, want := range map[bool]string{false: c.plain, true: c.asUnit} {
			got, err := ResolvePath(c.path, systemd)
			if got != want || (err == nil) != (want != "") || (err != nil && !errdefs.IsInvalidArgument(err)) {
				t.Errorf("%q, systemd %t: got %q, %v; want %q", c.path, systemd, got, err, want)
			}
		}
	}
}

func TestCleanPath(t *testing.T) {
	for path, want := range map[string]string{"a/b": "/a/b", "/a/b": "/a/b", "//a/./b/": "/a/b"} {
		if got, err := cleanPath(path); got != want || err != nil {
			t.Errorf("%q: got %q, %v; want %q", path, got, err, want)
		}
	}
	for _, path := range []string{"", "/", ".", "..", "/..", "a/../..", "/a/../b"} {
		if got, err := cleanPath(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: got %q, %v; want an invalid argument", path, got, err)
		}
	}
}

func TestParseProcCgroup(t *testing.T) {
	got, err := parseProcCgroup("f", "3:cpu,cpuacct:/a:b\n2:name=systemd:/\n0::/x (deleted)\n")
	want := []procCgroup{
		{id: 3, controllers: []string{"cpu", "cpuacct"}, path: "/a:b"},
		{id: 2, controllers: []string{"name=systemd"}, path: "/"},
		{id: 0, path: "/x", deleted: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"x", "1:cpu", "a:cpu:/", "1:cpu:relative"} {
		if _, err := parseProcCgroup("/proc/7/cgroup", bad); err == nil || !strings.Contains(err.Error(), "/proc/7/cgroup") {
			t.Errorf("%q: got %v, want an error with the file's name", bad, err)
		}
	}
}
