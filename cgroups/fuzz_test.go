package cgroups

import (
	"path"
	"strings"
	"testing"
)

// FuzzMountinfo takes any mountinfo and any /proc/<pid>/cgroup. Whatever they say, a process's cgroup is below a
// mount point, and is never the root of a hierarchy.
func FuzzMountinfo(f *testing.F) {
	for _, mountinfo := range []string{
		"30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
		"31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n32 24 0:28 /x\\040y /mnt rw - cgroup cgroup rw,cpu,cpuacct\n",
		"33 24 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n34 24 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
		"35 24 0:41 / /m rw - overlay overlay rw\n", " - cgroup", "a b c d e f - cgroup2 x y",
	} {
		for _, cgroup := range []string{"0::/a/b\n", "5:cpu,cpuacct:/x y/c\n4:memory:/kubepods/pod (deleted)\n1:name=systemd:/\n", "0::/../outside\n", "x", "::"} {
			f.Add(mountinfo, cgroup, true)
			f.Add(mountinfo, cgroup, false)
		}
	}
	f.Fuzz(func(t *testing.T, mountinfo, cgroup string, unified bool) {
		l, err := newLayout(strings.NewReader(mountinfo), unified)
		if err != nil {
			return
		}
		if (l.unified == nil) == (len(l.v1) == 0) {
			t.Fatalf("it is neither v1 nor v2, or both: %+v", l)
		}
		lines, err := parseProcCgroup("cgroup", cgroup)
		if err != nil {
			return
		}
		tree, _, err := l.of(lines)
		if err != nil {
			return
		}
		for _, dir := range tree.dirs() {
			below := false
			for _, h := range append(l.v1, hierarchyOf(l)...) {
				rest, ok := strings.CutPrefix(dir, h.mountpoint)
				below = below || ok && path.Clean("/"+rest) != "/" && !strings.Contains(rest+"/", "/../")
			}
			if !below {
				t.Errorf("%q is not below a mount point of %+v", dir, l)
			}
		}
	})
}

func hierarchyOf(l *layout) []hierarchy {
	if l.unified == nil {
		return nil
	}
	return []hierarchy{*l.unified}
}

// FuzzPath takes any linux.cgroupsPath of a spec. What is accepted names a cgroup below the root, and nothing else.
func FuzzPath(f *testing.F) {
	for _, p := range []string{
		"", "/", "/a/b", "a/b", "a/../b", "x.slice:cri-containerd:id", ":p:n", "a-b-c.slice", "-.slice:p:n", "a:b", "a.slice:b/c:d",
		"kubepods-burstable-pod1.slice:cri-containerd:abc", "x--y.slice:p:n", "a.slice:..:..",
	} {
		f.Add(p, true)
		f.Add(p, false)
	}
	f.Fuzz(func(t *testing.T, p string, systemd bool) {
		got, err := ResolvePath(p, systemd)
		if err != nil {
			return
		}
		if got != path.Clean("/"+got) || got == "/" {
			t.Errorf("%q becomes %q", p, got)
		}
	})
}

// FuzzCounters takes any content of a file of "key number" lines, such as memory.events.
func FuzzCounters(f *testing.F) {
	f.Add("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\n", "oom_kill")
	f.Add("oom_kill -1\n", "oom_kill")
	f.Add("oom_kill 18446744073709551616", "oom_kill")
	f.Add("oom_kill", "oom_kill")
	f.Fuzz(func(t *testing.T, text, key string) {
		if _, found, err := keyedValue(text, key); found && (err != nil || !strings.Contains(text, key+" ")) {
			t.Errorf("%q is found in %q, error %v", key, text, err)
		}
	})
}
