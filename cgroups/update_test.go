package cgroups

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func resources(text string) *specs.LinuxResources {
	r := &specs.LinuxResources{}
	if err := json.Unmarshal([]byte(text), r); err != nil {
		panic(err)
	}
	return r
}

// v1Defaults and v2Defaults are what a new cgroup's files say.
var (
	v1Defaults = map[string]string{
		"cpu/c/cpu.shares":                         "1024",
		"cpu/c/cpu.cfs_quota_us":                   "-1",
		"cpu/c/cpu.cfs_period_us":                  "100000",
		"cpu/c/cpu.cfs_burst_us":                   "0",
		"cpu/c/cpu.idle":                           "0",
		"cpu/c/cpu.rt_period_us":                   "1000000",
		"cpu/c/cpu.rt_runtime_us":                  "0",
		"cpuset/c/cpuset.cpus":                     "0-1",
		"cpuset/c/cpuset.mems":                     "0",
		"memory/c/memory.limit_in_bytes":           "9223372036854771712",
		"memory/c/memory.memsw.limit_in_bytes":     "9223372036854771712",
		"memory/c/memory.soft_limit_in_bytes":      "9223372036854771712",
		"memory/c/memory.kmem.tcp.limit_in_bytes":  "9223372036854771712",
		"memory/c/memory.usage_in_bytes":           "4096",
		"memory/c/memory.swappiness":               "60",
		"memory/c/memory.oom_control":              "oom_kill_disable 0",
		"pids/c/pids.max":                          "max",
		"blkio/c/blkio.bfq.weight":                 "100",
		"blkio/c/blkio.bfq.weight_device":          "",
		"blkio/c/blkio.throttle.read_bps_device":   "",
		"blkio/c/blkio.throttle.write_bps_device":  "",
		"blkio/c/blkio.throttle.read_iops_device":  "",
		"blkio/c/blkio.throttle.write_iops_device": "",
		"hugetlb/c/hugetlb.2MB.limit_in_bytes":     "1",
		"rdma/c/rdma.max":                          "",
		"net_cls/c/net_cls.classid":                "0",
		"net_prio/c/net_prio.ifpriomap":            "lo 0",
	}
	v2Defaults = map[string]string{
		"c/cpu.weight":           "100",
		"c/cpu.max":              "max 100000",
		"c/cpu.max.burst":        "0",
		"c/cpu.idle":             "0",
		"c/cpuset.cpus":          "",
		"c/cpuset.mems":          "",
		"c/memory.max":           "max",
		"c/memory.low":           "0",
		"c/memory.high":          "max",
		"c/memory.swap.max":      "max",
		"c/memory.current":       "4096",
		"c/pids.max":             "max",
		"c/io.bfq.weight":        "default 100",
		"c/io.max":               "",
		"c/hugetlb.2MB.max":      "max",
		"c/hugetlb.2MB.rsvd.max": "max",
		"c/rdma.max":             "",
	}
)

// checkUpdate applies resources to fake files and compares all of them with the defaults and what should differ.
func checkUpdate(t *testing.T, l func(root string) *layout, defaults, change map[string]string, text string) {
	t.Helper()
	root := fakeTree(t, defaults)
	c, err := l(root).load("/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Update(resources(text)); err != nil {
		t.Errorf("%s: %v", text, err)
		return
	}
	want := maps.Clone(defaults)
	maps.Copy(want, change)
	for file, value := range want {
		if got := content(t, root, file); got != value {
			t.Errorf("%s: %s is %q, want %q", text, file, got, value)
		}
	}
}

