package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// What is tested with a shared shim does not have it to itself: there is a neighbour in it
// first, which must neither show in the test nor be harmed by it.

// neighbour is a pod, or a container without one, in the shim of what is tested.
type neighbour struct {
	shim func() (int, error)
	// runs fails unless the neighbour is as it was; has ended, unless it ended with its shim.
	runs, hasEnded, remove func(ctx context.Context) error

	// ends says that it ends with the shim; else it must outlive the test.
	ends bool

	// has is what there is on the node when it has come.
	has []string
}

// neighbourhood says whose neighbour it is: that of all pods of a handler, or of all containers
// without a pod, which have no handler, in one test.
type neighbourhood struct {
	t       *testing.T
	handler string
}

var neighbours = map[neighbourhood]*neighbour{}

// neighbourOf returns the neighbour of what a test makes. The first call makes it.
func neighbourOf(t *testing.T, handler string, move func(t *testing.T) *neighbour) *neighbour {
	t.Helper()
	who := neighbourhood{t, handler}
	if n := neighbours[who]; n != nil {
		return n
	}
	n := move(t)
	neighbours[who] = n
	n.has = theNode.Present()
	atEnd(t, func(ctx context.Context) error {
		delete(neighbours, who)
		if !n.ends {
			if err := n.runs(ctx); err != nil {
				t.Errorf("the neighbour in the shim: %v", err)
			}
		} else {
			var err error
			eventually(t, "the neighbour has ended with the shim", func() bool {
				err = n.hasEnded(ctx)
				return err == nil
			})
		}
		var err error
		eventually(t, "the neighbour is removed", func() bool { // containerd may be cleaning up after the shim
			err = n.remove(ctx)
			return err == nil
		})
		return err
	})
	return n
}

// moveIn gives the pods of a test a neighbour, if they share a shim.
func moveIn(t *testing.T, handler string) *neighbour {
	t.Helper()
	if !isShared(handler) {
		return nil
	}
	return neighbourOf(t, handler, func(t *testing.T) *neighbour { return neighbourPod(t, handler) })
}

func neighbourPod(t *testing.T, handler string) *neighbour {
	t.Helper()
	ctx := testContext(t)
	change := node.HostNetwork // which takes no time
	if os.Getenv(rootlessEnv) == "usual" {
		change = nil // the host's cannot be had, see rootlessHosts
	}
	p, err := theNode.RunPod(ctx, handler, change)
	must(t, err)
	remove := func(ctx context.Context) error { return errors.Join(p.Stop(ctx), p.Remove(ctx)) }
	id, pid, err := startSleeper(ctx, p)
	if err != nil {
		t.Fatal(errors.Join(err, remove(ctx)))
	}
	state := func(ctx context.Context) (pod runtime.PodSandboxState, container runtime.ContainerState, err error) {
		s, err := p.Status(ctx)
		if err != nil {
			return 0, 0, err
		}
		c, err := theNode.ContainerStatus(ctx, id)
		return s.State, c.GetState(), err
	}
	return &neighbour{
		shim: p.ShimPid,
		runs: func(ctx context.Context) error {
			sandbox, container, err := state(ctx)
			if err != nil {
				return err
			}
			if sandbox != runtime.PodSandboxState_SANDBOX_READY || container != runtime.ContainerState_CONTAINER_RUNNING {
				return fmt.Errorf("the pod is %s, its container %s", sandbox, container)
			}
			if err := unix.Kill(pid, 0); err != nil {
				return fmt.Errorf("process %d: %w", pid, err)
			}
			r, err := theNode.Exec(ctx, id, "true")
			if err == nil && r.ExitCode != 0 {
				err = fmt.Errorf("true: exit code %d", r.ExitCode)
			}
			return err
		},
		hasEnded: func(ctx context.Context) error {
			sandbox, container, err := state(ctx)
			if err == nil && (sandbox != runtime.PodSandboxState_SANDBOX_NOTREADY || container != runtime.ContainerState_CONTAINER_EXITED) {
				err = fmt.Errorf("the pod is %s, its container %s", sandbox, container)
			}
			return err
		},
		remove: remove,
	}
}

