// Command demo runs the same pod of two containers on a private containerd: with
// the stock shim and a pause process, with this project's shim, with that by the
// Sandbox API, and with that shared by many pods; and shows side by side what there is of
// each. `make demo` runs it. It needs root, leaves the host's own containerd alone, and
// removes all that it made.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// leastIdle is how long the pods are left alone before their memory is read. The
// timing of others takes longer than that, unless few are timed.
const leastIdle = 5 * time.Second

func main() {
	path := flag.String("path", "", "directories of containerd and the shims, as in $PATH and before it")
	rounds := flag.Int("rounds", 9, "how many pods are timed with each shim")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	d := demo{
		path: filepath.SplitList(*path), rounds: *rounds,
		out: os.Stdout, colour: clever(os.Stdout) && os.Getenv("NO_COLOR") == "",
		progress: progress{w: os.Stderr, live: clever(os.Stderr)},
	}
	if err := d.run(ctx); err != nil {
		d.progress.clear()
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "demo: interrupted")
			os.Exit(130)
		}
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	path     []string
	rounds   int
	out      io.Writer
	colour   bool
	progress progress
	node     *node.Node
}

func (d *demo) run(ctx context.Context) (err error) {
	d.progress.step("starting a private containerd")
	if d.node, err = node.Start(ctx, node.Options{
		Path:     d.path,
		Handlers: []node.Handler{{Name: sandboxHandler, Type: node.PauseType, OCIRuntime: "runc", Sandboxer: "shim"}},
	}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	r, err := d.examine(ctx)
	if err != nil {
		return fmt.Errorf("%w\nlog of containerd:\n%s", err, d.node.LogTail(10))
	}
	title := d.title(ctx)
	d.progress.clear()
	fmt.Fprintf(d.out, "\n%s\n\n", title.render(d.colour))
	if err := r.write(d.out, d.colour); err != nil {
		return err
	}
	if err := d.removePods(ctx); err != nil {
		return err
	}
	if r.faults > 0 {
		return fmt.Errorf("%d of the checks above failed", r.faults)
	}
	return nil
}

// examine runs the pods and finds out about them.
func (d *demo) examine(ctx context.Context) (*report, error) {
	r := &report{}
	var err error
	if r.host, err = readNamespaces("/proc/self"); err != nil {
		return nil, err
	}
	for _, c := range columns {
		d.progress.step("running %s with %s", c.howMany(), c.runtime)
		f := finding{column: c}
		for range c.pods {
			p, err := runSandbox(ctx, d.node, c, nil)
			if err != nil {
				return nil, err
			}
			if err := p.startApp(ctx); err != nil {
				return nil, err
			}
			f.pods = append(f.pods, p)
		}
		f.pod = f.pods[c.pods-1] // not the one for which a shared shim was started
		f.fromHost, f.fromB = f.pod.fromHost(ctx), f.pod.fromB(ctx)
		r.findings = append(r.findings, f)
	}
	quiet := time.Now()
	results, err := d.measure(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(leastIdle - time.Since(quiet)):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	idle := time.Since(quiet)
	for i := range r.findings {
		f := &r.findings[i]
		f.times = results[i]
		if f.anatomy, err = dissect(ctx, f.pod, f.pods, r.host); err != nil {
			return nil, err
		}
	}
	r.build(d.rounds, idle)
	return r, nil
}

func (d *demo) measure(ctx context.Context) ([][]times, error) {
	return measure(ctx, d.node, d.rounds, func(round int) {
		if round == 0 {
			d.progress.step("warming up")
		} else {
			d.progress.step("timing pods: round %d of %d", round, d.rounds)
		}
	})
}

func (d *demo) title(ctx context.Context) text {
	containerd := "containerd"
	if v, err := d.node.CRI().Version(ctx, &runtime.VersionRequest{}); err == nil {
		containerd += " " + v.RuntimeVersion
	}
	runc := "runc"
	if path, err := d.node.LookPath(runc); err == nil {
		if out, err := exec.CommandContext(ctx, path, "--version").Output(); err == nil {
			first, _, _ := strings.Cut(string(out), "\n")
			runc = strings.Replace(first, " version", "", 1)
		}
	}
	return join(styled(bold, "The same pod in four ways"),
		styled(dim, "  two containers; %s, %s, %s, %d CPUs", containerd, runc, kernel(), goruntime.NumCPU()))
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "Linux"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}

// removePods removes the pods as kubelet would, and looks for what is left.
func (d *demo) removePods(ctx context.Context) error {
	d.progress.step("removing the pods")
	if err := d.node.RemoveAll(ctx); err != nil {
		return err
	}
	left := d.node.Leftovers(ctx)
	d.progress.clear()
	if len(left) > 0 {
		return fmt.Errorf("the pods are removed, but there is still:\n  %s", strings.Join(left, "\n  "))
	}
	said := join(styled(green, "✓ "), styled(plain, "%s",
		"All pods removed: no process, mount, cgroup, namespace, interface, socket or file of them is left."))
	fmt.Fprintln(d.out, said.render(d.colour))
	return nil
}

// close removes the node, whatever has gone wrong before.
func (d *demo) close(ctx context.Context) error {
	interrupted := ctx.Err() != nil
	if interrupted {
		d.progress.step("interrupted: removing all")
	}
	err := d.node.Close()
	if err != nil && interrupted { // nobody shows what followed from an interrupt, but for this
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
	}
	return err
}

// progress says on the terminal what is going on, in a line that goes away;
// elsewhere in lines that stay.
type progress struct {
	w    io.Writer
	live bool
}

func (p progress) step(format string, args ...any) {
	if p.live {
		fmt.Fprintf(p.w, "\r\x1b[K· "+format+" …", args...)
	} else {
		fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p progress) clear() {
	if p.live {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// clever tells whether a file is a terminal that knows escape sequences. Whether
// it shall get colours is another question (https://no-color.org).
func clever(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb" && os.Getenv("TERM") != ""
}
