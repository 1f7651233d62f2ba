package main

import (
	"context"
	"time"
)

const (
	cpuGroup = "CPU time of a pod with one container, host network"
	cpuUp    = "up: until the container runs"
	cpuDown  = "down: until nothing is left"

	// cpuPods are made and removed one after the other: what goes on when the call
	// is over, such as the end of processes, is then little of the whole.
	cpuPods = 10

	// settle is for the rest.
	settle = 300 * time.Millisecond
)

// cpu measures the CPU time that all processes of an engine use, user and system:
// the daemon, shims, OCI runtimes, containers.
func (b *bench) cpu(ctx context.Context) error {
	done := b.progress.start("CPU time", (b.amount.cpu+1)*len(b.engines))
	for round := range b.amount.cpu + 1 {
		err := b.each(round, func(e *engine) error {
			defer done()
			if len(e.cgroups) == 0 {
				return nil
			}
			up, down, err := e.cpuOfPods(ctx)
			if err == nil && round > 0 {
				b.result.add(cpuGroup, cpuUp, "ms", e.name, up)
				b.result.add(cpuGroup, cpuDown, "ms", e.name, down)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// cpuOfPods is the CPU time of one pod of several, in ms.
func (e *engine) cpuOfPods(ctx context.Context) (up, down float64, err error) {
	var pods []*pod
	up, err = e.cpuOf(func() error {
		for range cpuPods {
			p, err := e.runPod(ctx, hostNetwork)
			if err != nil {
				return err
			}
			pods = append(pods, p)
			if err := p.addContainer(ctx, sleep...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	down, err = e.cpuOf(func() error {
		for _, p := range pods {
			if err := p.removeContainers(ctx); err != nil {
				return err
			}
			if err := p.remove(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	return up / cpuPods, down / cpuPods, err
}

// cpuOf is the CPU time that the engine uses while f runs, in ms.
func (e *engine) cpuOf(f func() error) (float64, error) {
	before, err := e.cpuTime()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	time.Sleep(settle)
	after, err := e.cpuTime()
	return after - before, err
}
