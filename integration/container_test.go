package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"containerd-shim-pause-v2/integration/node"
)

var containerNumber atomic.Int64

// container is a container of busybox outside of any pod, and its task.
type container struct {
	containerd.Container
	t      *testing.T
	ctx    context.Context
	shim   string
	task   containerd.Task
	out    output // what the init process printed
	errOut output
	exited <-chan containerd.ExitStatus
	held   []*os.File // see detached
	beside *neighbour // nil if there is none in the shim
}

// config says what container a test wants.
type config struct {
	args    []string
	spec    []oci.SpecOpts
	options func(*options.Options) // may be nil
}

func sh(script string) config { return config{args: []string{"sh", "-c", script}} }

// newContainer makes a container, without a task, and removes both at the end.
func newContainer(t *testing.T, shim string, cfg config) *container {
	t.Helper()
	c := &container{t: t, ctx: testContext(t), shim: shim}
	if cfg.options == nil { // with others it has another shim
		c.beside = moveInTask(t, shim)
	}
	image, err := theNode.Client().GetImage(c.ctx, theNode.BusyboxImage)
	must(t, err)
	id := fmt.Sprintf("c%d", containerNumber.Add(1))
	spec := append([]oci.SpecOpts{
		oci.WithImageConfig(image), oci.WithProcessArgs(cfg.args...), oci.WithCgroup(theNode.CgroupsPath(id)),
	}, cfg.spec...)
	c.Container, err = theNode.Client().NewContainer(c.ctx, id,
		containerd.WithSnapshotter(theNode.Snapshotter),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(spec...),
		containerd.WithRuntime(runtimeType(shim), runtimeOptions(cfg.options)),
	)
	must(t, err)
	t.Cleanup(c.letGo)
	atEnd(t, func(ctx context.Context) error { return node.RemoveContainer(ctx, c.Container) })
	return c
}

// runtimeOptions are the options of all containers. change may be nil.
func runtimeOptions(change func(*options.Options)) *options.Options {
	o := &options.Options{BinaryName: ociRuntime, Root: theNode.RuntimeRoot(), SystemdCgroup: systemdCgroup}
	if change != nil {
		change(o)
	}
	return o
}

// streams is I/O by FIFOs, with the output kept in c.
func (c *container) streams(stdin io.Reader) cio.Creator {
	return cio.NewCreator(cio.WithStreams(stdin, &c.out, &c.errOut), cio.WithFIFODir(theNode.FIFODir()))
}

// terminal is I/O by a terminal.
func (c *container) terminal(stdin io.Reader) cio.Creator {
	return cio.NewCreator(cio.WithStreams(stdin, &c.out, nil), cio.WithTerminal, cio.WithFIFODir(theNode.FIFODir()))
}

// create creates the task.
func (c *container) create(io cio.Creator, opts ...containerd.NewTaskOpts) {
	c.t.Helper()
	var err error
	c.task, err = c.NewTask(c.ctx, io, opts...)
	must(c.t, err)
	c.exited, err = c.task.Wait(c.ctx)
	must(c.t, err)
}

// run creates and starts the task.
func (c *container) run(io cio.Creator, opts ...containerd.NewTaskOpts) {
	c.t.Helper()
	c.create(io, opts...)
	must(c.t, c.task.Start(c.ctx))
}

// startContainer makes a container and runs its task with FIFOs.
func startContainer(t *testing.T, shim string, cfg config) *container {
	t.Helper()
	c := newContainer(t, shim, cfg)
	c.run(c.streams(nil))
	c.beside.expectShared(t, func() (int, error) { return theNode.ShimPid(theNode.ID, c.ID()) })
	return c
}

// wait waits for the init process and for the end of its output.
func (c *container) wait() (code uint32) {
	c.t.Helper()
	code = exitCode(c.t, c.exited)
	c.task.IO().Wait()
	return code
}

// remove deletes the task and the container, before the test's end.
func (c *container) remove() {
	c.t.Helper()
	must(c.t, node.RemoveContainer(c.ctx, c.Container))
}

func exitCode(t *testing.T, exited <-chan containerd.ExitStatus) uint32 {
	t.Helper()
	status := <-exited
	code, _, err := status.Result()
	must(t, err)
	return code
}

// process is an exec.
type process struct {
	containerd.Process
	c           *container
	out, errOut output
	exited      <-chan containerd.ExitStatus
}

// exec adds and starts an exec.
func (c *container) exec(id string, stdin io.Reader, change func(*specs.Process), args ...string) *process {
	c.t.Helper()
	p, err := c.tryExec(id, stdin, change, args...)
	must(c.t, err)
	return p
}

func (c *container) tryExec(id string, stdin io.Reader, change func(*specs.Process), args ...string) (*process, error) {
	p, err := c.addExec(id, stdin, change, args...)
	if err != nil {
		return nil, err
	}
	if p.exited, err = p.Wait(c.ctx); err == nil {
		err = p.Start(c.ctx)
	}
	if err != nil {
		p.Delete(c.ctx)
		return nil, err
	}
	return p, nil
}

// addExec adds an exec that is yet to be started.
func (c *container) addExec(id string, stdin io.Reader, change func(*specs.Process), args ...string) (*process, error) {
	spec := &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}}
	if change != nil {
		change(spec)
	}
	p := &process{c: c}
	opts := []cio.Opt{cio.WithStreams(stdin, &p.out, &p.errOut), cio.WithFIFODir(theNode.FIFODir())}
	if spec.Terminal {
		opts = []cio.Opt{cio.WithStreams(stdin, &p.out, nil), cio.WithTerminal, cio.WithFIFODir(theNode.FIFODir())}
	}
	var err error
	p.Process, err = c.task.Exec(c.ctx, id, spec, cio.NewCreator(opts...))
	return p, err
}

// finish waits for an exec and its output, and deletes it.
func (p *process) finish() (code uint32, err error) {
	status := <-p.exited
	if code, _, err = status.Result(); err != nil {
		return 0, err
	}
	p.IO().Wait()
	_, err = p.Delete(p.c.ctx)
	return code, err
}

// mustFinish is finish, with the exit code that is expected.
func (p *process) mustFinish(want uint32) {
	p.c.t.Helper()
	code, err := p.finish()
	must(p.c.t, err)
	if code != want {
		p.c.t.Errorf("exec %s: exit code %d, not %d; stderr: %s", p.ID(), code, want, &p.errOut)
	}
}

// output is a buffer for many goroutines.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// expect waits until the output has a text.
func (o *output) expect(t *testing.T, text string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("output: %q", o.String())
		}
	}()
	eventually(t, fmt.Sprintf("output has %q", text), func() bool { return strings.Contains(o.String(), text) })
}