func fullV1(root string) *layout {
	return fakeV1(root, "cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "rdma", "net_cls", "net_prio")
}

func TestUpdateV1(t *testing.T) {
	for text, change := range map[string]map[string]string{
		`{}`: nil,
		`{"cpu": {"shares": 0, "quota": 0, "period": 0}, "memory": {"limit": 0, "swap": 0}, "pids": {}}`: nil,
		`{"memory": {"kernel": 5, "disableOOMKiller": false}}`:                                           {"memory/c/memory.oom_control": "0"},
		`{"devices": [{"allow": false, "access": "rwm"}]}`:                                               nil,
		`{"cpu": {"shares": 2, "quota": 50000, "period": 20000, "burst": 5, "idle": 1}}`: {
			"cpu/c/cpu.shares": "2", "cpu/c/cpu.cfs_quota_us": "50000", "cpu/c/cpu.cfs_period_us": "20000", "cpu/c/cpu.cfs_burst_us": "5", "cpu/c/cpu.idle": "1",
		},
		`{"cpu": {"quota": -1, "realtimePeriod": 9, "realtimeRuntime": 8}}`: {
			"cpu/c/cpu.cfs_quota_us": "-1", "cpu/c/cpu.rt_period_us": "9", "cpu/c/cpu.rt_runtime_us": "8",
		},
		`{"cpu": {"cpus": "1", "mems": "0"}}`: {"cpuset/c/cpuset.cpus": "1"},
		`{"memory": {"limit": 1000, "reservation": 500, "swap": 2000, "swappiness": 0, "disableOOMKiller": true, "kernelTCP": 7}}`: {
			"memory/c/memory.limit_in_bytes": "1000", "memory/c/memory.soft_limit_in_bytes": "500", "memory/c/memory.memsw.limit_in_bytes": "2000",
			"memory/c/memory.swappiness": "0", "memory/c/memory.oom_control": "1", "memory/c/memory.kmem.tcp.limit_in_bytes": "7",
		},
		`{"memory": {"limit": -1}}`: {"memory/c/memory.limit_in_bytes": "-1", "memory/c/memory.memsw.limit_in_bytes": "-1"},
		`{"pids": {"limit": 5}}`:    {"pids/c/pids.max": "5"},
		`{"pids": {"limit": 0}}`:    {"pids/c/pids.max": "1"},
		`{"pids": {"limit": -1}}`:   {"pids/c/pids.max": "max"},
		`{"blockIO": {"weight": 200, "weightDevice": [{"major": 8, "minor": 1, "weight": 300}]}}`: {
			"blkio/c/blkio.bfq.weight": "200", "blkio/c/blkio.bfq.weight_device": "8:1 300",
		},
		`{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "rate": 1}], "throttleWriteBpsDevice": [{"major": 8, "rate": 2}],
		  "throttleReadIOPSDevice": [{"major": 8, "rate": 3}], "throttleWriteIOPSDevice": [{"major": 8, "rate": 0}]}}`: {
			"blkio/c/blkio.throttle.read_bps_device": "8:0 1", "blkio/c/blkio.throttle.write_bps_device": "8:0 2",
			"blkio/c/blkio.throttle.read_iops_device": "8:0 3", "blkio/c/blkio.throttle.write_iops_device": "8:0 0",
		},
		`{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}`: {"hugetlb/c/hugetlb.2MB.limit_in_bytes": "4194304"},
		`{"rdma": {"mlx": {"hcaHandles": 3, "hcaObjects": 4}}}`:       {"rdma/c/rdma.max": "mlx hca_handle=3 hca_object=4"},
		`{"network": {"classID": 7, "priorities": [{"name": "eth0", "priority": 2}]}}`: {
			"net_cls/c/net_cls.classid": "7", "net_prio/c/net_prio.ifpriomap": "eth0 2",
		},
	} {
		checkUpdate(t, fullV1, v1Defaults, change, text)
	}
}

func TestUpdateV2(t *testing.T) {
	for text, change := range map[string]map[string]string{
		`{}`: nil,
		`{"cpu": {"shares": 0, "quota": 0, "period": 0}, "memory": {"limit": 0, "swap": 0, "kernel": 1, "disableOOMKiller": false}}`: nil,
		`{"cpu": {"shares": 1024, "quota": 50000, "period": 20000, "burst": 5, "idle": 1, "cpus": "0", "mems": "0"}}`: {
			"c/cpu.weight": "100", "c/cpu.max": "50000 20000", "c/cpu.max.burst": "5", "c/cpu.idle": "1", "c/cpuset.cpus": "0", "c/cpuset.mems": "0",
		},
		`{"cpu": {"quota": -1}}`:                                                          {"c/cpu.max": "max"},
		`{"cpu": {"quota": 7000}}`:                                                        {"c/cpu.max": "7000"}, // the kernel keeps the period
		`{"cpu": {"period": 50000}}`:                                                      {"c/cpu.max": "max 50000"},
		`{"memory": {"limit": 1000, "reservation": 500}}`:                                 {"c/memory.max": "1000", "c/memory.low": "500"},
		`{"memory": {"limit": 1000, "swap": 1000}}`:                                       {"c/memory.max": "1000", "c/memory.swap.max": "0"},
		`{"memory": {"limit": 1000, "swap": 2500}}`:                                       {"c/memory.max": "1000", "c/memory.swap.max": "1500"},
		`{"memory": {"limit": 1000, "swap": -1}}`:                                         {"c/memory.max": "1000", "c/memory.swap.max": "max"},
		`{"memory": {"limit": -1, "reservation": -1}}`:                                    {"c/memory.max": "max", "c/memory.low": "max", "c/memory.swap.max": "max"},
		`{"memory": {"swap": 2500}}`:                                                      {"c/memory.swap.max": "2500"},
		`{"pids": {"limit": 0}}`:                                                          {"c/pids.max": "1"},
		`{"pids": {"limit": 9}}`:                                                          {"c/pids.max": "9"},
		`{"pids": {"limit": -1}}`:                                                         {"c/pids.max": "max"},
		`{"blockIO": {"weight": 200}}`:                                                    {"c/io.bfq.weight": "200"},
		`{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "rate": 1}]}}`:               {"c/io.max": "8:0 rbps=1"},
		`{"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "rate": 0}]}}`:             {"c/io.max": "8:0 wiops=max"},
		`{"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}`:                           {"c/hugetlb.2MB.max": "0", "c/hugetlb.2MB.rsvd.max": "0"},
		`{"rdma": {"mlx": {"hcaObjects": 4}, "other": {}}}`:                               {"c/rdma.max": "mlx hca_object=4"},
		`{"memory": {"limit": 1000}, "unified": {"memory.max": "5", "memory.high": "4"}}`: {"c/memory.max": "5", "c/memory.high": "4"},
	} {
		checkUpdate(t, fakeV2, v2Defaults, change, text)
	}
}

func TestUpdateV2WithoutBFQ(t *testing.T) {
	files := map[string]string{"c/io.weight": "default 100"}
	for text, want := range map[string]string{
		`{"blockIO": {"weight": 10}}`:                                              "1",
		`{"blockIO": {"weight": 1000}}`:                                            "10000",
		`{"blockIO": {"weightDevice": [{"major": 8, "minor": 2, "weight": 505}]}}`: "8:2 5000",
	} {
		checkUpdate(t, fakeV2, files, map[string]string{"c/io.weight": want}, text)
	}
}

func TestUpdateV2WithoutSwap(t *testing.T) {
	files := map[string]string{"c/memory.max": "max"}
	for _, text := range []string{`{"memory": {"limit": 10, "swap": 10}}`, `{"memory": {"limit": 10, "swap": -1}}`} {
		checkUpdate(t, fakeV2, files, map[string]string{"c/memory.max": "10"}, text)
	}
}

// A swap limit without a memory limit counts from the one in force.
func TestUpdateV2SwapAlone(t *testing.T) {
	files := map[string]string{"c/memory.max": "1000", "c/memory.swap.max": "0"}
	checkUpdate(t, fakeV2, files, map[string]string{"c/memory.swap.max": "200"}, `{"memory": {"swap": 1200}}`)
}

func TestUpdateErrorNamesResourceValueAndFile(t *testing.T) {
	v1 := fakeTree(t, map[string]string{"memory/c/memory.usage_in_bytes": "4096", "cpu/c/": ""})
	v2 := fakeTree(t, map[string]string{"c/memory.max": "max", "c/memory.current": "4096"})
	for _, c := range []struct {
		layout *layout
		text   string
		words  []string
		is     func(error) bool
	}{
		{fakeV1(v1, "memory", "cpu"), `{"cpu": {"shares": 77}}`, []string{"cpu shares", `"77"`, filepath.Join(v1, "cpu/c/cpu.shares")}, nil},
		{fakeV1(v1, "memory", "cpu"), `{"pids": {"limit": 77}}`, []string{"pids limit", `"77"`, "pids.max"}, errdefs.IsNotImplemented},
		{fakeV1(v1, "memory", "cpu"), `{"unified": {"memory.high": "77"}}`, []string{"memory.high", `"77"`}, errdefs.IsNotImplemented},
		{fakeV1(v1, "memory"), `{"memory": {"limit": 77, "checkBeforeUpdate": true}}`, []string{"memory limit", "77", "4096"}, errdefs.IsFailedPrecondition},
		{fakeV2(v2), `{"memory": {"limit": 77, "checkBeforeUpdate": true}}`, []string{"memory limit", "77", "4096"}, errdefs.IsFailedPrecondition},
		{fakeV2(v2), `{"pids": {"limit": 77}}`, []string{"pids limit", `"77"`, filepath.Join(v2, "c/pids.max")}, nil},
		{fakeV2(v2), `{"cpu": {"realtimeRuntime": 77}}`, []string{"cpu realtime runtime", "77"}, errdefs.IsNotImplemented},
		{fakeV2(v2), `{"memory": {"swappiness": 77}}`, []string{"memory swappiness", "77"}, errdefs.IsNotImplemented},
		{fakeV2(v2), `{"memory": {"disableOOMKiller": true}}`, []string{"oom killer"}, errdefs.IsNotImplemented},
		{fakeV2(v2), `{"memory": {"limit": 100, "swap": 77}}`, []string{"swap", "77", "100"}, errdefs.IsInvalidArgument},
		{fakeV2(v2), `{"network": {"classID": 77}}`, []string{"network class id", "77"}, errdefs.IsNotImplemented},
		{fakeV2(v2), `{"blockIO": {"leafWeight": 77}}`, []string{"leaf weight", "77"}, errdefs.IsNotImplemented},
		{fakeV2(v2), `{"unified": {"../x": "77"}}`, []string{"../x"}, errdefs.IsInvalidArgument},
		{fakeV2(v2), `{"unified": {"foo.bar": "77"}}`, []string{"foo.bar", `"77"`}, nil},
	} {
		cg, err := c.layout.load("/c")
		if err != nil {
			t.Fatal(err)
		}
		err = cg.Update(resources(c.text))
		if err == nil {
			t.Errorf("%s: no error", c.text)
			continue
		}
		for _, word := range append(c.words, "/c") {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %q is not in the error: %v", c.text, word, err)
			}
		}
		if c.is != nil && !c.is(err) {
			t.Errorf("%s: wrong kind of error: %v", c.text, err)
		}
	}
}

