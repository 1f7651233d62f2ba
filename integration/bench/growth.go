package main

import (
	"context"
	"fmt"
)

const (
	execGrowth    = "Growth of private memory in a pod by execs"
	restartGrowth = "Growth of private memory in a pod by restarts of its container"
)

// growth reads what is added to the memory of a pod by what is done in it again and
// again, compared with the pod before the first time.
func (b *bench) growth(ctx context.Context) error {
	err := b.growthBy(ctx, execGrowth, "exec", b.amount.execs, func(p *pod) error { return p.exec(ctx, "true") })
	if err != nil {
		return err
	}
	return b.growthBy(ctx, restartGrowth, "restart", b.amount.restarts, func(p *pod) error {
		if err := p.removeContainers(ctx); err != nil {
			return err
		}
		return p.addContainer(ctx, sleep...)
	})
}

func growthAfter(n int, what string) string { return "after " + plural(n, what) }

func (b *bench) growthBy(ctx context.Context, group, what string, numbers []int, do func(*pod) error) error {
	done := b.progress.start(group, numbers[len(numbers)-1]*len(b.engines))
	before := map[*engine]float64{}
	pods, err := b.runPods(ctx)
	if err != nil {
		return err
	}
	read := func(record func(*engine, float64)) error {
		return b.readIdle(ctx, pods, func(e *engine, u usage) { record(e, u.private) })
	}
	if err := read(func(e *engine, kB float64) { before[e] = kB }); err != nil {
		return err
	}
	n := 0
	for _, number := range numbers {
		// Some by one engine, then by the next: the pods have the same age.
		for ; n < number; n++ {
			err := b.each(n, func(e *engine) error {
				defer done()
				return do(pods[e])
			})
			if err != nil {
				return fmt.Errorf("%s %d: %w", what, n+1, err)
			}
		}
		err := read(func(e *engine, kB float64) {
			b.result.add(group, growthAfter(number, what), "kB", e.name, kB-before[e])
		})
		if err != nil {
			return err
		}
	}
	return b.each(0, func(e *engine) error { return pods[e].remove(ctx) })
}
