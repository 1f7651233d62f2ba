package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"containerd-shim-pause-v2/integration/node"
)

// verb is a call of the Task API on a container's init, past the checks of the
// client library.
type verb func(ctx context.Context, c *container) error

var verbs = map[string]verb{
	"start": func(ctx context.Context, c *container) error {
		_, err := theNode.Client().TaskService().Start(ctx, &tasks.StartRequest{ContainerID: c.ID()})
		return errgrpc.ToNative(err)
	},
	"pause":  func(ctx context.Context, c *container) error { return c.task.Pause(ctx) },
	"resume": func(ctx context.Context, c *container) error { return c.task.Resume(ctx) },
	"kill":   func(ctx context.Context, c *container) error { return c.task.Kill(ctx, syscall.SIGCONT) },
	"exec": func(ctx context.Context, c *container) error {
		p, err := c.task.Exec(ctx, "e1", &specs.Process{Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/bin"}}, cio.NullIO)
		if err != nil {
			return err
		}
		defer p.Delete(ctx, containerd.WithProcessKill)
		return p.Start(ctx)
	},
	"delete": func(ctx context.Context, c *container) error {
		_, err := theNode.Client().TaskService().Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: c.ID()})
		return errgrpc.ToNative(err)
	},
	"update": func(ctx context.Context, c *container) error {
		shares := uint64(512)
		return c.task.Update(ctx, containerd.WithResources(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}}))
	},
	"checkpoint": func(ctx context.Context, c *container) error {
		_, err := c.task.Checkpoint(ctx, containerd.WithCheckpointImagePath(filepath.Join(c.t.TempDir(), "image")))
		return err
	},
}

func TestVerbsInWrongStates(t *testing.T) {
	states := map[string]func(c *container){
		"created": func(c *container) { c.create(c.streams(nil)) },
		"running": func(c *container) { c.run(c.streams(nil)) },
		"paused": func(c *container) {
			c.run(c.streams(nil))
			must(c.t, c.task.Pause(c.ctx))
		},
		"stopped": func(c *container) {
			c.run(c.streams(nil))
			must(c.t, c.task.Kill(c.ctx, syscall.SIGKILL))
			c.wait()
		},
	}
	wrong := map[string][]string{
		"created": {"pause", "resume", "checkpoint"},
		"running": {"start", "resume", "delete"},
		"paused":  {"start", "pause", "delete", "exec"},
		"stopped": {"start", "pause", "resume", "exec", "kill", "checkpoint"},
	}
	eachShim(t, func(t *testing.T, shim string) {
		for state, enter := range states {
			c := newContainer(t, shim, sh("sleep 1000"))
			enter(c)
			before, err := c.task.Status(c.ctx)
			must(t, err)
			for _, name := range wrong[state] {
				if err := verbs[name](c.ctx, c); err == nil {
					t.Errorf("%s of a %s task: no error", name, state)
				}
				after, err := c.task.Status(c.ctx)
				must(t, err)
				expectEqual(t, "state after "+name, after.Status, before.Status)
			}
			if state == "paused" {
				must(t, c.task.Resume(c.ctx))
			}
		}
	})
}

func TestKillOfStoppedTaskIsNotFound(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("true"))
		c.wait()
		if err := c.task.Kill(c.ctx, syscall.SIGTERM); !errdefs.IsNotFound(err) {
			t.Errorf("error %v is not of the kind NotFound", err)
		}
	})
}

// A task that was created, but never started, can be killed and deleted.
func TestCreatedTaskIsKilledAndDeleted(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("true"))
		c.create(c.streams(nil))
		status, err := c.task.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Created)
		must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, c.exited), 137)
		_, err = c.task.Delete(c.ctx)
		must(t, err)
	})
}

