package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"containerd-shim-pause-v2/integration/node"
)

const (
	logGroup    = "Output of a container into its log, by CRI, in lines of 100 bytes"
	readerGroup = "Output of a container to a client that does nothing with it"

	outputRate = "throughput"
	outputShim = "CPU time of the shim for 1 GB"
	outputAll  = "CPU time of everything for 1 GB"
)

// begin and end are lines that the container prints before and after what counts.
const begin, end = "begin of output\n", "end of output\n"

// script prints many megabytes: a file of 8, again and again, so that this takes
// the container little time.
func script(megabytes int) []string {
	line := strings.Repeat("0123456789", 10)[:99]
	return []string{"sh", "-c", fmt.Sprintf(`yes %s | head -c 8000000 >/tmp/lines
		sleep 0.2; echo -n '%s'; sleep 0.1; for i in $(seq %d); do cat /tmp/lines; done; echo -n '%s'; sleep 1000000`,
		line, begin, megabytes/8, end)}
}

// output measures how fast output gets through the shim, and what that takes.
func (b *bench) output(ctx context.Context) error {
	done := b.progress.start("output", 2*b.amount.outputs*len(b.engines))
	for round := range b.amount.outputs {
		err := b.each(round, func(e *engine) error {
			defer done()
			return b.outputToLog(ctx, e)
		})
		if err != nil {
			return err
		}
		err = b.each(round, func(e *engine) error {
			defer done()
			if e.shim == "" {
				return nil
			}
			return b.outputToReader(ctx, e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) outputToLog(ctx context.Context, e *engine) (err error) {
	p, err := e.runPod(ctx, hostNetwork)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, p.remove(context.WithoutCancel(ctx)), os.RemoveAll(p.config.LogDirectory))
	}()
	if err := p.addContainer(ctx, script(b.amount.megabyte)...); err != nil {
		return err
	}
	path := filepath.Join(p.config.LogDirectory, "c0.log")
	if err := awaitLine(ctx, path, begin); err != nil {
		return err
	}
	processes, err := p.overhead(ctx, node.Processes())
	if err != nil {
		return err
	}
	var pids []int
	for _, process := range processes {
		pids = append(pids, process.Pid)
	}
	return b.timeOutput(e, logGroup, pids, func() error { return awaitLine(ctx, path, end) })
}

// awaitLine waits until the last line of a log is this one.
func awaitLine(ctx context.Context, path, line string) error {
	for ctx.Err() == nil {
		f, err := os.Open(path)
		if err == nil {
			tail := make([]byte, len(line))
			if st, err := f.Stat(); err == nil && st.Size() > int64(len(line)) {
				if _, err := f.ReadAt(tail, st.Size()-int64(len(line))); err == nil && string(tail) == line {
					f.Close()
					return nil
				}
			}
			f.Close()
		}
		time.Sleep(2 * time.Millisecond)
	}
	return ctx.Err()
}

// timeOutput records what happens from now until the output has ended.
func (b *bench) timeOutput(e *engine, group string, pids []int, await func() error) error {
	shim, err := cpuTimeOf(pids)
	if err != nil {
		return err
	}
	start := time.Now()
	var failed error
	all, err := e.cpuOf(func() error {
		failed = await()
		return failed
	})
	if err != nil {
		return err
	}
	// settle is part of cpuOf.
	took := time.Since(start) - settle
	after, err := cpuTimeOf(pids)
	if err != nil {
		return err
	}
	GB := float64(b.amount.megabyte) / 1000
	b.result.add(group, outputRate, "MB/s", e.name, float64(b.amount.megabyte)/took.Seconds())
	b.result.add(group, outputShim, "ms", e.name, (after-shim)/GB)
	if len(e.cgroups) > 0 {
		b.result.add(group, outputAll, "ms", e.name, all/GB)
	}
	return nil
}

func (b *bench) outputToReader(ctx context.Context, e *engine) (err error) {
	ctx = b.node.Context(ctx)
	image, err := b.node.Client().GetImage(ctx, b.node.BusyboxImage)
	if err != nil {
		return err
	}
	id := strings.ReplaceAll(e.name, " ", "-") + "-output"
	c, err := b.node.Client().NewContainer(ctx, id,
		containerd.WithSnapshotter(b.node.Snapshotter),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithCgroup(b.node.CgroupsPath(id)), oci.WithProcessArgs(script(b.amount.megabyte)...)),
		containerd.WithRuntime(e.shim, &options.Options{BinaryName: b.ociRuntime, Root: b.node.RuntimeRoot()}),
	)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.RemoveContainer(context.WithoutCancel(ctx), c)) }()
	r := newReader()
	task, err := c.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, r, r), cio.WithFIFODir(b.node.FIFODir())))
	if err != nil {
		return err
	}
	if err := task.Start(ctx); err != nil {
		return err
	}
	if err := await(ctx, r.began); err != nil {
		return err
	}
	shim, err := b.node.ShimPid(b.node.ID, id)
	if err != nil {
		return err
	}
	return b.timeOutput(e, readerGroup, []int{shim}, func() error { return await(ctx, r.ended) })
}

func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reader looks for the lines begin and end, and forgets the rest.
type reader struct{ began, ended chan struct{} }

func newReader() *reader { return &reader{make(chan struct{}), make(chan struct{})} }

// Write implements io.Writer. The container sleeps before and after each of the two
// lines, or the line is at the end of what there is.
func (r *reader) Write(p []byte) (int, error) {
	switch {
	case bytes.Equal(p, []byte(begin)):
		close(r.began)
	case bytes.HasSuffix(p, []byte(end)):
		close(r.ended)
	}
	return len(p), nil
}
