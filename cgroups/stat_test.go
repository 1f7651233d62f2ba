package cgroups

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
)

func checkStat(t *testing.T, l *layout, want proto.Message) {
	t.Helper()
	c, err := l.load("/c")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if m, ok := got.(proto.Message); !ok || !proto.Equal(m, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestStatV1(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"cpu/c/cpu.stat":                               "nr_periods 1\nnr_throttled 2\nthrottled_time 3\nnr_bursts 4\n",
		"cpuacct/c/cpuacct.usage":                      "1000\n",
		"cpuacct/c/cpuacct.usage_percpu":               "600 400 \n",
		"cpuacct/c/cpuacct.stat":                       "user 5\nsystem 7\n",
		"memory/c/memory.stat":                         "cache 1\nrss 2\ntotal_rss 22\ntotal_inactive_file 23\nhierarchical_memsw_limit 24\nnew_thing 9\n",
		"memory/c/memory.usage_in_bytes":               "11\n",
		"memory/c/memory.max_usage_in_bytes":           "12\n",
		"memory/c/memory.failcnt":                      "13\n",
		"memory/c/memory.limit_in_bytes":               "14\n",
		"memory/c/memory.kmem.usage_in_bytes":          "15\n",
		"memory/c/memory.kmem.tcp.failcnt":             "16\n",
		"memory/c/memory.oom_control":                  "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
		"pids/c/pids.current":                          "3\n",
		"pids/c/pids.max":                              "max\n",
		"hugetlb/c/hugetlb.2MB.usage_in_bytes":         "31\n",
		"hugetlb/c/hugetlb.2MB.max_usage_in_bytes":     "32\n",
		"hugetlb/c/hugetlb.2MB.failcnt":                "33\n",
		"rdma/c/rdma.current":                          "mlx hca_handle=1 hca_object=2\n",
		"rdma/c/rdma.max":                              "mlx hca_handle=max hca_object=9\n",
		"blkio/c/blkio.throttle.io_serviced":           "8:0 Read 41\n8:0 Total 41\n9:1 Read 5\nTotal 46\n",
		"blkio/c/blkio.throttle.io_service_bytes":      "8:0 Read 42\nTotal 42\n",
		"blkio/c/blkio.bfq.io_service_bytes_recursive": "Total 0\n",
		"proc/partitions":                              "major minor  #blocks  name\n\n   8        0   1000 sda\n",
	})
	checkStat(t, fakeV1(root, "cpu", "cpuacct", "memory", "pids", "hugetlb", "rdma", "blkio"), &v1.Metrics{
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: 1000, User: 50_000_000, Kernel: 70_000_000, PerCPU: []uint64{600, 400}},
			Throttling: &v1.Throttle{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3},
		},
		Memory: &v1.MemoryStat{
			Cache: 1, RSS: 2, TotalRSS: 22, TotalInactiveFile: 23, HierarchicalSwapLimit: 24,
			Usage: &v1.MemoryEntry{Usage: 11, Max: 12, Failcnt: 13, Limit: 14}, Swap: &v1.MemoryEntry{},
			Kernel: &v1.MemoryEntry{Usage: 15}, KernelTCP: &v1.MemoryEntry{Failcnt: 16},
		},
		MemoryOomControl: &v1.MemoryOomControl{UnderOom: 1, OomKill: 2},
		Pids:             &v1.PidsStat{Current: 3},
		Hugetlb:          []*v1.HugetlbStat{{Pagesize: "2MB", Usage: 31, Max: 32, Failcnt: 33}},
		Rdma: &v1.RdmaStat{
			Current: []*v1.RdmaEntry{{Device: "mlx", HcaHandles: 1, HcaObjects: 2}},
			Limit:   []*v1.RdmaEntry{{Device: "mlx", HcaHandles: math.MaxUint32, HcaObjects: 9}},
		},
		Blkio: &v1.BlkIOStat{
			IoServicedRecursive: []*v1.BlkIOEntry{
				{Device: "/dev/sda", Major: 8, Op: "Read", Value: 41},
				{Device: "/dev/sda", Major: 8, Op: "Total", Value: 41},
				{Major: 9, Minor: 1, Op: "Read", Value: 5},
			},
			IoServiceBytesRecursive: []*v1.BlkIOEntry{{Device: "/dev/sda", Major: 8, Op: "Read", Value: 42}},
		},
	})
}

func TestStatV1WithCFQ(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"blkio/c/blkio.sectors_recursive":         "8:0 6792\n",
		"blkio/c/blkio.io_serviced_recursive":     "8:0 Sync 4\n",
		"blkio/c/blkio.throttle.io_service_bytes": "8:0 Read 42\n",
		"proc/partitions":                         "\n",
	})
	checkStat(t, fakeV1(root, "blkio"), &v1.Metrics{Blkio: &v1.BlkIOStat{
		SectorsRecursive:    []*v1.BlkIOEntry{{Major: 8, Value: 6792}},
		IoServicedRecursive: []*v1.BlkIOEntry{{Major: 8, Op: "Sync", Value: 4}},
	}})
}

func TestStatLeavesOutWhatTheKernelLacks(t *testing.T) {
	checkStat(t, fakeV1(fakeTree(t, map[string]string{"cpu/c/": "", "memory/c/": "", "blkio/c/": ""}), "cpu", "memory", "blkio", "pids"), &v1.Metrics{})
	checkStat(t, fakeV2(fakeTree(t, map[string]string{"c/": ""})), &v2.Metrics{})
}

