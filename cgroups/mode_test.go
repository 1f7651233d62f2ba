package cgroups

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	systemdHybrid = `23 1 8:1 / / rw - ext4 /dev/sda rw
30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw shared:13 - cgroup cgroup rw,memory
`
	unifiedOnly = "30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)

func TestLayout(t *testing.T) {
	hybrid := []hierarchy{
		{mountpoint: "/sys/fs/cgroup/systemd", root: "/", controllers: []string{"name=systemd"}},
		{mountpoint: "/sys/fs/cgroup/cpu,cpuacct", root: "/", controllers: []string{"cpu", "cpuacct"}},
		{mountpoint: "/sys/fs/cgroup/memory", root: "/", controllers: []string{"memory"}},
	}
	for name, c := range map[string]struct {
		mountinfo string
		isUnified bool
		unified   *hierarchy
		v1        []hierarchy
		hybrid    string
	}{
		"hybrid is v1": {mountinfo: systemdHybrid, v1: hybrid, hybrid: "/sys/fs/cgroup/unified"},
		"unified":      {mountinfo: unifiedOnly, isUnified: true, unified: &hierarchy{mountpoint: "/sys/fs/cgroup", root: "/"}},
		"unified with another cgroup2 mount before and after": {
			mountinfo: "9 1 0:26 / /mnt/a rw - cgroup2 cgroup2 rw\n" + unifiedOnly + "9 1 0:26 / /mnt/b rw - cgroup2 cgroup2 rw\n",
			isUnified: true, unified: &hierarchy{mountpoint: "/sys/fs/cgroup", root: "/"},
		},
		"only a cgroup2 mount elsewhere": {
			mountinfo: "9 1 0:26 /x /run/cgroup\\0402 rw - cgroup2 none rw\n",
			unified:   &hierarchy{mountpoint: "/run/cgroup 2", root: "/x"},
		},
		"an overlay of many layers": {
			mountinfo: "40 1 0:41 / /m rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layers/0123456789:", 20_000) + "\n" + systemdHybrid, v1: hybrid, hybrid: "/sys/fs/cgroup/unified",
		},
		"a hierarchy that is mounted twice": {
			mountinfo: "9 1 0:30 /docker/x /var/lib/x/memory rw - cgroup cgroup rw,memory\n" + systemdHybrid, v1: []hierarchy{hybrid[2], hybrid[0], hybrid[1]}, hybrid: "/sys/fs/cgroup/unified",
		},
	} {
		l, err := newLayout(strings.NewReader(c.mountinfo), c.isUnified)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !reflect.DeepEqual(l.unified, c.unified) || !reflect.DeepEqual(l.v1, c.v1) || l.hybrid != c.hybrid {
			t.Errorf("%s: got %+v, %+v and %q, want %+v, %+v and %q", name, l.unified, l.v1, l.hybrid, c.unified, c.v1, c.hybrid)
		}
	}
	for _, mountinfo := range []string{"", "nonsense\n", "32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"} {
		if _, err := newLayout(strings.NewReader(mountinfo), false); !errdefs.IsNotImplemented(err) {
			t.Errorf("%q: got %v, want not implemented", mountinfo, err)
		}
	}
}

func TestPathBelowMount(t *testing.T) {
	for _, c := range []struct {
		root, path, want string
	}{
		{"/", "/a/b", "/a/b"},
		{"/", "/", ""},
		{"/", "/../a", ""},                 // outside of our namespace
		{"/docker/x", "/docker/x/a", "/a"}, // inside a container without a cgroup namespace
		{"/docker/x", "/docker/x", ""},
		{"/docker/x", "/docker/xy/a", ""},
		{"/docker/x", "/other", ""},
		{"/..", "/../a", "/a"}, // the mount was made in the namespace above ours
		{"/..", "/../../a", ""},
		{"/..", "/a", ""},
	} {
		h := hierarchy{root: c.root}
		got, ok := h.below(c.path)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s below %s: got %q, %v; want %q", c.path, c.root, got, ok, c.want)
		}
	}
}

