package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

const compositionGoroutines = "goroutines"

// stage is something that is added to a shared shim.
type stage struct {
	group string
	// do adds so many of it to the pods.
	do    func(ctx context.Context, e *engine, pods []*pod) ([]*pod, error)
	added int
}

// stages are a shim with one pod, and what makes it one with many pods of two containers.
func stages(members int) []stage {
	name := func(what string) string { return "A shared shim, idle: " + what }
	run := func(n int) func(context.Context, *engine, []*pod) ([]*pod, error) {
		return func(ctx context.Context, e *engine, pods []*pod) ([]*pod, error) {
			for range n {
				p, err := e.runPod(ctx, hostNetwork)
				if err != nil {
					return pods, err
				}
				pods = append(pods, p)
			}
			return pods, nil
		}
	}
	addContainers := func(ctx context.Context, _ *engine, pods []*pod) ([]*pod, error) {
		for _, p := range pods {
			if err := p.addContainer(ctx, sleep...); err != nil {
				return pods, err
			}
		}
		return pods, nil
	}
	return []stage{
		{name("the process, with a first pod that has no container"), run(1), 1},
		{name("each further pod, without containers"), run(members - 1), members - 1},
		{name("the first container of a pod"), addContainers, members},
		{name("a second container"), addContainers, members},
	}
}

// part is what of something a process has.
type part struct {
	name, unit string
	value      float64
}

// composition tells what of a shared shim is the process's, a pod's and a container's: it
// adds one after the other, and divides the differences.
func (b *bench) composition(ctx context.Context) error {
	err := b.compose(ctx, "memory of a shared shim", b.amount.members, func() error { return b.pause(ctx) }, func(pids []int) ([]part, error) {
		u, err := usageOf(pids, 1)
		return []part{
			{memoryPrivate, "kB", u.private},
			{memoryPSS, "kB", u.pss},
			{memoryKernel, "kB", u.kernel},
			{memoryThreads, "", u.threads},
		}, err
	})
	if err != nil {
		return err
	}
	// In other shims, because to write its stacks takes a shim memory; and with few pods,
	// because no more than 64 KiB of stacks, a pipe, are sure to get into the log.
	const few = 3
	return b.compose(ctx, "goroutines of a shared shim", few, func() error {
		time.Sleep(settle)
		return nil
	}, func(pids []int) ([]part, error) {
		n, err := b.goroutines(ctx, pids[0])
		return []part{{compositionGoroutines, "", n}}, err
	})
}

// compose goes through the stages with each engine whose pods share shims, and adds what
// read finds in their shims.
func (b *bench) compose(ctx context.Context, what string, members int, wait func() error, read func(pids []int) ([]part, error)) error {
	var engines []*engine
	for _, e := range b.engines {
		if e.shimOf != nil {
			engines = append(engines, e)
		}
	}
	all := stages(members)
	done := b.progress.start(what, len(all)*len(engines))
	pods, before := map[*engine][]*pod{}, map[*engine][]part{}
	for _, s := range all {
		for _, e := range engines {
			var err error
			if pods[e], err = s.do(ctx, e, pods[e]); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			done()
		}
		if err := wait(); err != nil {
			return err
		}
		for _, e := range engines {
			pids, err := processesOf(ctx, pods[e], node.Processes())
			if err != nil {
				return err
			}
			if len(pids) != 1 {
				return fmt.Errorf("%s: %d pods are in %d processes, not one", e.name, len(pods[e]), len(pids))
			}
			now, err := read(pids)
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			for i, p := range now {
				if before[e] != nil {
					p.value -= before[e][i].value
				}
				b.result.add(s.group, fmt.Sprintf("%s, of %d", p.name, s.added), p.unit, e.name, p.value/float64(s.added))
			}
			before[e] = now
		}
	}
	for _, e := range engines {
		if err := removePods(ctx, pods[e]); err != nil {
			return err
		}
	}
	return nil
}

// endOfStacks ends what a shim writes to its log on SIGUSR1.
const endOfStacks = "=== end of stacks ==="

var goroutineLine = regexp.MustCompile(`goroutine \d+( [^\[\n]*)? \[`)

// goroutines counts those of a shim in the stacks that it writes to its log on SIGUSR1, which
// containerd copies to its own.
func (b *bench) goroutines(ctx context.Context, pid int) (float64, error) {
	const patience = 10 * time.Second
	old, err := os.ReadFile(b.node.LogFile())
	if err != nil {
		return 0, err
	}
	if err := unix.Kill(pid, unix.SIGUSR1); err != nil {
		return 0, err
	}
	for start := time.Now(); time.Since(start) < patience && ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		text, err := os.ReadFile(b.node.LogFile())
		if err != nil {
			return 0, err
		}
		if added := text[len(old):]; bytes.Contains(added, []byte(endOfStacks)) {
			return float64(len(goroutineLine.FindAll(added, -1))), nil
		}
	}
	return 0, errors.Join(fmt.Errorf("shim %d has not written all its stacks into its log", pid), ctx.Err())
}
