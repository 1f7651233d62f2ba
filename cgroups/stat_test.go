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

func loadC(t *testing.T, l *layout) *Cgroup {
	t.Helper()
	c, err := l.load("/c")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func checkStat(t *testing.T, c *Cgroup, want proto.Message) {
	t.Helper()
	got, err := c.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestStatV1 checks what is read from where; the library itself tests how. Only mountinfo tells where the controllers
// are mounted, and the cgroup of one is at another path.
func TestStatV1(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"cpu,cpuacct/c/cpu.stat":                  "nr_periods 1\nnr_throttled 2\nthrottled_time 3\nnr_bursts 4\n",
		"cpu,cpuacct/c/cpuacct.usage":             "1000\n",
		"cpu,cpuacct/c/cpuacct.usage_percpu":      "600 400 \n",
		"cpu,cpuacct/c/cpuacct.stat":              "user 5\nsystem 7\n",
		"memory/c/memory.stat":                    "cache 1\nrss 2\ntotal_rss 22\ntotal_inactive_file 23\nhierarchical_memsw_limit 24\nnew_thing 9\n",
		"memory/c/memory.usage_in_bytes":          "11\n",
		"memory/c/memory.max_usage_in_bytes":      "12\n",
		"memory/c/memory.failcnt":                 "13\n",
		"memory/c/memory.limit_in_bytes":          "14\n",
		"memory/c/memory.kmem.tcp.usage_in_bytes": "15\n",
		// The kernel counts neither swap nor kernel memory, but has one of the latter's files.
		"memory/c/memory.kmem.failcnt":                "16\n",
		"memory/c/memory.kmem.tcp.max_usage_in_bytes": "17\n",
		"memory/c/memory.kmem.tcp.failcnt":            "18\n",
		"memory/c/memory.kmem.tcp.limit_in_bytes":     "19\n",
		"memory/c/memory.oom_control":                 "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
		"pids/d/e/pids.current":                       "3\n",
		"pids/d/e/pids.max":                           "max\n",
		"rdma/c/rdma.current":                         "mlx hca_handle=1 hca_object=2\n",
		"rdma/c/rdma.max":                             "mlx hca_handle=max hca_object=9\n",
		"blkio/c/blkio.throttle.io_serviced":          "0:0 Read 41\n0:0 Total 41\nTotal 41\n",
		"blkio/c/blkio.throttle.io_service_bytes":     "0:0 Read 42\nTotal 42\n",
		"proc/self/cgroup":                            "6:cpu,cpuacct:/\n",
		"proc/7/cgroup":                               "6:cpu,cpuacct:/c\n5:memory:/c\n4:pids:/d/e\n3:rdma:/c\n2:blkio:/c\n",
	})
	c, err := fakeV1(root, "cpu,cpuacct", "memory", "pids", "rdma", "blkio").ofProcess(7)
	if err != nil {
		t.Fatal(err)
	}
	checkStat(t, c, &v1.Metrics{
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: 1000, User: 50_000_000, Kernel: 70_000_000, PerCPU: []uint64{600, 400}},
			Throttling: &v1.Throttle{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3},
		},
		Memory: &v1.MemoryStat{
			Cache: 1, RSS: 2, TotalRSS: 22, TotalInactiveFile: 23, HierarchicalSwapLimit: 24,
			Usage: &v1.MemoryEntry{Usage: 11, Max: 12, Failcnt: 13, Limit: 14}, Swap: &v1.MemoryEntry{}, Kernel: &v1.MemoryEntry{},
			KernelTCP: &v1.MemoryEntry{Usage: 15, Max: 17, Failcnt: 18, Limit: 19},
		},
		MemoryOomControl: &v1.MemoryOomControl{UnderOom: 1, OomKill: 2},
		Pids:             &v1.PidsStat{Current: 3},
		Rdma: &v1.RdmaStat{
			Current: []*v1.RdmaEntry{{Device: "mlx", HcaHandles: 1, HcaObjects: 2}},
			Limit:   []*v1.RdmaEntry{{Device: "mlx", HcaHandles: math.MaxUint32, HcaObjects: 9}},
		},
		Blkio: &v1.BlkIOStat{
			IoServicedRecursive:     []*v1.BlkIOEntry{{Op: "Read", Value: 41}, {Op: "Total", Value: 41}},
			IoServiceBytesRecursive: []*v1.BlkIOEntry{{Op: "Read", Value: 42}},
		},
	})
}

// TestStatLeavesOutWhatTheKernelLacks: as in the stock shim's answer, what always has to be there is empty.
func TestStatLeavesOutWhatTheKernelLacks(t *testing.T) {
	root := fakeTree(t, map[string]string{"cpu/c/": "", "memory/c/": "", "blkio/c/": ""})
	checkStat(t, loadC(t, fakeV1(root, "cpu", "memory", "blkio", "pids")), &v1.Metrics{
		CPU: &v1.CPUStat{Usage: &v1.CPUUsage{}, Throttling: &v1.Throttle{}}, Blkio: &v1.BlkIOStat{},
	})
	root = fakeTree(t, map[string]string{"c/cgroup.controllers": "cpuset\n", "c/io.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"})
	checkStat(t, loadC(t, fakeV2(root)), &v2.Metrics{CPU: &v2.CPUStat{}})
}

func TestStatV2(t *testing.T) {
	root := fakeTree(t, map[string]string{
		"c/cgroup.controllers":  "cpuset cpu io memory pids rdma misc\n",
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
		"c/io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n",
		"c/io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n",
		"c/rdma.current":        "mlx hca_handle=1 hca_object=2\n",
		"c/rdma.max":            "mlx hca_handle=max hca_object=9\n",
	})
	checkStat(t, loadC(t, fakeV2(root)), &v2.Metrics{
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
		Rdma: &v2.RdmaStat{
			Current: []*v2.RdmaEntry{{Device: "mlx", HcaHandles: 1, HcaObjects: 2}},
			Limit:   []*v2.RdmaEntry{{Device: "mlx", HcaHandles: math.MaxUint32, HcaObjects: 9}},
		},
	})
}

func TestStatErrorNamesFile(t *testing.T) {
	text := "usage_usec x1\n"
	root := fakeTree(t, map[string]string{
		"c/cgroup.controllers": "memory\n", "c/cpu.stat": text, "memory/c/memory.stat": text, "pids/c/pids.current": "many\n",
	})
	for want, l := range map[string]*layout{
		"c/cpu.stat": fakeV2(root), "memory/c": fakeV1(root, "memory"), "pids/c": fakeV1(root, "pids"),
	} {
		if _, err := loadC(t, l).Stat(); err == nil || !strings.Contains(err.Error(), filepath.Join(root, want)) {
			t.Errorf("%s: got error %v", want, err)
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
