package cgroups

import (
	"os"
	"testing"
)

func TestAnnounceMoveMovesNothing(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may move processes")
	}
	read := func() string {
		text, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	before := read()
	if err := AnnounceMove(); err != nil {
		t.Fatal(err)
	}
	if after := read(); after != before {
		t.Errorf("the process was in\n%sand is in\n%s", before, after)
	}
}

func TestOwnCgroup(t *testing.T) {
	v1 := &layout{v1: []hierarchy{
		{mountpoint: "/sys/fs/cgroup/cpu", root: "/", controllers: []string{"cpu", "cpuacct"}},
		{mountpoint: "/sys/fs/cgroup/pids", root: "/outer", controllers: []string{"pids"}},
	}}
	v2 := &layout{unified: &hierarchy{mountpoint: "/sys/fs/cgroup", root: "/"}}
	inner := &layout{unified: &hierarchy{mountpoint: "/sys/fs/cgroup", root: "/outer"}}
	for _, tc := range []struct {
		name, text, want string // want is empty for an error
		layout           *layout
	}{
		{"v1", "3:pids:/x\n2:cpu,cpuacct:/a/b\n0::/u\n", "/sys/fs/cgroup/cpu/a/b", v1},
		{"v1, the root", "2:cpu,cpuacct:/\n", "/sys/fs/cgroup/cpu", v1},
		{"v1, in another hierarchy", "3:pids:/outer/x\n", "/sys/fs/cgroup/pids/x", v1},
		{"v1, outside", "3:pids:/outerx\n2:memory:/\n", "", v1},
		{"v2", "0::/system.slice/containerd.service\n", "/sys/fs/cgroup/system.slice/containerd.service", v2},
		{"v2, the root", "0::/\n", "/sys/fs/cgroup", v2},
		{"v2, removed", "0::/a (deleted)\n", "", v2},
		{"v2, outside of the namespace", "0::/../a\n", "", v2},
		{"v2, below what is mounted", "0::/outer/a\n", "/sys/fs/cgroup/a", inner},
		{"v2, what is mounted", "0::/outer\n", "/sys/fs/cgroup", inner},
	} {
		lines, err := parseProcCgroup("cgroup", tc.text)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := tc.layout.own(lines); got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s: got %q and error %v, want %q", tc.name, got, err, tc.want)
		}
	}
}
