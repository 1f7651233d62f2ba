package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"containerd-shim-pause-v2/integration/node"
)

const (
	memoryPrivate   = "private: anonymous"
	memoryPSS       = "PSS: shared text divided by its users"
	memoryKernel    = "kernel: page tables, and stacks of threads"
	memoryProcesses = "processes"
	memoryTogether  = "processes together"
	memoryThreads   = "threads"
)

func memoryGroup(containers int) string {
	return fmt.Sprintf("Beside the containers, of a pod with %s, idle", plural(containers, "container"))
}

func plural(n int, noun string) string {
	if n == 1 {
		return "one " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// usage is what processes take; memory in kB.
type usage struct {
	private, pss, kernel float64
	processes, threads   float64 // parts of them, where pods share a process
}

// memory reads the memory of idle pods, while more and more of them run, and what containers
// add to a pod.
func (b *bench) memory(ctx context.Context) error {
	if err := b.memoryOf(ctx, 1); err != nil {
		return err
	}
	return b.memoryOfMore(ctx)
}

const (
	moreContainers = 31
	moreGroup      = "Beside the containers, of each further container in a pod, idle"
)

func (b *bench) memoryOfMore(ctx context.Context) error {
	done := b.progress.start("memory of more containers", len(b.engines)*moreContainers)
	before := map[*engine]usage{}
	pods, err := b.runPods(ctx)
	if err != nil {
		return err
	}
	if err := b.readIdle(ctx, pods, func(e *engine, u usage) { before[e] = u }); err != nil {
		return err
	}
	for range moreContainers {
		err := b.each(0, func(e *engine) error {
			defer done()
			return pods[e].addContainer(ctx, sleep...)
		})
		if err != nil {
			return err
		}
	}
	err = b.readIdle(ctx, pods, func(e *engine, u usage) {
		each := func(name string, now, then float64) {
			b.result.add(moreGroup, fmt.Sprintf("%s, of %d", name, moreContainers), "kB", e.name, (now-then)/moreContainers)
		}
		each(memoryPrivate, u.private, before[e].private)
		each(memoryPSS, u.pss, before[e].pss)
		each(memoryKernel, u.kernel, before[e].kernel)
	})
	if err != nil {
		return err
	}
	return b.each(0, func(e *engine) error { return pods[e].remove(ctx) })
}

func (b *bench) memoryOf(ctx context.Context, containers int) error {
	pods := map[*engine][]*pod{}
	group := memoryGroup(containers)
	last := b.amount.pods[len(b.amount.pods)-1]
	done := b.progress.start(fmt.Sprintf("memory of pods with %s", plural(containers, "container")), last*len(b.engines))
	for _, number := range b.amount.pods {
		for turn := len(pods[b.engines[0]]); turn < number; turn++ {
			err := b.each(turn, func(e *engine) error {
				defer done()
				p, err := e.runPod(ctx, hostNetwork)
				if err != nil {
					return err
				}
				pods[e] = append(pods[e], p)
				for range containers {
					if err := p.addContainer(ctx, sleep...); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := b.pause(ctx); err != nil {
			return err
		}
		err := b.each(0, func(e *engine) error {
			each, processes, err := e.usages(ctx, pods[e], node.Processes())
			if err != nil {
				return err
			}
			add := func(name, unit string, value float64) {
				b.result.add(group, fmt.Sprintf("%s, of %s", name, plural(number, "pod")), unit, e.name, value)
			}
			for _, u := range each {
				add(memoryPrivate, "kB", u.private)
				add(memoryPSS, "kB", u.pss)
				add(memoryKernel, "kB", u.kernel)
				add(memoryProcesses, "", u.processes)
				add(memoryThreads, "", u.threads)
			}
			add(memoryTogether, "", float64(processes))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return b.each(0, func(e *engine) error { return removePods(ctx, pods[e]) })
}

// runPods runs a pod of one container with each engine.
func (b *bench) runPods(ctx context.Context) (map[*engine]*pod, error) {
	pods := map[*engine]*pod{}
	return pods, b.each(0, func(e *engine) (err error) {
		pods[e], err = e.runPodWithContainer(ctx)
		return err
	})
}

// readIdle reads what the pods take after they have been left alone.
func (b *bench) readIdle(ctx context.Context, pods map[*engine]*pod, record func(*engine, usage)) error {
	if err := b.pause(ctx); err != nil {
		return err
	}
	return b.each(0, func(e *engine) error {
		each, _, err := e.usages(ctx, []*pod{pods[e]}, node.Processes())
		if err != nil {
			return err
		}
		record(e, each[0])
		return nil
	})
}

// pause leaves the pods alone. containerd goes on asking for their statistics.
func (b *bench) pause(ctx context.Context) error {
	select {
	case <-time.After(time.Duration(b.amount.idle) * time.Second):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// usages are what the processes take that are there for each of the engine's pods, and how
// many processes that are together. Pods that share shims have one usage, the mean: all
// there is, divided by the number of pods.
func (e *engine) usages(ctx context.Context, pods []*pod, all []node.Process) (each []usage, processes int, err error) {
	if e.shimOf != nil {
		pids, err := processesOf(ctx, pods, all)
		if err != nil {
			return nil, 0, err
		}
		u, err := usageOf(pids, len(pods))
		return []usage{u}, len(pids), err
	}
	for _, p := range pods {
		pids, err := processesOf(ctx, []*pod{p}, all)
		if err != nil {
			return nil, 0, err
		}
		u, err := usageOf(pids, 1)
		if err != nil {
			return nil, 0, err
		}
		each = append(each, u)
		processes += len(pids)
	}
	return each, processes, nil
}

// processesOf are the pids of what is there for any of the pods beside their containers.
func processesOf(ctx context.Context, pods []*pod, all []node.Process) ([]int, error) {
	pids := map[int]bool{}
	for _, p := range pods {
		found, err := p.overhead(ctx, all)
		if err != nil {
			return nil, err
		}
		for _, process := range found {
			pids[process.Pid] = true
		}
	}
	return slices.Collect(maps.Keys(pids)), nil
}

// usageOf is the part of each of some pods in what processes take.
func usageOf(pids []int, pods int) (u usage, err error) {
	for _, pid := range pids {
		rollup, err := readFields(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Anonymous", "Pss")
		if err != nil {
			return u, err
		}
		status, err := readFields(fmt.Sprintf("/proc/%d/status", pid), "VmPTE", "Threads")
		if err != nil {
			return u, err
		}
		part := 1 / float64(pods)
		u.private += part * rollup["Anonymous"]
		u.pss += part * rollup["Pss"]
		u.kernel += part * (status["VmPTE"] + kernelStack*status["Threads"])
		u.threads += part * status["Threads"]
		u.processes += part
	}
	return u, nil
}

// kernelStack is the size of a thread's stack in the kernel, in kB: THREAD_SIZE, on
// x86-64 (Documentation/arch/x86/kernel-stacks.rst) and on arm64.
const kernelStack = 16

// readFields reads numbers out of a file of lines such as "VmPTE:   40 kB"
// (proc_pid_status(5), proc_pid_smaps(5)).
func readFields(path string, names ...string) (map[string]float64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	found := map[string]float64{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		for _, n := range names {
			if n != name {
				continue
			}
			if found[n], err = strconv.ParseFloat(strings.Fields(value)[0], 64); err != nil {
				return nil, fmt.Errorf("cannot read %s in %s: %w", n, path, err)
			}
		}
	}
	if len(found) != len(names) {
		return nil, fmt.Errorf("cannot find all of %s in %s", strings.Join(names, ", "), path)
	}
	return found, nil
}
