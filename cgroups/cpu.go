package cgroups

import (
	"errors"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sharesToWeight converts v1's CPU shares (2 to 262144, default 1024) to v2's weight (1 to 10000, default 100), by a
// curve that meets both ends and the default. runc and crun share it since 1.3.2 and 1.23; before, 1024 became 39.
// Sources: opencontainers/cgroups #20, crun #1767 and crun.1.md "CPU controller", kubernetes #131216.
func sharesToWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// setPair writes two values that the kernel checks against each other: if the first is refused next to the old
// second, it is written again after it.
func setPair(first, second func() error) error {
	err := first()
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err2 := second(); err2 != nil || err == nil {
		return err2
	}
	return first()
}

func (t *v1Tree) setCPU(r *specs.LinuxResources) error {
	cpu := r.CPU
	if cpu == nil {
		return nil
	}
	dir := t.dir("cpu")
	number := func(resource, file string, v *uint64) func() error {
		return func() error {
			if v == nil || *v == 0 {
				return nil
			}
			return set(dir, resource, file, strconv.FormatUint(*v, 10))
		}
	}
	signed := func(resource, file string, v *int64) func() error {
		return func() error {
			if v == nil || *v == 0 {
				return nil
			}
			return set(dir, resource, file, strconv.FormatInt(*v, 10))
		}
	}
	if err := setPair(
		number("cpu realtime period", "cpu.rt_period_us", cpu.RealtimePeriod),
		signed("cpu realtime runtime", "cpu.rt_runtime_us", cpu.RealtimeRuntime),
	); err != nil {
		return err
	}
	if cpu.Idle != nil {
		if err := set(dir, "cpu idle", "cpu.idle", strconv.FormatInt(*cpu.Idle, 10)); err != nil {
			return err
		}
	}
	if err := number("cpu shares", "cpu.shares", cpu.Shares)(); err != nil {
		return err
	}
	burst := func() error {
		if cpu.Burst == nil {
			return nil
		}
		return set(dir, "cpu burst", "cpu.cfs_burst_us", strconv.FormatUint(*cpu.Burst, 10))
	}
	quota := func() error {
		return setPair(
			number("cpu period", "cpu.cfs_period_us", cpu.Period),
			signed("cpu quota", "cpu.cfs_quota_us", cpu.Quota),
		)
	}
	return setPair(burst, quota)
}

func (t *v2Tree) setCPU(r *specs.LinuxResources) error {
	cpu := r.CPU
	if cpu == nil {
		return nil
	}
	if cpu.RealtimePeriod != nil && *cpu.RealtimePeriod != 0 {
		return onV2("cpu realtime period", *cpu.RealtimePeriod)
	}
	if cpu.RealtimeRuntime != nil && *cpu.RealtimeRuntime != 0 {
		return onV2("cpu realtime runtime", *cpu.RealtimeRuntime)
	}
	if cpu.Idle != nil {
		if err := set(t.dir, "cpu idle", "cpu.idle", strconv.FormatInt(*cpu.Idle, 10)); err != nil {
			return err
		}
	}
	if cpu.Shares != nil && *cpu.Shares != 0 {
		weight := strconv.FormatUint(sharesToWeight(*cpu.Shares), 10)
		if err := set(t.dir, "cpu weight", "cpu.weight", weight); err != nil {
			return err
		}
	}
	burst := func() error {
		if cpu.Burst == nil {
			return nil
		}
		return set(t.dir, "cpu burst", "cpu.max.burst", strconv.FormatUint(*cpu.Burst, 10))
	}
	return setPair(burst, func() error { return t.setCPUMax(cpu.Quota, cpu.Period) })
}

// setCPUMax writes "quota period" in microseconds. What is not given stays: the kernel keeps the period if it is
// left out, the quota has to be read.
func (t *v2Tree) setCPUMax(quota *int64, period *uint64) error {
	hasQuota, hasPeriod := quota != nil && *quota != 0, period != nil && *period != 0
	if !hasQuota && !hasPeriod {
		return nil
	}
	value := "max"
	if hasQuota {
		value = limit(*quota)
	} else if current, err := readFile(filepath.Join(t.dir, "cpu.max")); err == nil {
		value, _, _ = strings.Cut(strings.TrimSpace(current), " ")
	}
	if hasPeriod {
		value += " " + strconv.FormatUint(*period, 10)
	}
	return set(t.dir, "cpu quota and period", "cpu.max", value)
}

// clockTick is the length in nanoseconds of v1's unit of CPU time, USER_HZ, which is 100 per second on every
// architecture that Go runs on.
const clockTick = 10_000_000

func (t *v1Tree) statCPU(m *v1.Metrics) error {
	cpu := &v1.CPUStat{Usage: &v1.CPUUsage{}, Throttling: &v1.Throttle{}}
	throttling := reader{dir: t.dir("cpu")}
	throttling.keyed("cpu.stat", []field{
		{"nr_periods", &cpu.Throttling.Periods},
		{"nr_throttled", &cpu.Throttling.ThrottledPeriods},
		{"throttled_time", &cpu.Throttling.ThrottledTime},
	})
	usage := reader{dir: t.dir("cpuacct")}
	usage.uint("cpuacct.usage", &cpu.Usage.Total, 0)
	usage.keyed("cpuacct.stat", []field{{"user", &cpu.Usage.User}, {"system", &cpu.Usage.Kernel}})
	cpu.Usage.User *= clockTick
	cpu.Usage.Kernel *= clockTick
	if text, ok := usage.text("cpuacct.usage_percpu"); ok {
		for field := range strings.FieldsSeq(text) {
			v, err := parseUint(field)
			if err != nil {
				usage.fail("cpuacct.usage_percpu", text, err)
				break
			}
			cpu.Usage.PerCPU = append(cpu.Usage.PerCPU, v)
		}
	}
	if throttling.found || usage.found {
		m.CPU = cpu
	}
	return errors.Join(throttling.err, usage.err)
}

func (t *v2Tree) statCPU(m *v2.Metrics) error {
	r := reader{dir: t.dir}
	cpu := &v2.CPUStat{}
	r.keyed("cpu.stat", []field{
		{"usage_usec", &cpu.UsageUsec},
		{"user_usec", &cpu.UserUsec},
		{"system_usec", &cpu.SystemUsec},
		{"nr_periods", &cpu.NrPeriods},
		{"nr_throttled", &cpu.NrThrottled},
		{"throttled_usec", &cpu.ThrottledUsec},
		{"nr_bursts", &cpu.NrBursts},
		{"burst_usec", &cpu.BurstUsec},
	})
	if r.found {
		cpu.PSI = r.pressure("cpu.pressure")
		m.CPU = cpu
	}
	return r.err
}
