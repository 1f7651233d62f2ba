package cgroups

// Resources of the OCI spec, as values of cgroup files.
//
// The library's Update is not used. On v1 it cannot raise a memory limit together with that of memory and swap, and
// takes 0 shares, which means "not given", for the minimum. On v2 it refuses the -1 that removes a limit, and drops a
// CPU quota without a period, unified values and weights of devices. On both it drops a burst, idle, a pids limit of 0,
// and whatever there is no controller for. What it drops, it drops without an error.

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Update applies resources to the cgroup. Values that are nil or empty change nothing, and neither do zeros, except
// where the OCI spec gives zero a meaning; -1 removes a limit. An error names the resource that could not be applied,
// its value and its file; others may have been applied before it.
//
// On v2 the values are translated as by runc and crun. The entries of r.Unified are written last; v1 refuses them.
// Device rules and the kernel memory limit, which the spec allows runtimes to ignore, are ignored.
func (c *Cgroup) Update(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := c.tree.update(r); err != nil {
		return fmt.Errorf("cannot update cgroup %s: %w", c.path, err)
	}
	return nil
}

func (t *v1Tree) update(r *specs.LinuxResources) error {
	for key, value := range r.Unified {
		return fmt.Errorf("cannot set unified resource %s to %q: this host has cgroup v1: %w",
			key, value, errdefs.ErrNotImplemented)
	}
	s := settings{dir: t.dir}
	s.addAll(r)
	return s.apply()
}

func (t *v2Tree) update(r *specs.LinuxResources) error {
	s := settings{dir: func(string) string { return t.dir }, v2: true}
	s.addAll(r)
	s.addUnified(r.Unified)
	return s.apply()
}

// settings are values for files. The first one that is impossible is kept as an error; then none is written.
type settings struct {
	dir  func(controller string) string
	v2   bool
	list []setting
	err  error
}

type setting struct {
	resource, file, value string
	optional              bool // nothing is lost if the kernel lacks the file
}

// none stands for the file of v2 where v2 has no such file.
const none = ""

// addAll adds all resources but the unified ones, which only v2 has.
func (s *settings) addAll(r *specs.LinuxResources) {
	cpu, mem, io, net := orZero(r.CPU), orZero(r.Memory), orZero(r.BlockIO), orZero(r.Network)
	addNumber(s, "cpu realtime period", "cpu.rt_period_us", none, cpu.RealtimePeriod)
	addNumber(s, "cpu realtime runtime", "cpu.rt_runtime_us", none, cpu.RealtimeRuntime)
	addGiven(s, "cpu idle", "cpu.idle", "cpu.idle", cpu.Idle)
	s.addCPUTime(cpu)
	addGiven(s, "cpu burst", "cpu.cfs_burst_us", "cpu.max.burst", cpu.Burst)
	addNumber(s, "cpuset cpus", "cpuset.cpus", "cpuset.cpus", &cpu.Cpus)
	addNumber(s, "cpuset mems", "cpuset.mems", "cpuset.mems", &cpu.Mems)

	s.checkUsage(mem)
	s.addSwap(mem)
	s.addLimit("memory limit", "memory.limit_in_bytes", "memory.max", mem.Limit)
	s.addLimit("memory reservation", "memory.soft_limit_in_bytes", "memory.low", mem.Reservation)
	addNumber(s, "kernel tcp memory limit", "memory.kmem.tcp.limit_in_bytes", none, mem.KernelTCP)
	addGiven(s, "memory swappiness", "memory.swappiness", none, mem.Swappiness)
	if off := mem.DisableOOMKiller; off != nil && *off {
		s.add("oom killer switch", "memory.oom_control", none, 1)
	} else if off != nil && !s.v2 {
		s.add("oom killer switch", "memory.oom_control", none, 0)
	}

	if pids := orZero(r.Pids).Limit; pids != nil && *pids < 0 {
		s.add("pids limit", "pids.max", "pids.max", "max")
	} else if pids != nil {
		// A limit of 0 becomes 1, as in runc: systemd has no 0, and with either, a process in the cgroup cannot fork.
		s.add("pids limit", "pids.max", "pids.max", max(*pids, 1))
	}

	s.addWeight("", "", io.Weight, io.LeafWeight)
	for _, d := range io.WeightDevice {
		s.addWeight("_device", device(d.Major, d.Minor), d.Weight, d.LeafWeight)
	}
	s.addThrottle("read_bps", "rbps", io.ThrottleReadBpsDevice)
	s.addThrottle("write_bps", "wbps", io.ThrottleWriteBpsDevice)
	s.addThrottle("read_iops", "riops", io.ThrottleReadIOPSDevice)
	s.addThrottle("write_iops", "wiops", io.ThrottleWriteIOPSDevice)

	for _, l := range r.HugepageLimits {
		resource, file := "hugepage limit of "+l.Pagesize, "hugetlb."+l.Pagesize
		s.add(resource, file+".limit_in_bytes", file+".max", l.Limit)
		// Since Linux 5.7. Without it, a process that reserved more than it may use is killed by SIGBUS on access.
		s.addOptional(resource, file+".rsvd.limit_in_bytes", file+".rsvd.max", l.Limit)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Rdma)) {
		value := name
		if n := r.Rdma[name].HcaHandles; n != nil {
			value += fmt.Sprint(" hca_handle=", *n)
		}
		if n := r.Rdma[name].HcaObjects; n != nil {
			value += fmt.Sprint(" hca_object=", *n)
		}
		if value != name {
			s.add("rdma limit", "rdma.max", "rdma.max", value)
		}
	}
	addNumber(s, "network class id", "net_cls.classid", none, net.ClassID)
	for _, p := range net.Priorities {
		s.add("network priority", "net_prio.ifpriomap", none, fmt.Sprintf("%s %d", p.Name, p.Priority))
	}
}

