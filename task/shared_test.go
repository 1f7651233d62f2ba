package task

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/process/proctest"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// newSharedNode returns a node whose sandboxes have a thread each. There is room for all
// that has an id in expected.
func newSharedNode(t *testing.T, expected ...string) *node {
	t.Helper()
	return startNode(t, func(n *node) (Host, bool) {
		n.expectedIDs = expected
		host := n.host()
		host.Shared = true
		host.Expects = func(id string) (time.Time, bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.born, slices.Contains(n.expectedIDs, id)
		}
		host.Forget = n.leave
		host.Removed = func(id, bundle string, st process.Status) {
			n.leave(id)
			n.noteRemoved(id, bundle, st)
		}
		return host, true
	})
}

func (n *node) leave(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.expectedIDs = slices.DeleteFunc(slices.Clone(n.expectedIDs), func(other string) bool { return other == id })
}

// wantExpected fails the test if there is not room for exactly these.
func (n *node) wantExpected(want ...string) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(n.expectedIDs, want) {
		n.t.Errorf("there is room for %v, want %v", n.expectedIDs, want)
	}
}

func (n *node) wantTasks(want ...string) {
	n.t.Helper()
	var ids []string
	for _, task := range n.service.supervisor.Tasks() {
		ids = append(ids, task.ID)
	}
	slices.Sort(ids)
	if !slices.Equal(ids, want) {
		n.t.Errorf("the tasks are %v, want %v", ids, want)
	}
}

// sandboxOf creates and starts a sandbox, and returns its bundle.
func (n *node) sandboxOf(id string) string {
	n.t.Helper()
	ctx, bundle := proctest.Context(n.t), n.t.TempDir()
	_, err := n.sandboxes.CreateSandbox(ctx, &sandboxapi.CreateSandboxRequest{SandboxID: id, BundlePath: bundle})
	proctest.Must(n.t, err)
	n.t.Cleanup(func() { proctest.Must(n.t, n.service.GiveUp(proctest.Context(n.t), id, bundle)) })
	_, err = n.sandboxes.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
	proctest.Must(n.t, err)
	return bundle
}

// memberOf creates and starts a container of a sandbox, and returns its bundle.
func (n *node) memberOf(sandbox, id string) string {
	n.t.Helper()
	r := n.request(id, &specs.Spec{
		Process:     &specs.Process{Args: []string{proctest.Script(n.t, forever)}},
		Annotations: map[string]string{"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": sandbox},
		Linux:       &specs.Linux{CgroupsPath: cgroupPath(n.t) + "-" + id},
	})
	n.make(r)
	_, err := n.Start(proctest.Context(n.t), &taskapi.StartRequest{ID: id})
	proctest.Must(n.t, err)
	return r.Bundle
}

func (n *node) shutDown(id string) error {
	n.t.Helper()
	_, err := n.sandboxes.ShutdownSandbox(proctest.Context(n.t), &sandboxapi.ShutdownSandboxRequest{SandboxID: id})
	return err
}

// wantShutdowns fails the test if the process has not been asked to end so often.
func (n *node) wantShutdowns(want int) {
	n.t.Helper()
	if got := len(n.shutdowns); got != want {
		n.t.Errorf("the process has been asked to end %d times, want %d", got, want)
	}
}

func TestShutdownOfASandboxLeavesTheOthers(t *testing.T) {
	n := newSharedNode(t, "a", "b", "alone", "later")
	n.sandboxOf("a")
	n.sandboxOf("b")
	for id, sandbox := range map[string]string{"a1": "a", "a2": "a", "b1": "b"} {
		n.memberOf(sandbox, id)
	}
	alone := n.containerRequest("alone", forever)
	n.make(alone)
	proctest.Must(t, n.shutDown("a"))
	n.wantTasks("alone", "b", "b1")
	n.wantExpected("b", "alone", "later")
	n.wantShutdowns(0)
	n.mu.Lock()
	if len(n.removed) != 3 {
		t.Errorf("removed were %q", n.removed)
	}
	n.mu.Unlock()
	proctest.Must(t, n.shutDown("a")) // again, by a containerd that was killed before it heard

	proctest.Must(t, n.shutDown("b"))
	n.wantTasks("alone")
	n.wantShutdowns(0)
	n.remove("alone")
	n.wantExpected("later")
	_, err := n.Shutdown(proctest.Context(t), &taskapi.ShutdownRequest{ID: "alone"})
	proctest.Must(t, err)
	n.wantShutdowns(1) // and the process knows that there is room for another
	proctest.Must(t, n.shutDown("later"))
	n.wantExpected()
	n.wantShutdowns(2)
}