func TestOfProcessV1(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"proc/7/cgroup": "8:rdma:/session\n7:blkio:/session/below\n5:memory:/m/c\n4:cpu,cpuacct:/p\n3:freezer:/\n2:name=systemd:/s\n1:pids:/../x\n0::/u\n",
		"proc/8/cgroup": "8:rdma:/session\n5:memory:/\n0::/u\n",
		"proc/9/cgroup": "garbage\n",
		// The caller's, in which the process is by the hierarchy "rdma", and one beside it by "blkio".
		"proc/self/cgroup": "8:rdma:/session\n7:blkio:/session\n6:perf_event:/session\n2:name=systemd:/\n0::/\n",
	})
	l := fakeV1(root, "cpu,cpuacct", "memory", "freezer", "name=systemd", "pids", "rdma", "blkio")
	c, err := l.ofProcess(7)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(root, "cpu,cpuacct/p"), filepath.Join(root, "memory/m/c"), filepath.Join(root, "name=systemd/s"), filepath.Join(root, "blkio/session/below")}
	if got := c.Paths(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v: neither the root, nor the caller's, nor what is outside of the mounts", got, want)
	}
	if c.String() != "/m/c" {
		t.Errorf("got name %s", c)
	}
	if _, err := l.ofProcess(8); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process in the root, and in the caller's: %v", err)
	}
	if _, err := l.ofProcess(9); err == nil {
		t.Error("no error for an invalid file")
	}
	if _, err := l.ofProcess(10); !errdefs.IsNotFound(err) {
		t.Errorf("no such process: %v", err)
	}
}

func TestOfProcessV2(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"proc/7/cgroup":    "0::/a/b\n",
		"proc/8/cgroup":    "0::/\n",
		"proc/9/cgroup":    "0::/a (deleted)\n",
		"proc/10/cgroup":   "0::/../a\n",
		"proc/11/cgroup":   "0::/session\n",
		"proc/12/cgroup":   "0::/session/below\n",
		"proc/self/cgroup": "0::/session\n",
	})
	l := fakeV2(root)
	if c, err := l.ofProcess(7); err != nil || !reflect.DeepEqual(c.Paths(), []string{filepath.Join(root, "a/b")}) {
		t.Errorf("got %v, %v", c, err)
	}
	if _, err := l.ofProcess(8); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process in the root: %v", err)
	}
	if _, err := l.ofProcess(9); !errdefs.IsNotFound(err) {
		t.Errorf("a process in a removed cgroup: %v", err)
	}
	if _, err := l.ofProcess(10); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process outside of the namespace: %v", err)
	}
	if _, err := l.ofProcess(11); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a process in the caller's cgroup: %v", err)
	}
	if c, err := l.ofProcess(12); err != nil || c.String() != "/session/below" {
		t.Errorf("a process below the caller's cgroup: %v, %v", c, err)
	}
}

func TestLoadLeavesOutWhatIsMissing(t *testing.T) {
	root := fakeTree(t, map[string]string{"cpu/a/": "", "memory/": ""})
	l := fakeV1(root, "cpu", "memory")
	c, err := l.load("/a")
	if err != nil || !reflect.DeepEqual(c.Paths(), []string{filepath.Join(root, "cpu/a")}) {
		t.Errorf("got %v, %v", c, err)
	}
	if _, err := l.load("/b"); !errdefs.IsNotFound(err) {
		t.Errorf("nothing there: %v", err)
	}
	if _, err := fakeV2(root).load("/b"); !errdefs.IsNotFound(err) {
		t.Errorf("nothing there: %v", err)
	}
}

// TestCreateRemovesWhatItMade is about directories that were there before as well: they stay.
func TestCreateRemovesWhatItMade(t *testing.T) {
	root := fakeTree(t, map[string]string{"cpu/a/": "", "memory/": ""})
	l := fakeV1(root, "cpu", "memory")
	if _, err := l.create("/a/b/c", resources(`{"memory": {"limit": 1}}`)); err == nil {
		t.Fatal("no error although the file is missing")
	}
	for path, want := range map[string]bool{"cpu/a": true, "cpu/a/b": false, "memory/a": false} {
		if _, err := os.Stat(filepath.Join(root, path)); (err == nil) != want {
			t.Errorf("%s exists: %v, want %v", path, err == nil, want)
		}
	}
	v2 := fakeTree(t, map[string]string{"a/": ""})
	if _, err := fakeV2(v2).create("/a/b/c", resources(`{"pids": {"limit": 1}}`)); err == nil {
		t.Fatal("no error although the file is missing")
	}
	if _, err := os.Stat(filepath.Join(v2, "a/b")); err == nil {
		t.Error("a/b is left")
	}
}