// addCPUTime adds shares, period and quota. v2 has one file for the latter two: if the period is left out, the kernel
// keeps the one in force; a quota must be written, so the one in force is read first.
func (s *settings) addCPUTime(cpu specs.LinuxCPU) {
	if !s.v2 {
		addNumber(s, "cpu shares", "cpu.shares", none, cpu.Shares)
		addNumber(s, "cpu period", "cpu.cfs_period_us", none, cpu.Period)
		addNumber(s, "cpu quota", "cpu.cfs_quota_us", none, cpu.Quota)
		return
	}
	weight := cgroup2.ConvertCPUSharesToCgroupV2Value(orZero(cpu.Shares))
	addNumber(s, "cpu weight", "", "cpu.weight", &weight)
	quota, period := orZero(cpu.Quota), orZero(cpu.Period)
	if quota == 0 && period == 0 {
		return
	}
	value := "max"
	if quota > 0 {
		value = strconv.FormatInt(quota, 10)
	} else if current, err := s.read("cpu.max"); quota == 0 && err == nil {
		value, _, _ = strings.Cut(current, " ")
	}
	if period != 0 {
		value += " " + strconv.FormatUint(period, 10)
	}
	s.add("cpu quota and period", "", "cpu.max", value)
}

// addSwap adds the limit of memory and swap together, or on v2 that of swap alone: the sum less the memory limit, or
// less the one in force if none is given. Lifting the memory limit alone lifts that of the sum too, as unlimited memory
// could not be within a limited sum. Where the kernel lacks the file, there is no swap, or no limit of it to remove.
func (s *settings) addSwap(mem specs.LinuxMemory) {
	memory, swap := orZero(mem.Limit), orZero(mem.Swap)
	if memory < 0 && swap == 0 {
		swap = -1
	}
	const v1File, v2File = "memory.memsw.limit_in_bytes", "memory.swap.max"
	switch {
	case swap == 0:
	case swap < 0 && s.v2:
		s.addOptional("swap limit", v1File, v2File, "max")
	case swap < 0:
		s.addOptional("memory and swap limit", v1File, v2File, swap)
	case !s.v2:
		s.add("memory and swap limit", v1File, v2File, swap)
	default:
		if memory == 0 {
			current, _ := s.read("memory.max")
			memory, _ = strconv.ParseInt(current, 10, 64) // 0 for "max": no limit
		}
		switch alone := swap - max(memory, 0); {
		case alone < 0:
			s.fail(fmt.Errorf("cannot set memory and swap limit to %d: it is below the memory limit %d: %w",
				swap, memory, errdefs.ErrInvalidArgument))
		case alone == 0:
			s.addOptional("swap limit", v1File, v2File, 0)
		default:
			s.add("swap limit", v1File, v2File, alone)
		}
	}
}

// checkUsage refuses a limit below the memory in use if the spec asks for that check (checkBeforeUpdate): the kernel
// itself would reclaim and kill instead.
func (s *settings) checkUsage(mem specs.LinuxMemory) {
	if !orZero(mem.CheckBeforeUpdate) || orZero(mem.Limit) <= 0 {
		return
	}
	text, err := s.read(s.file("memory.usage_in_bytes", "memory.current"))
	used, _ := strconv.ParseInt(text, 10, 64)
	switch {
	case absent(err): // the write of the limit will report it
	case err != nil:
		s.fail(err)
	case used > *mem.Limit:
		s.fail(fmt.Errorf("cannot set memory limit to %d: %d bytes are in use: %w",
			*mem.Limit, used, errdefs.ErrFailedPrecondition))
	}
}