// The shim itself is asked for things that it does not have: containerd would
// answer most of this without it.
func TestUnknownIDs(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		task, done, err := theNode.Shim(theNode.ID, c.ID())
		must(t, err)
		defer done()
		for _, id := range []struct{ id, exec string }{{"nobody", ""}, {c.ID(), "nobody"}, {"nobody", "nobody"}} {
			for name, call := range map[string]func() error{
				"State": func() error {
					_, err := task.State(c.ctx, &taskv3.StateRequest{ID: id.id, ExecID: id.exec})
					return err
				},
				"Start": func() error {
					_, err := task.Start(c.ctx, &taskv3.StartRequest{ID: id.id, ExecID: id.exec})
					return err
				},
				"Delete": func() error {
					_, err := task.Delete(c.ctx, &taskv3.DeleteRequest{ID: id.id, ExecID: id.exec})
					return err
				},
				"Kill": func() error {
					_, err := task.Kill(c.ctx, &taskv3.KillRequest{ID: id.id, ExecID: id.exec, Signal: 9})
					return err
				},
				"Wait": func() error { _, err := task.Wait(c.ctx, &taskv3.WaitRequest{ID: id.id, ExecID: id.exec}); return err },
				"CloseIO": func() error {
					_, err := task.CloseIO(c.ctx, &taskv3.CloseIORequest{ID: id.id, ExecID: id.exec, Stdin: true})
					return err
				},
				"ResizePty": func() error {
					_, err := task.ResizePty(c.ctx, &taskv3.ResizePtyRequest{ID: id.id, ExecID: id.exec, Width: 1, Height: 1})
					return err
				},
			} {
				err := errgrpc.ToNative(call())
				if shim == "runc" && name == "CloseIO" && err != nil {
					continue // an error without a kind
				}
				if !errdefs.IsNotFound(err) {
					t.Errorf("%s of %v: error %v is not of the kind NotFound", name, id, err)
				}
			}
		}
		for name, call := range map[string]func() error{
			"Pids":   func() error { _, err := task.Pids(c.ctx, &taskv3.PidsRequest{ID: "nobody"}); return err },
			"Pause":  func() error { _, err := task.Pause(c.ctx, &taskv3.PauseRequest{ID: "nobody"}); return err },
			"Resume": func() error { _, err := task.Resume(c.ctx, &taskv3.ResumeRequest{ID: "nobody"}); return err },
			"Stats":  func() error { _, err := task.Stats(c.ctx, &taskv3.StatsRequest{ID: "nobody"}); return err },
			"Update": func() error { _, err := task.Update(c.ctx, &taskv3.UpdateTaskRequest{ID: "nobody"}); return err },
			"Exec": func() error {
				_, err := task.Exec(c.ctx, &taskv3.ExecProcessRequest{ID: "nobody", ExecID: "e"})
				return err
			},
			"Checkpoint": func() error {
				_, err := task.Checkpoint(c.ctx, &taskv3.CheckpointTaskRequest{ID: "nobody"})
				return err
			},
		} {
			if err := errgrpc.ToNative(call()); !errdefs.IsNotFound(err) {
				t.Errorf("%s: error %v is not of the kind NotFound", name, err)
			}
		}
	})
}

func TestMissingBundle(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		task, done, err := theNode.Shim(theNode.ID, c.ID())
		must(t, err)
		defer done()
		if _, err := task.Create(c.ctx, &taskv3.CreateTaskRequest{ID: "another", Bundle: filepath.Join(theNode.Dir, "no-such-bundle")}); err == nil {
			t.Error("no error")
		}
		// The shim has come to no harm.
		c.exec("e1", nil, nil, "true").mustFinish(0)
	})
}

func TestMissingRootfs(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		ctx := testContext(t)
		moveInTask(t, shim)
		c, err := theNode.Client().NewContainer(ctx, "no-rootfs",
			containerd.WithNewSpec(oci.WithProcessArgs("true"), oci.WithRootFSPath("/no/such/rootfs"), oci.WithCgroup(theNode.CgroupsPath("no-rootfs"))),
			containerd.WithRuntime(runtimeType(shim), runtimeOptions(nil)))
		must(t, err)
		atEnd(t, func(ctx context.Context) error { return node.RemoveContainer(ctx, c) })
		if _, err := c.NewTask(ctx, cio.NullIO); err == nil {
			t.Error("no error")
		}
	})
}

func TestRootfsThatCannotBeMounted(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("sleep 1000"))
		c.run(c.streams(nil))
		task, done, err := theNode.Shim(theNode.ID, c.ID())
		must(t, err)
		defer done()
		bundle := bundleByHand(t, c, "another")
		_, err = task.Create(c.ctx, &taskv3.CreateTaskRequest{ID: "another", Bundle: bundle, Options: encodedOptions(t), Rootfs: []*types.Mount{
			{Type: "bind", Source: filepath.Join(theNode.Bundle(theNode.ID, c.ID()), "rootfs"), Options: []string{"rbind", "ro"}},
			{Type: "bind", Source: "/no/such/source", Target: "", Options: []string{"rbind"}},
		}})
		if err == nil {
			t.Error("no error")
		}
	})
}

// encodedOptions are runtimeOptions for a request that goes past containerd.
func encodedOptions(t *testing.T) *anypb.Any {
	t.Helper()
	encoded, err := typeurl.MarshalAnyToProto(runtimeOptions(nil))
	must(t, err)
	return encoded
}

// bundleByHand makes a bundle like the one of a container, with a cgroup of its
// own.
func bundleByHand(t *testing.T, c *container, id string) string {
	t.Helper()
	bundle := filepath.Join(theNode.Dir, "by-hand", id)
	must(t, os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o711))
	t.Cleanup(func() { os.RemoveAll(bundle) })
	spec := readFile(t, filepath.Join(theNode.Bundle(theNode.ID, c.ID()), "config.json"))
	spec = strings.ReplaceAll(spec, theNode.CgroupsPath(c.ID()), theNode.CgroupsPath(id))
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600))
	return bundle
}

