// Command bench measures runtime handlers of CRI against each other: by turns, in
// the same run, on a private containerd. `make bench` runs it. It needs root, leaves
// the host's own containerd alone, and removes all that it made.
//
// The stock shim with a pause process is what the others are compared with. Other
// engines can be measured beside them, by their CRI socket (-engine).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

func main() {
	b := &bench{progress: newProgress(os.Stderr)}
	path := flag.String("path", "", "directories of containerd and the shims, as in $PATH and before it")
	quick := flag.Bool("quick", false, "measure each thing a few times only; takes three to five minutes")
	only := flag.String("only", "", "measure these parts only, such as latency,memory")
	out := flag.String("out", "", "directory for the result (JSON) and the plots (SVG)")
	with := flag.String("with", "", "results (JSON) of earlier runs, of parts that this one does not measure, to be added to it")
	report := flag.String("report", "", "Markdown file to write the result into, beside the files in the directory of -out")
	flag.StringVar(&b.ociRuntime, "oci-runtime", "runc", "OCI runtime of all handlers, a name in the path or a path")
	flag.Var(&b.others, "engine", "another engine to measure, `NAME=SOCKET[,HANDLER[,IMAGE]]`; may be repeated")
	flag.StringVar(&b.command, "command", "", "what the report says that it was made by")
	flag.Parse()
	b.path, b.only, b.with = filepath.SplitList(*path), *only, filepath.SplitList(*with)
	b.amount = full
	if *quick {
		b.amount = few
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := b.main(ctx, *out, *report); err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "bench: interrupted")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	path       []string
	only       string
	ociRuntime string
	others     engineFlags
	command    string
	with       []string // paths of earlier results
	amount     amount
	progress   *progress

	node    *node.Node
	engines []*engine // the first is what others are compared with
	result  *Result
}

func (b *bench) main(ctx context.Context, out, report string) error {
	if err := b.measure(ctx); err != nil {
		return err
	}
	for _, earlier := range b.with {
		if err := b.result.addFrom(earlier); err != nil {
			return err
		}
	}
	if out != "" {
		if err := b.result.save(out); err != nil {
			return err
		}
	}
	if report != "" {
		if err := writeReport(report, out, b.result); err != nil {
			return err
		}
	}
	fmt.Print(b.result.text())
	return nil
}

// measure fills in the result.
func (b *bench) measure(ctx context.Context) (err error) {
	b.progress.say("start a private containerd")
	b.node, err = node.Start(ctx, node.Options{
		Path: b.path, OCIRuntime: b.ociRuntime,
		Handlers: handlers(b.ociRuntime),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.node.Close()) }()
	if err := b.findEngines(); err != nil {
		return err
	}
	defer b.closeEngines()
	if b.result, err = b.newResult(ctx); err != nil {
		return err
	}
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"program", b.program},
		{"latency", b.besideOthers(b.latency)},
		{"cpu", b.besideOthers(b.cpu)},
		{"memory", b.memory},
		{"composition", b.composition},
		{"output", b.output},
		{"growth", b.growth},
	} {
		if b.only != "" && !strings.Contains(","+b.only+",", ","+part.name+",") {
			continue
		}
		if err := part.run(ctx); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", part.name, err), b.removeAll(ctx))
		}
	}
	return nil
}

// amount is how often things are measured.
type amount struct {
	programs int         // calls of the binaries
	rounds   map[int]int // rounds of pods, by how many pods are made at a time
	cpu      int         // rounds of cpuPods pods
	pods     []int       // numbers of pods of which the memory is read
	members  int         // pods of the shim whose composition is read
	idle     int         // seconds that the pods are left alone before
	megabyte int         // of output
	outputs  int         // rounds of output
	execs    []int       // numbers of execs after which the memory is read
	restarts []int       // likewise
}

var (
	full = amount{
		programs: 100,
		rounds:   map[int]int{1: 60, 10: 6},
		cpu:      8,
		pods:     []int{1, 20, 100},
		members:  podsPerShim,
		idle:     30,
		megabyte: 512, outputs: 5,
		execs:    []int{1, 100, 1000, 10000},
		restarts: []int{1, 100, 300, 1000},
	}
	few = amount{
		programs: 10,
		rounds:   map[int]int{1: 10, 10: 1},
		cpu:      2,
		pods:     []int{1, 5},
		members:  5,
		idle:     4,
		megabyte: 128, outputs: 1,
		execs:    []int{1, 100},
		restarts: []int{1, 20},
	}
)
