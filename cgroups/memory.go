package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// amount returns what a resource pointer holds; 0 stands for "not given", as for OCI runtimes.
func amount(p *int64) int64 {
	if p == nil {
		return 0
	}
	return *p
}

func (t *v1Tree) setMemory(r *specs.LinuxResources) error {
	mem := r.Memory
	if mem == nil {
		return nil
	}
	dir := t.dir("memory")
	if err := checkUsage(dir, "memory.usage_in_bytes", mem); err != nil {
		return err
	}
	if err := t.setMemoryAndSwap(dir, amount(mem.Limit), amount(mem.Swap)); err != nil {
		return err
	}
	if v := amount(mem.Reservation); v != 0 {
		if err := set(dir, "memory reservation", "memory.soft_limit_in_bytes", strconv.FormatInt(v, 10)); err != nil {
			return err
		}
	}
	if v := amount(mem.KernelTCP); v != 0 {
		if err := set(dir, "kernel tcp memory limit", "memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(v, 10)); err != nil {
			return err
		}
	}
	if mem.Swappiness != nil {
		if err := set(dir, "memory swappiness", "memory.swappiness", strconv.FormatUint(*mem.Swappiness, 10)); err != nil {
			return err
		}
	}
	if mem.DisableOOMKiller != nil {
		v := "0"
		if *mem.DisableOOMKiller {
			v = "1"
		}
		return set(dir, "oom killer switch", "memory.oom_control", v)
	}
	return nil
}

// setMemoryAndSwap sets the limit of memory and that of memory and swap together, which the kernel never lets be the
// lower one: they are written in the order that keeps it so on the way.
func (t *v1Tree) setMemoryAndSwap(dir string, limit, swap int64) error {
	const swapFile = "memory.memsw.limit_in_bytes"
	if dir != "" && !exists(filepath.Join(dir, swapFile)) {
		// Without swap accounting, there is no swap limit to take away.
		if swap < 0 {
			swap = 0
		}
	} else if limit < 0 && swap == 0 {
		// Unlimited memory within limited memory and swap could not be.
		swap = -1
	}
	setLimit := func() error {
		if limit == 0 {
			return nil
		}
		return set(dir, "memory limit", "memory.limit_in_bytes", strconv.FormatInt(limit, 10))
	}
	setSwap := func() error {
		if swap == 0 {
			return nil
		}
		return set(dir, "memory and swap limit", swapFile, strconv.FormatInt(swap, 10))
	}
	return setPair(setLimit, setSwap)
}

func (t *v2Tree) setMemory(r *specs.LinuxResources) error {
	mem := r.Memory
	if mem == nil {
		return nil
	}
	switch {
	case amount(mem.KernelTCP) != 0:
		return onV2("kernel tcp memory limit", *mem.KernelTCP)
	case mem.Swappiness != nil:
		return onV2("memory swappiness", *mem.Swappiness)
	case mem.DisableOOMKiller != nil && *mem.DisableOOMKiller:
		return onV2("oom killer switch", true)
	}
	if err := checkUsage(t.dir, "memory.current", mem); err != nil {
		return err
	}
	if err := t.setSwap(amount(mem.Limit), amount(mem.Swap)); err != nil {
		return err
	}
	if v := amount(mem.Limit); v != 0 {
		if err := set(t.dir, "memory limit", "memory.max", limit(v)); err != nil {
			return err
		}
	}
	if v := amount(mem.Reservation); v != 0 {
		return set(t.dir, "memory reservation", "memory.low", limit(v))
	}
	return nil
}

// setSwap sets v2's limit of swap alone from the spec's limit of memory and swap together. Without a memory limit to
// subtract in the update, the one in force counts.
func (t *v2Tree) setSwap(memory, swap int64) error {
	if memory < 0 && swap == 0 {
		swap = -1
	}
	if swap == 0 {
		return nil
	}
	v := swap
	if swap > 0 {
		if memory == 0 {
			r := reader{dir: t.dir}
			current := uint64(unlimited)
			r.uint("memory.max", &current, unlimited)
			if r.err != nil {
				return r.err
			}
			if current != unlimited {
				memory = int64(current)
			}
		}
		if memory > 0 {
			v = swap - memory
		}
		if v < 0 {
			return fmt.Errorf("cannot set memory and swap limit to %d: it is below the memory limit %d: %w", swap, memory, errdefs.ErrInvalidArgument)
		}
	}
	err := set(t.dir, "swap limit", "memory.swap.max", limit(v))
	if errors.Is(err, unix.ENOENT) && v <= 0 && exists(filepath.Join(t.dir, "memory.max")) {
		// No swap on this kernel: none can be used, and no limit is in the way.
		return nil
	}
	return err
}

// checkUsage refuses a limit below the memory in use, if the spec asks for that check; the kernel would reclaim and
// kill instead.
func checkUsage(dir, file string, mem *specs.LinuxMemory) error {
	if mem.CheckBeforeUpdate == nil || !*mem.CheckBeforeUpdate || amount(mem.Limit) <= 0 {
		return nil
	}
	r := reader{dir: dir}
	var used uint64
	r.uint(file, &used, 0)
	if r.err == nil && used > uint64(*mem.Limit) {
		return fmt.Errorf("cannot set memory limit to %d: %d bytes are in use: %w", *mem.Limit, used, errdefs.ErrFailedPrecondition)
	}
	return r.err
}

