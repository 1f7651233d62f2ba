package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// lives are the parts of a pod's life that are timed.
const (
	stepSandbox         = "RunPodSandbox"
	stepContainer       = "create and start a container"
	stepReady           = "pod ready: both of them"
	stepExec            = "exec of `true`"
	stepRemoveContainer = "stop and remove the container"
	stepRemoveSandbox   = "stop and remove the sandbox"
)

func latencyGroup(n network, concurrency int) string {
	return fmt.Sprintf("Latency, %s, %s", n, map[bool]string{true: "one pod after the other", false: fmt.Sprintf("%d pods at a time", concurrency)}[concurrency == 1])
}

// latency times the life of pods, one by one and many at a time.
func (b *bench) latency(ctx context.Context) error {
	for _, n := range []network{hostNetwork, cniNetwork} {
		for _, concurrency := range []int{1, 10} {
			group := latencyGroup(n, concurrency)
			rounds := b.amount.rounds[concurrency]
			if n == cniNetwork {
				rounds = max(1, rounds/2) // the plugins take most of the time
			}
			done := b.progress.start(group, (rounds+1)*len(b.engines))
			for round := range rounds + 1 {
				err := b.each(round, func(e *engine) error {
					defer done()
					record := func(step string, took time.Duration) {
						if round > 0 { // the first one warms up
							b.result.add(group, step, "ms", e.name, milliseconds(took))
						}
					}
					return atOnce(concurrency, func() error { return e.live(ctx, n, record) })
				})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// atOnce calls f many times at once.
func atOnce(n int, f func() error) error {
	errs := make(chan error)
	for range n {
		go func() { errs <- f() }()
	}
	var all []error
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// live is the life of a pod with one container.
func (e *engine) live(ctx context.Context, n network, record func(step string, took time.Duration)) error {
	var p *pod
	begin := time.Now()
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{stepSandbox, func() (err error) { p, err = e.runPod(ctx, n); return err }},
		{stepContainer, func() error { return p.addContainer(ctx, sleep...) }},
		{stepExec, func() error { return p.exec(ctx, "true") }},
		{stepRemoveContainer, func() error { return p.removeContainers(ctx) }},
		{stepRemoveSandbox, func() error { return p.remove(ctx) }},
	} {
		start := time.Now()
		if err := s.do(); err != nil {
			return err
		}
		record(s.name, time.Since(start))
		if s.name == stepContainer {
			record(stepReady, time.Since(begin))
		}
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
