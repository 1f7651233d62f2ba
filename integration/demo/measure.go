package main

import (
	"context"
	"slices"
	"time"

	"containerd-shim-pause-v2/integration/node"
)

// times are how long the steps of a pod's life took.
type times struct {
	sandbox time.Duration // RunPodSandbox
	ready   time.Duration // from the start of RunPodSandbox until all containers run
	gone    time.Duration // StopPodSandbox, with all containers running, and RemovePodSandbox
	bare    time.Duration // RunPodSandbox on the host's network
}

// measure runs pods by turns, one of each column in a round, after a round that
// does not count. The result is by column.
func measure(ctx context.Context, n *node.Node, rounds int, progress func(round int)) ([][]times, error) {
	results := make([][]times, len(columns))
	for round := range rounds + 1 {
		progress(round)
		for i, c := range columns {
			t, err := oneLife(ctx, n, c)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				results[i] = append(results[i], t)
			}
		}
	}
	return results, nil
}

// oneLife runs and removes a pod with its containers, and another one without any
// on the host's network.
func oneLife(ctx context.Context, n *node.Node, c column) (t times, err error) {
	begin := time.Now()
	p, err := runSandbox(ctx, n, c, nil)
	if err != nil {
		return t, err
	}
	t.sandbox = time.Since(begin)
	if err := p.startApp(ctx); err != nil {
		return t, err
	}
	t.ready = time.Since(begin)
	begin = time.Now()
	if err := p.remove(ctx); err != nil {
		return t, err
	}
	t.gone = time.Since(begin)
	begin = time.Now()
	if p, err = runSandbox(ctx, n, c, node.HostNetwork); err != nil {
		return t, err
	}
	t.bare = time.Since(begin)
	return t, p.remove(ctx)
}

// median of how long a step took.
func median(all []times, step func(times) time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	var took []time.Duration
	for _, t := range all {
		took = append(took, step(t))
	}
	slices.Sort(took)
	return (took[(len(took)-1)/2] + took[len(took)/2]) / 2
}