func (t *v1Tree) statMemory(m *v1.Metrics) error {
	r := reader{dir: t.dir("memory")}
	mem := &v1.MemoryStat{}
	r.keyed("memory.stat", []field{
		{"cache", &mem.Cache},
		{"rss", &mem.RSS},
		{"rss_huge", &mem.RSSHuge},
		{"mapped_file", &mem.MappedFile},
		{"dirty", &mem.Dirty},
		{"writeback", &mem.Writeback},
		{"pgpgin", &mem.PgPgIn},
		{"pgpgout", &mem.PgPgOut},
		{"pgfault", &mem.PgFault},
		{"pgmajfault", &mem.PgMajFault},
		{"inactive_anon", &mem.InactiveAnon},
		{"active_anon", &mem.ActiveAnon},
		{"inactive_file", &mem.InactiveFile},
		{"active_file", &mem.ActiveFile},
		{"unevictable", &mem.Unevictable},
		{"hierarchical_memory_limit", &mem.HierarchicalMemoryLimit},
		{"hierarchical_memsw_limit", &mem.HierarchicalSwapLimit},
		{"total_cache", &mem.TotalCache},
		{"total_rss", &mem.TotalRSS},
		{"total_rss_huge", &mem.TotalRSSHuge},
		{"total_mapped_file", &mem.TotalMappedFile},
		{"total_dirty", &mem.TotalDirty},
		{"total_writeback", &mem.TotalWriteback},
		{"total_pgpgin", &mem.TotalPgPgIn},
		{"total_pgpgout", &mem.TotalPgPgOut},
		{"total_pgfault", &mem.TotalPgFault},
		{"total_pgmajfault", &mem.TotalPgMajFault},
		{"total_inactive_anon", &mem.TotalInactiveAnon},
		{"total_active_anon", &mem.TotalActiveAnon},
		{"total_inactive_file", &mem.TotalInactiveFile},
		{"total_active_file", &mem.TotalActiveFile},
		{"total_unevictable", &mem.TotalUnevictable},
	})
	mem.Usage = r.memoryEntry("memory.")
	mem.Swap = r.memoryEntry("memory.memsw.")
	mem.Kernel = r.memoryEntry("memory.kmem.")
	mem.KernelTCP = r.memoryEntry("memory.kmem.tcp.")
	oom := &v1.MemoryOomControl{}
	r.keyed("memory.oom_control", []field{
		{"oom_kill_disable", &oom.OomKillDisable},
		{"under_oom", &oom.UnderOom},
		{"oom_kill", &oom.OomKill},
	})
	if r.found {
		m.Memory, m.MemoryOomControl = mem, oom
	}
	return r.err
}

// memoryEntry reads the four numbers of one kind of memory. It never returns nil: clients read through the entry.
func (r *reader) memoryEntry(prefix string) *v1.MemoryEntry {
	e := &v1.MemoryEntry{}
	r.uint(prefix+"usage_in_bytes", &e.Usage, 0)
	r.uint(prefix+"max_usage_in_bytes", &e.Max, 0)
	r.uint(prefix+"failcnt", &e.Failcnt, 0)
	r.uint(prefix+"limit_in_bytes", &e.Limit, 0)
	return e
}

func (t *v2Tree) statMemory(m *v2.Metrics) error {
	r := reader{dir: t.dir}
	mem := &v2.MemoryStat{}
	r.keyed("memory.stat", []field{
		{"anon", &mem.Anon},
		{"file", &mem.File},
		{"kernel_stack", &mem.KernelStack},
		{"slab", &mem.Slab},
		{"sock", &mem.Sock},
		{"shmem", &mem.Shmem},
		{"file_mapped", &mem.FileMapped},
		{"file_dirty", &mem.FileDirty},
		{"file_writeback", &mem.FileWriteback},
		{"anon_thp", &mem.AnonThp},
		{"inactive_anon", &mem.InactiveAnon},
		{"active_anon", &mem.ActiveAnon},
		{"inactive_file", &mem.InactiveFile},
		{"active_file", &mem.ActiveFile},
		{"unevictable", &mem.Unevictable},
		{"slab_reclaimable", &mem.SlabReclaimable},
		{"slab_unreclaimable", &mem.SlabUnreclaimable},
		{"pgfault", &mem.Pgfault},
		{"pgmajfault", &mem.Pgmajfault},
		{"workingset_refault", &mem.WorkingsetRefault},
		{"workingset_activate", &mem.WorkingsetActivate},
		{"workingset_nodereclaim", &mem.WorkingsetNodereclaim},
		{"pgrefill", &mem.Pgrefill},
		{"pgscan", &mem.Pgscan},
		{"pgsteal", &mem.Pgsteal},
		{"pgactivate", &mem.Pgactivate},
		{"pgdeactivate", &mem.Pgdeactivate},
		{"pglazyfree", &mem.Pglazyfree},
		{"pglazyfreed", &mem.Pglazyfreed},
		{"thp_fault_alloc", &mem.ThpFaultAlloc},
		{"thp_collapse_alloc", &mem.ThpCollapseAlloc},
	})
	if !r.found {
		return r.err
	}
	r.uint("memory.current", &mem.Usage, unlimited)
	r.uint("memory.max", &mem.UsageLimit, unlimited)
	r.uint("memory.peak", &mem.MaxUsage, unlimited)
	r.uint("memory.swap.current", &mem.SwapUsage, unlimited)
	r.uint("memory.swap.max", &mem.SwapLimit, unlimited)
	r.uint("memory.swap.peak", &mem.SwapMaxUsage, unlimited)
	mem.PSI = r.pressure("memory.pressure")
	m.Memory = mem

	events := reader{dir: t.dir, err: r.err}
	e := &v2.MemoryEvents{}
	events.keyed("memory.events", []field{
		{"low", &e.Low},
		{"high", &e.High},
		{"max", &e.Max},
		{"oom", &e.Oom},
		{"oom_kill", &e.OomKill},
		{"oom_group_kill", &e.OomGroupKill},
	})
	if events.found {
		m.MemoryEvents = e
	}
	return events.err
}
