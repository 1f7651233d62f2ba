package cgroups

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
)

func TestCreateAppliesLimitsToTheKernelV2(t *testing.T) {
	l := v2Memory(t)
	c := newCgroup(t, l, "limits/sub", `{
		"cpu": {"shares": 1024, "quota": 50000, "period": 20000, "cpus": "0", "mems": "0"},
		"memory": {"limit": 67108864, "reservation": 33554432, "swap": 134217728},
		"pids": {"limit": 10},
		"unified": {"memory.high": "50331648", "memory.oom.group": "1"}}`)
	check := func(want map[string]string) {
		t.Helper()
		for file, value := range want {
			if got := content(t, c.Paths()[0], file); got != value {
				t.Errorf("%s is %s, want %s", file, got, value)
			}
		}
	}
	check(map[string]string{
		"cpu.weight": "100", "cpu.max": "50000 20000", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "10",
		"memory.max": "67108864", "memory.low": "33554432", "memory.high": "50331648", "memory.oom.group": "1",
	})
	hasSwap := exists(filepath.Join(c.Paths()[0], "memory.swap.max"))
	if hasSwap {
		check(map[string]string{"memory.swap.max": "67108864"})
	}

	// The first limit is above the old one of memory and swap, the second one below.
	for _, limits := range [][2]string{{"268435456", "536870912"}, {"8388608", "16777216"}} {
		if err := c.Update(resources(`{"memory": {"limit": ` + limits[0] + `, "swap": ` + limits[1] + `}}`)); err != nil {
			t.Fatal(err)
		}
		check(map[string]string{"memory.max": limits[0]})
	}
	if hasSwap {
		check(map[string]string{"memory.swap.max": "8388608"})
	}

	// What is not given stays.
	if err := c.Update(resources(`{"cpu": {"period": 40000}}`)); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{"cpu.max": "50000 40000", "cpu.weight": "100", "pids.max": "10"})
	if err := c.Update(resources(`{"cpu": {"quota": -1}, "memory": {"limit": -1}, "pids": {"limit": -1}}`)); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{"cpu.max": "max 40000", "memory.max": "max", "pids.max": "max"})
	if hasSwap {
		check(map[string]string{"memory.swap.max": "max"})
	}

	if err := c.Update(resources(`{"pids": {"limit": 7}}`)); err != nil {
		t.Fatal(err)
	}
	m, err := c.Stat()
	if err != nil {
		t.Fatal(err)
	}
	stats := m.(*v2.Metrics)
	if stats.Pids.GetLimit() != 7 || stats.Memory.GetUsageLimit() != math.MaxUint64 || stats.CPU == nil || stats.MemoryEvents == nil || stats.Io == nil {
		t.Errorf("stats: %v", stats)
	}
	err = c.Update(resources(`{"cpu": {"cpus": "99999"}}`))
	if err == nil || !strings.Contains(err.Error(), "cpuset.cpus") || !strings.Contains(err.Error(), "99999") {
		t.Errorf("invalid cpuset: got %v", err)
	}
}

func TestCreateOnTheKernelCleansUpAfterErrorV2(t *testing.T) {
	l := v2Memory(t)
	if _, err := l.create("/"+prefix()+"half/made", resources(`{"cpu": {"cpus": "99999"}}`)); err == nil {
		t.Fatal("no error for an impossible cpuset")
	}
	if path := filepath.Join(l.unified.mountpoint, prefix()+"half"); exists(path) {
		t.Errorf("%s is left", path)
	}
}