func TestCreateV2EnablesControllersInParentsOnly(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"cgroup.controllers":         "cpu memory pids",
		"cgroup.subtree_control":     "cpu",
		"a/cgroup.controllers":       "cpu memory",
		"a/cgroup.subtree_control":   "cpu memory",
		"a/b/cgroup.controllers":     "memory",
		"a/b/cgroup.subtree_control": "",
	})
	if _, err := fakeV2(root).create("/a/b", nil); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"cgroup.subtree_control": "+memory +pids", "a/cgroup.subtree_control": "cpu memory", "a/b/cgroup.subtree_control": "",
	} {
		if got := content(t, root, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

func TestCreateV1FillsCpusets(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"cpuset/cpuset.cpus": "0-3\n", "cpuset/cpuset.mems": "0\n",
		"cpuset/a/cpuset.cpus": "1\n", "cpuset/a/cpuset.mems": "\n",
		"cpuset/a/b/cpuset.cpus": "\n", "cpuset/a/b/cpuset.mems": "\n",
	})
	if _, err := fakeV1(root, "cpuset").create("/a/b", nil); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"a/cpuset.cpus": "1", "a/cpuset.mems": "0", "a/b/cpuset.cpus": "1", "a/b/cpuset.mems": "0"} {
		if got := content(t, root, "cpuset", file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}