func TestStatV2(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"c/cpu.stat":            "usage_usec 1\nuser_usec 2\nsystem_usec 3\nnr_periods 4\nnr_throttled 5\nthrottled_usec 6\nnr_bursts 7\nburst_usec 8\ncore_sched.force_idle_usec 9\n",
		"c/cpu.pressure":        "some avg10=0.50 avg60=1.25 avg300=2.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
		"c/memory.stat":         "anon 1\nfile 2\nanon_thp 3\ninactive_file 4\nworkingset_refault_anon 5\npgfault 6\n",
		"c/memory.current":      "11\n",
		"c/memory.max":          "max\n",
		"c/memory.peak":         "13\n",
		"c/memory.swap.current": "14\n",
		"c/memory.swap.max":     "15\n",
		"c/memory.events":       "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
		"c/pids.current":        "3\n",
		"c/pids.max":            "max\n",
		"c/io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n",
		"c/io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"c/hugetlb.2MB.current": "31\n",
		"c/hugetlb.2MB.max":     "32\n",
		"c/hugetlb.2MB.events":  "max 33\n",
		"c/rdma.current":        "mlx hca_handle=1 hca_object=2\n",
		"c/rdma.max":            "mlx hca_handle=max hca_object=9\n",
	})
	checkStat(t, fakeV2(root), &v2.Metrics{
		CPU: &v2.CPUStat{
			UsageUsec: 1, UserUsec: 2, SystemUsec: 3, NrPeriods: 4, NrThrottled: 5, ThrottledUsec: 6, NrBursts: 7, BurstUsec: 8,
			PSI: &v2.PSIStats{Some: &v2.PSIData{Avg10: 0.5, Avg60: 1.25, Avg300: 2, Total: 12}, Full: &v2.PSIData{Total: 3}},
		},
		Memory: &v2.MemoryStat{
			Anon: 1, File: 2, AnonThp: 3, InactiveFile: 4, Pgfault: 6,
			Usage: 11, UsageLimit: math.MaxUint64, MaxUsage: 13, SwapUsage: 14, SwapLimit: 15,
		},
		MemoryEvents: &v2.MemoryEvents{Low: 1, High: 2, Max: 3, Oom: 4, OomKill: 5, OomGroupKill: 6},
		Pids:         &v2.PidsStat{Current: 3, Limit: math.MaxUint64},
		Io: &v2.IOStat{
			Usage: []*v2.IOEntry{{Major: 8, Rbytes: 1, Wbytes: 2, Rios: 3, Wios: 4}},
			PSI:   &v2.PSIStats{Some: &v2.PSIData{Total: 1}},
		},
		Hugetlb: []*v2.HugeTlbStat{{Pagesize: "2MB", Current: 31, Max: 32, Failcnt: 33}},
		Rdma: &v2.RdmaStat{
			Current: []*v2.RdmaEntry{{Device: "mlx", HcaHandles: 1, HcaObjects: 2}},
			Limit:   []*v2.RdmaEntry{{Device: "mlx", HcaHandles: math.MaxUint32, HcaObjects: 9}},
		},
	})
}

func TestStatErrorNamesFileAndLine(t *testing.T) {
	for file, text := range map[string]string{
		"c/cpu.stat":        "usage_usec x1\n",
		"c/memory.stat":     "anon\n",
		"c/pids.current":    "many\n",
		"c/io.stat":         "8:y rbytes=1\n",
		"c/rdma.current":    "mlx hca_handle=z\n",
		"c/cpu.pressure":    "some avg10=w\n",
		"c/hugetlb.2MB.max": "v\n",
	} {
		files := map[string]string{"c/cpu.stat": "usage_usec 1\n"}
		files[file] = text
		root := fakeTree(t, files)
		c, err := fakeV2(root).load("/c")
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Stat()
		if err == nil || !strings.Contains(err.Error(), filepath.Join(root, file)) || !strings.Contains(err.Error(), strings.TrimSpace(text)) {
			t.Errorf("%s with %q: got error %v", file, text, err)
		}
	}
}

func TestStatOfGoneCgroup(t *testing.T) {
	root := fakeTree(t, map[string]string{"memory/": ""})
	c := &Cgroup{path: "/c", tree: fakeV1(root, "memory").at("/c")}
	if _, err := c.Stat(); !errdefs.IsNotFound(err) {
		t.Errorf("v1: got %v", err)
	}
	c = &Cgroup{path: "/c", tree: fakeV2(root).at("/c")}
	if _, err := c.Stat(); !errdefs.IsNotFound(err) {
		t.Errorf("v2: got %v", err)
	}
}

func TestPids(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"c/cgroup.procs": "9\n7\n0\n9\n", "c/b/cgroup.procs": "7\n8\n", "c/b/d/cgroup.procs": "100\n", "e/": "", "bad/cgroup.procs": "x\n",
	})
	l := fakeV2(root)
	c, err := l.load("/c")
	if err != nil {
		t.Fatal(err)
	}
	pids, err := c.Pids()
	if err != nil || len(pids) != 4 || pids[0] != 7 || pids[1] != 8 || pids[2] != 9 || pids[3] != 100 {
		t.Errorf("got %v, %v", pids, err)
	}
	gone := &Cgroup{path: "/gone", tree: l.at("/gone")}
	if _, err := gone.Pids(); !errdefs.IsNotFound(err) {
		t.Errorf("gone: %v", err)
	}
	bad := &Cgroup{path: "/bad", tree: l.at("/bad")}
	if _, err := bad.Pids(); err == nil || !strings.Contains(err.Error(), "bad/cgroup.procs") {
		t.Errorf("bad: %v", err)
	}
}