// addWeight adds the I/O weights of a device, or of all. Linux 5.0 removed the CFQ scheduler; BFQ has the same weights
// under its own name. Without BFQ, v2 has io.weight, with a range of 1 to 10000 instead of 10 to 1000. The conversion
// is linear, as in runc and crun. Source: crun.1.md, "IO controller".
func (s *settings) addWeight(suffix, device string, weight, leaf *uint16) {
	if w := int(orZero(weight)); w != 0 {
		v1File, v2File := "blkio.weight", "io.bfq.weight"
		if !s.v2 && !s.has(v1File) {
			v1File = "blkio.bfq.weight"
		}
		if s.v2 && !s.has(v2File) {
			v2File, w = "io.weight", 1+(max(w, 10)-10)*9999/990
		}
		s.add("block io weight", v1File+suffix, v2File, device+strconv.Itoa(w))
	}
	if w := orZero(leaf); w != 0 {
		s.add("block io leaf weight", "blkio.leaf_weight"+suffix, none, device+fmt.Sprint(w))
	}
}

func (s *settings) addThrottle(name, key string, devices []specs.LinuxThrottleDevice) {
	for _, d := range devices {
		value := strconv.FormatUint(d.Rate, 10)
		if s.v2 && d.Rate == 0 {
			value = "max"
		}
		if s.v2 {
			value = key + "=" + value
		}
		s.add("block io throttle", "blkio.throttle."+name+"_device", "io.max", device(d.Major, d.Minor)+value)
	}
}

func device(major, minor int64) string {
	return fmt.Sprintf("%d:%d ", major, minor)
}

// addUnified adds the spec's v2 values, in the order of their names. A value of several lines is written line by line,
// as files such as io.max require.
func (s *settings) addUnified(values map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if key == "" || strings.HasPrefix(key, ".") || strings.Contains(key, "/") {
			s.fail(fmt.Errorf("cannot set unified resource %q: it is not a file name: %w", key, errdefs.ErrInvalidArgument))
			return
		}
		for line := range strings.Lines(values[key]) {
			s.add("unified resource "+key, "", key, strings.TrimSuffix(line, "\n"))
		}
	}
}

// addLimit adds a limit that -1 removes; v2 calls that "max".
func (s *settings) addLimit(resource, v1File, v2File string, v *int64) {
	if s.v2 && orZero(v) < 0 {
		s.add(resource, v1File, v2File, "max")
	} else {
		addNumber(s, resource, v1File, v2File, v)
	}
}

// addNumber adds a value unless it is zero, which means "not given".
func addNumber[T comparable](s *settings, resource, v1File, v2File string, v *T) {
	if orZero(v) != *new(T) {
		s.add(resource, v1File, v2File, *v)
	}
}

// addGiven adds a value that may be zero.
func addGiven[T any](s *settings, resource, v1File, v2File string, v *T) {
	if v != nil {
		s.add(resource, v1File, v2File, *v)
	}
}

func (s *settings) add(resource, v1File, v2File string, value any) {
	file := s.file(v1File, v2File)
	if file == none {
		s.fail(fmt.Errorf("cannot set %s to %v: cgroup v2 has no such file: %w", resource, value, errdefs.ErrNotImplemented))
		return
	}
	s.list = append(s.list, setting{resource: resource, file: file, value: fmt.Sprint(value)})
}

func (s *settings) addOptional(resource, v1File, v2File string, value any) {
	s.add(resource, v1File, v2File, value)
	s.list[len(s.list)-1].optional = true
}

func (s *settings) fail(err error) {
	if s.err == nil {
		s.err = err
	}
}

func orZero[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

func (s *settings) file(v1File, v2File string) string {
	if s.v2 {
		return v2File
	}
	return v1File
}

// dirOf returns the directory of the controller with which a file's name begins; "" if it is not mounted.
func (s *settings) dirOf(file string) string {
	controller, _, _ := strings.Cut(file, ".")
	return s.dir(controller)
}

func (s *settings) has(file string) bool {
	dir := s.dirOf(file)
	return dir != "" && exists(filepath.Join(dir, file))
}

func (s *settings) read(file string) (string, error) {
	dir := s.dirOf(file)
	if dir == "" {
		return "", unix.ENOENT
	}
	text, err := readFile(filepath.Join(dir, file))
	return strings.TrimSpace(text), err
}

// apply writes the values. The kernel checks some against others: a CPU quota against its period and burst, and on v1
// memory against memory and swap. A new value that it refuses because of an old one is written again after the other
// new ones.
func (s *settings) apply() error {
	for list := s.list; s.err == nil && len(list) > 0; {
		var refused []setting
		var first error
		for _, x := range list {
			err := set(s.dirOf(x.file), x.resource, x.file, x.value)
			if err == nil || x.optional && errors.Is(err, unix.ENOENT) {
				continue
			}
			if !errors.Is(err, unix.EINVAL) {
				return err
			}
			if first == nil {
				first = err
			}
			refused = append(refused, x)
		}
		if len(refused) == len(list) {
			return first
		}
		list = refused
	}
	return s.err
}
