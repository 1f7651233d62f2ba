package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
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
	processes, threads   int
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
		all := node.Processes()
		err := b.each(0, func(e *engine) error {
			for _, p := range pods[e] {
				u, err := p.usage(ctx, all)
				if err != nil {
					return err
				}
				of := fmt.Sprintf("%s, of %s", "%s", plural(number, "pod"))
				b.result.add(group, fmt.Sprintf(of, memoryPrivate), "kB", e.name, u.private)
				b.result.add(group, fmt.Sprintf(of, memoryPSS), "kB", e.name, u.pss)
				b.result.add(group, fmt.Sprintf(of, memoryKernel), "kB", e.name, u.kernel)
				b.result.add(group, fmt.Sprintf(of, memoryProcesses), "", e.name, float64(u.processes))
				b.result.add(group, fmt.Sprintf(of, memoryThreads), "", e.name, float64(u.threads))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return b.each(0, func(e *engine) error {
		for _, p := range pods[e] {
			if err := p.remove(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// runPods runs a pod of one container with each engine.
func (b *bench) runPods(ctx context.Context) (map[*engine]*pod, error) {
	pods := map[*engine]*pod{}
	return pods, b.each(0, func(e *engine) (err error) {
		if pods[e], err = e.runPod(ctx, hostNetwork); err == nil {
			err = pods[e].addContainer(ctx, sleep...)
		}
		return err
	})
}

// readIdle reads what the pods take after they have been left alone.
func (b *bench) readIdle(ctx context.Context, pods map[*engine]*pod, record func(*engine, usage)) error {
	if err := b.pause(ctx); err != nil {
		return err
	}
	return b.each(0, func(e *engine) error {
		u, err := pods[e].usage(ctx, node.Processes())
		record(e, u)
		return err
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

// usage is what the processes take that are there for the pod.
func (p *pod) usage(ctx context.Context, all []node.Process) (u usage, err error) {
	processes, err := p.overhead(ctx, all)
	if err != nil {
		return u, err
	}
	for _, process := range processes {
		rollup, err := readFields(fmt.Sprintf("/proc/%d/smaps_rollup", process.Pid), "Anonymous", "Pss")
		if err != nil {
			return u, err
		}
		status, err := readFields(fmt.Sprintf("/proc/%d/status", process.Pid), "VmPTE", "Threads")
		if err != nil {
			return u, err
		}
		u.private += rollup["Anonymous"]
		u.pss += rollup["Pss"]
		u.kernel += status["VmPTE"] + kernelStack*status["Threads"]
		u.threads += int(status["Threads"])
	}
	u.processes = len(processes)
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