// startSleeper starts a container that does nothing.
func startSleeper(ctx context.Context, p *node.Pod) (id string, pid int, err error) {
	if id, err = p.CreateContainer(ctx, "sleeper", []string{"sleep", "100000"}, nil); err != nil {
		return "", 0, err
	}
	if err := theNode.StartContainer(ctx, id); err != nil {
		return "", 0, err
	}
	pid, err = p.ContainerPid(ctx, id)
	return id, pid, err
}

// moveInTask gives the containers of a test that are in no pod a neighbour, if they share
// a shim.
func moveInTask(t *testing.T, shim string) *neighbour {
	t.Helper()
	if !isShared(shim) {
		return nil
	}
	return neighbourOf(t, "", func(t *testing.T) *neighbour { return neighbourTask(t, shim) })
}

func neighbourTask(t *testing.T, shim string) *neighbour {
	t.Helper()
	ctx := testContext(t)
	image, err := theNode.Client().GetImage(ctx, theNode.BusyboxImage)
	must(t, err)
	id := fmt.Sprintf("neighbour%d", containerNumber.Add(1))
	c, err := theNode.Client().NewContainer(ctx, id,
		containerd.WithSnapshotter(theNode.Snapshotter),
		containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "100000"), oci.WithCgroup(theNode.CgroupsPath(id))),
		containerd.WithRuntime(runtimeType(shim), runtimeOptions(nil)),
	)
	must(t, err)
	load := func(ctx context.Context) (containerd.Container, error) { // containerd may have been restarted
		return theNode.Client().LoadContainer(ctx, id)
	}
	remove := func(ctx context.Context) error {
		c, err := load(ctx)
		if err != nil {
			return err
		}
		return node.RemoveContainer(ctx, c)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		t.Fatal(errors.Join(err, remove(ctx)))
	}
	pid := int(task.Pid())
	return &neighbour{
		shim: func() (int, error) { return theNode.ShimPid(theNode.ID, id) },
		runs: func(ctx context.Context) error {
			c, err := load(ctx)
			if err != nil {
				return err
			}
			task, err := c.Task(ctx, nil)
			if err != nil {
				return err
			}
			status, err := task.Status(ctx)
			if err == nil && status.Status != containerd.Running {
				err = fmt.Errorf("the container is %s", status.Status)
			}
			return errors.Join(err, unix.Kill(pid, 0))
		},
		hasEnded: func(ctx context.Context) error {
			c, err := load(ctx)
			if err != nil {
				return err
			}
			if _, err := c.Task(ctx, nil); err == nil {
				return errors.New("there is still a task")
			}
			if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("process %d still runs: %w", pid, err)
			}
			return nil
		},
		remove: remove,
	}
}

// neighbourEndsWithShim says that the test ends the pod's shim, and so the neighbour.
func (p *pod) neighbourEndsWithShim() {
	p.t.Helper()
	if n := neighbours[neighbourhood{p.t, p.Handler}]; n != nil {
		n.ends = true
	}
}

// neighbourEndsWithShim is that of a container without a pod.
func (c *container) neighbourEndsWithShim() {
	c.t.Helper()
	if c.beside != nil {
		c.beside.ends = true
	}
}

// neighboursHave is what there is of the neighbours in a test.
func neighboursHave(t *testing.T) (all []string) {
	t.Helper()
	for who, n := range neighbours {
		if who.t == t {
			all = append(all, n.has...)
		}
	}
	return all
}

// expectShared expects that a shim is the one that the neighbour is in.
func (n *neighbour) expectShared(t *testing.T, shim func() (int, error)) {
	t.Helper()
	if n == nil || n.ends {
		return
	}
	got, err := shim()
	must(t, err)
	want, err := n.shim()
	must(t, err)
	expectEqual(t, "shim beside the neighbour", got, want)
}