func TestGiveUp(t *testing.T) {
	for _, tc := range []struct {
		name, id string
		bundle   func(bundles map[string]string) string // nil for its own
		tasks    []string
		expected []string
	}{
		{name: "a sandbox with its containers", id: "a", tasks: []string{"b", "b1"}, expected: []string{"b", "later"}},
		{name: "a container", id: "a1", tasks: []string{"a", "b", "b1"}, expected: []string{"a", "b", "later"}},
		{
			name: "one in another bundle", id: "a", tasks: []string{"a", "a1", "b", "b1"}, expected: []string{"a", "b", "later"},
			bundle: func(bundles map[string]string) string { return bundles["b"] },
		},
		{
			name: "one that was never created", id: "later", tasks: []string{"a", "a1", "b", "b1"}, expected: []string{"a", "b"},
			bundle: func(map[string]string) string { return "/run/later" },
		},
		{
			name: "one that nobody knows", id: "none", tasks: []string{"a", "a1", "b", "b1"}, expected: []string{"a", "b", "later"},
			bundle: func(map[string]string) string { return "/run/none" },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newSharedNode(t, "a", "b", "later")
			bundles := map[string]string{"a": n.sandboxOf("a"), "b": n.sandboxOf("b")}
			bundles["a1"], bundles["b1"] = n.memberOf("a", "a1"), n.memberOf("b", "b1")
			bundle := bundles[tc.id]
			if tc.bundle != nil {
				bundle = tc.bundle(bundles)
			}
			for range 2 { // the second time there is nothing left
				proctest.Must(t, n.service.GiveUp(proctest.Context(t), tc.id, bundle))
				n.wantTasks(tc.tasks...)
				n.wantExpected(tc.expected...)
				n.wantShutdowns(0)
			}
		})
	}
}

func TestGiveUpOfTheLastAsksTheProcessToEnd(t *testing.T) {
	n := newSharedNode(t, "a")
	bundle := n.sandboxOf("a")
	n.memberOf("a", "a1")
	proctest.Must(t, n.service.GiveUp(proctest.Context(t), "a", bundle))
	n.wantTasks()
	n.wantShutdowns(1)
}

// containerd has not waited for the answer to the create: nobody would ever ask for what
// that makes.
func TestTaskThatIsGivenUpWhileItIsCreated(t *testing.T) {
	for name, giveUp := range map[string]func(n *node, r *taskapi.CreateTaskRequest) error{
		"by delete": func(n *node, r *taskapi.CreateTaskRequest) error {
			return n.service.GiveUp(proctest.Context(n.t), r.ID, r.Bundle)
		},
		"by shutdown of the sandbox": func(n *node, r *taskapi.CreateTaskRequest) error { return n.shutDown(r.ID) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newSharedNode(t, "slow", "other")
			n.sandboxOf("other")
			started := filepath.Join(t.TempDir(), "started")
			proctest.Must(t, os.WriteFile(started+".sh", []byte("#!/bin/sh\n: >"+started+"\nexec sleep 100000\n"), 0o700))
			r := n.request("slow", &specs.Spec{
				Annotations: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
				Linux:       &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace}}},
				Hooks:       &specs.Hooks{CreateRuntime: []specs.Hook{{Path: started + ".sh"}}},
			})
			done := make(chan error, 1)
			ctx := proctest.Context(t)
			go func() {
				_, err := n.Create(ctx, r)
				done <- err
			}()
			proctest.Eventually(t, "the hook runs", func() bool {
				_, err := os.Stat(started)
				return err == nil
			})
			// This alone gives up nothing: there is something to shut down.
			_, err := n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "slow"})
			proctest.Must(t, err)
			n.wantExpected("slow", "other")
			proctest.Must(t, giveUp(n, r))
			if n.service.supervisor.Has("slow") {
				t.Error("it is still being created")
			}
			wantKind(t, <-done, errdefs.IsFailedPrecondition, "a failed precondition")
			n.wantTasks("other")
			n.wantExpected("other")
			n.wantShutdowns(0)
		})
	}
}

func TestCreateThatFailedLeavesRoomUntilItIsShutDown(t *testing.T) {
	n, ctx := newSharedNode(t, "c", "pod"), proctest.Context(t)
	n.tell("fail-create", "no more bananas")
	if _, err := n.Create(ctx, n.containerRequest("c", forever)); err == nil {
		t.Error("create has not failed")
	}
	n.wantExpected("c", "pod") // containerd may try again
	_, err := n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c"})
	proctest.Must(t, err)
	n.wantExpected("pod")
	n.wantShutdowns(1)

	status := func(id string) (*sandboxapi.SandboxStatusResponse, error) {
		return n.sandboxes.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: id})
	}
	st := result[*sandboxapi.SandboxStatusResponse](t)(status("pod"))
	if st.State != sandboxNotReady || st.Pid != 0 || !st.CreatedAt.AsTime().Equal(n.born) {
		t.Errorf("one that is expected is %v", st)
	}
	_, err = status("c")
	wantKind(t, err, errdefs.IsNotFound, "not found")
	proctest.Must(t, n.shutDown("pod"))
	_, err = status("pod")
	wantKind(t, err, errdefs.IsNotFound, "not found")
	proctest.Must(t, n.shutDown("pod"))
	n.wantExpected()
}

// The task service does not end a shared shim with a pod that has a task, nor a task that it
// has yet to be asked for.
func TestShutdownInASharedShim(t *testing.T) {
	n, ctx := newSharedNode(t, "a"), proctest.Context(t)
	n.sandboxOf("a")
	n.memberOf("a", "a1")
	n.remove("a1")
	_, err := n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "a1"})
	proctest.Must(t, err)
	n.wantTasks("a")
	n.wantExpected("a")
	n.wantShutdowns(0)
	_, err = n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "a"})
	proctest.Must(t, err)
	n.wantExpected("a")
	n.wantShutdowns(0)
}