// Of two Creates of one id at once, one succeeds, and is not harmed by the other.
func TestTwoCreatesAtOnce(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		for range 5 {
			c := newContainer(t, shim, sh("exit 3"))
			made := make([]containerd.Task, 2)
			var both sync.WaitGroup
			for i := range made {
				both.Go(func() { made[i], _ = c.NewTask(c.ctx, cio.NullIO) }) // the error is that there is none
			}
			both.Wait()
			made = slices.DeleteFunc(made, func(t containerd.Task) bool { return t == nil })
			if len(made) != 1 {
				t.Fatalf("%d tasks were created", len(made))
			}
			exited, err := made[0].Wait(c.ctx)
			must(t, err)
			must(t, made[0].Start(c.ctx))
			expectEqual(t, "exit code", exitCode(t, exited), 3)
			c.remove()
		}
	})
}

// The same, where nothing but the shim can tell. The stock shim lets both in.
func TestTwoCreatesAtOnceInTheShim(t *testing.T) {
	withPause(t, func(t *testing.T) {
		c := startContainer(t, "pause", sh("sleep 1000"))
		task, done, err := theNode.Shim(theNode.ID, c.ID())
		must(t, err)
		defer done()
		request := &taskv3.CreateTaskRequest{
			ID:      "twice",
			Bundle:  bundleByHand(t, c, "twice"),
			Options: encodedOptions(t),
			Rootfs:  []*types.Mount{{Type: "bind", Source: filepath.Join(theNode.Bundle(theNode.ID, c.ID()), "rootfs"), Options: []string{"rbind"}}},
		}
		errs := make([]error, 8)
		var all sync.WaitGroup
		for i := range errs {
			all.Go(func() { _, errs[i] = task.Create(c.ctx, request) })
		}
		all.Wait()
		refused := 0
		for _, err := range errs {
			if err == nil {
				continue
			}
			refused++
			if !errdefs.IsAlreadyExists(errgrpc.ToNative(err)) {
				t.Errorf("error %v is not of the kind AlreadyExists", err)
			}
		}
		expectEqual(t, "refused Creates", refused, len(errs)-1)
		if _, err := task.Start(c.ctx, &taskv3.StartRequest{ID: "twice"}); err != nil {
			t.Error(err)
		}
		if _, err := task.Kill(c.ctx, &taskv3.KillRequest{ID: "twice", Signal: 9}); err != nil {
			t.Error(err)
		}
		if _, err := task.Wait(c.ctx, &taskv3.WaitRequest{ID: "twice"}); err != nil {
			t.Error(err)
		}
		if _, err := task.Delete(c.ctx, &taskv3.DeleteRequest{ID: "twice"}); err != nil {
			t.Error(err)
		}
	})
}

func TestBadSpecs(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000"))
		task, done, err := theNode.Shim(theNode.ID, c.ID())
		must(t, err)
		defer done()
		for i, spec := range []string{
			``,
			`{"ociVersion": "1.0.2", `,
			`[]`,
			`{}`,
			`{"ociVersion": "1.0.2", "process": 5}`,
			`{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"args": ["true"]}, "linux": {"namespaces": [{"type": "flavour"}]}}`,
		} {
			id := fmt.Sprintf("bad%d", i)
			bundle := bundleByHand(t, c, id)
			must(t, os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600))
			if _, err := task.Create(c.ctx, &taskv3.CreateTaskRequest{ID: id, Bundle: bundle}); err == nil {
				t.Errorf("%s: no error", spec)
			}
		}
	})
}

// The same by way of containerd, which does not look into the spec this far.
func TestBadSpecByContainerd(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		ctx := testContext(t)
		options, err := typeurl.MarshalAny(runtimeOptions(nil))
		must(t, err)
		_, err = theNode.Client().ContainerService().Create(ctx, containers.Container{
			ID:      "bad",
			Runtime: containers.RuntimeInfo{Name: runtimeType(shim), Options: options},
			Spec: &anypb.Any{
				TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec",
				Value:   []byte(`{"ociVersion": "1.0.2", "process": 5}`),
			},
		})
		must(t, err)
		c, err := theNode.Client().LoadContainer(ctx, "bad")
		must(t, err)
		atEnd(t, func(ctx context.Context) error { return node.RemoveContainer(ctx, c) })
		if _, err := theNode.Client().TaskService().Create(ctx, &tasks.CreateTaskRequest{ContainerID: c.ID()}); err == nil {
			t.Error("no error")
		}
	})
}
