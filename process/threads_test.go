package process

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These tests are about supervisors without a thread, whose sandboxes have one each.

func newSharedNode(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.Supervisor = NewSupervisor("test", nil, reaper, n.events)
	return n
}

// podThreads counts the threads that serve one sandbox each. They are goroutines, too.
func podThreads() int {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Count(string(buf[:n]), "process/pod.StartThread in goroutine")
		}
	}
}

func noPodThreads(t *testing.T) {
	t.Helper()
	proctest.Eventually(t, "no sandbox has a thread", func() bool { return podThreads() == 0 })
	proctest.OthersAtHome(t, podTID)
}

// podOf makes a sandbox with the id and starts it.
func (n *node) podOf(id string) (task *Task, tid int) {
	n.t.Helper()
	task = n.make(n.request(id, sandboxSpec()))
	tid, err := task.init.Start(proctest.Context(n.t))
	proctest.Must(n.t, err)
	return task, tid
}

func threadExists(tid int) bool {
	_, err := os.Stat(filepath.Join("/proc/self/task", strconv.Itoa(tid)))
	return err == nil
}

// memberOf is the spec of a container of a pod.
func memberOf(t *testing.T, sandbox string, namespaces ...specs.LinuxNamespace) *specs.Spec {
	t.Helper()
	s := containerSpec(t, "member", forever)
	s.Annotations = map[string]string{oci.ContainerTypeAnnotation: "container", oci.SandboxIDAnnotation: sandbox}
	s.Linux.Namespaces = namespaces
	return s
}

func TestEachSandboxHasNamespacesAndAThreadOfItsOwn(t *testing.T) {
	for _, pods := range []int{2, 10} {
		t.Run(fmt.Sprint(pods), func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newSharedNode(t)
			tasks, tids := make([]*Task, pods), make([]int, pods)
			var wg sync.WaitGroup
			for i := range pods {
				r := n.request(fmt.Sprintf("pod-%d", i), sandboxSpec())
				ctx := proctest.Context(t)
				wg.Go(func() {
					var err error
					if tasks[i], err = n.Create(ctx, r); err == nil {
						tids[i], err = tasks[i].init.Start(ctx)
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if t.Failed() {
				return
			}
			seen := make(map[uint64]string)
			for i, task := range tasks {
				n.adopt(task)
				if tids[i] == os.Getpid() || !threadExists(tids[i]) {
					t.Errorf("%s has the pid %d, which is not another thread", task.ID, tids[i])
				}
				for _, kind := range proctest.PodKinds {
					// The path by which CRI has containers join.
					inode := proctest.Inode(t, fmt.Sprintf("/proc/%d/ns/%s", tids[i], pod.ProcNames[kind]))
					if other := seen[inode]; other != "" || inode == proctest.Inode(t, hostPath(t, pod.ProcNames[kind])) {
						t.Errorf("%s has the %s namespace of %q or of the host", task.ID, kind, other)
					}
					seen[inode] = task.ID
				}
			}
			if got := podThreads(); got != pods {
				t.Errorf("there are %d threads of sandboxes", got)
			}
			// Each ends alone.
			for i, task := range tasks {
				proctest.Must(t, task.Kill("", unix.SIGKILL, false))
				if status := exitOf(t, task.init); status != 137 {
					t.Errorf("%s has ended with %d", task.ID, status)
				}
				_, err := task.Delete(proctest.Context(t), "")
				proctest.Must(t, err)
				proctest.Eventually(t, "its thread has ended", func() bool { return !threadExists(tids[i]) })
				for j := i + 1; j < pods; j++ {
					if st := tasks[j].init.Status(); st.State != Running || proctest.AtHome(t, tids[j]) {
						t.Fatalf("with %s, %s ended: %+v", task.ID, tasks[j].ID, st)
					}
				}
			}
			noPodThreads(t)
		})
	}
}

func TestCreateThatFailsLeavesNoThread(t *testing.T) {
	limit, hostUsers := int64(1), hostPath(t, "user")
	for name, change := range map[string]func(*specs.Spec, *CreateRequest){
		"a spec that is refused": func(s *specs.Spec, _ *CreateRequest) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} },
		"a namespace that does not exist": func(s *specs.Spec, _ *CreateRequest) {
			s.Linux.Namespaces[0].Path = "/nonexistent/net"
		},
		"no record": func(_ *specs.Spec, r *CreateRequest) {
			proctest.Must(t, os.Mkdir(filepath.Join(r.Bundle, recordFile), 0o700))
		},
		"a request that is refused": func(_ *specs.Spec, r *CreateRequest) {
			r.Prepare = func(*CreateRequest) error { return errors.New("on purpose") }
		},
		"a cgroup that cannot be made": func(s *specs.Spec, _ *CreateRequest) {
			s.Linux.CgroupsPath = "/" + cgroupPrefix() + "refused"
			s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}, Unified: map[string]string{"no.such": "1"}}
		},
		"a user namespace of the host": func(s *specs.Spec, _ *CreateRequest) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: hostUsers})
		},
		"a namespace of another type": func(s *specs.Spec, _ *CreateRequest) {
			s.Linux.Namespaces[0].Path = "/proc/thread-self/ns/ipc"
		},
		"a host name that is too long": func(s *specs.Spec, _ *CreateRequest) { s.Hostname = strings.Repeat("x", 65) },
		"a sysctl that does not exist": func(s *specs.Spec, _ *CreateRequest) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.no_such": "1"}
		},
		"a hook before the namespaces are filled": func(s *specs.Spec, _ *CreateRequest) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}
		},
		"a hook in the thread": func(s *specs.Spec, _ *CreateRequest) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/false"}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newSharedNode(t)
			_, neighbour := n.podOf("neighbour")
			spec := sandboxSpec()
			r := n.request("pod", spec)
			change(spec, &r)
			r.Spec = spec
			if task, err := n.Create(proctest.Context(t), r); err == nil {
				n.adopt(task)
				t.Fatal("it does not fail")
			}
			proctest.Eventually(t, "only the neighbour has a thread", func() bool { return podThreads() == 1 })
			if proctest.AtHome(t, neighbour) {
				t.Error("the neighbour is in the host's namespaces")
			}
			if n.Has("pod") {
				t.Error("the id is still in use")
			}
		})
	}
}

// A panic in a create ends no thread but that of its sandbox.
func TestPanicWhileCreatingLeavesNoThread(t *testing.T) {
	panics := 0
	for at := 1; ; at++ {
		n := newSharedNode(t)
		panicked := func() (panicked bool) {
			defer func() { panicked = recover() != nil }()
			left := at
			task, err := n.Create(panicking{proctest.Context(t), &left}, n.request("pod", sandboxSpec()))
			proctest.Must(t, err)
			n.adopt(task)
			return false
		}()
		if !panicked {
			n.Release()
			break
		}
		panics++
		noPodThreads(t)
	}
	if panics == 0 {
		t.Error("no create has panicked")
	}
	noPodThreads(t)
}

func TestReleaseEndsAllSandboxes(t *testing.T) {
	n := newSharedNode(t)
	var tasks []*Task
	for i := range 5 {
		task, _ := n.podOf(fmt.Sprintf("pod-%d", i))
		tasks = append(tasks, task)
	}
	n.Release()
	for _, task := range tasks {
		if st := task.init.Status(); st.State != Stopped || st.Exit.Status != 137 {
			t.Errorf("%s: %+v", task.ID, st)
		}
	}
	noPodThreads(t)
	n.Release()
}

// The end of a shim must not wait for a create, nor the create for ever.
func TestReleaseEndsTheCreateOfASandbox(t *testing.T) {
	for name, make := range map[string]func(*testing.T) *node{"one thread": newNode, "a thread each": newSharedNode} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n, l := make(t), newHookLog(t)
			spec := l.spec()
			spec.Hooks.CreateRuntime = []specs.Hook{l.hook("slow", `echo $$ >"$dir/new"; mv "$dir/new" "$dir/pid"; exec sleep 1000`)}
			done := n.creating(n.request("pod", spec))
			proctest.Eventually(t, "the hook runs", func() bool {
				_, err := os.Stat(filepath.Join(l.dir, "pid"))
				return err == nil
			})
			n.Release()
			if c := n.await(done); !errdefs.IsFailedPrecondition(c.err) {
				t.Errorf("got error %v, want a failed precondition", c.err)
			}
			if got := n.events.all(); len(got) > 0 {
				t.Errorf("events of a sandbox that was never there: %q", got)
			}
			noPodThreads(t)
		})
	}
}

func TestMembers(t *testing.T) {
	n := newSharedNode(t)
	n.podOf("a")
	n.podOf("b")
	for id, sandbox := range map[string]string{"a1": "a", "a2": "a", "b1": "b", "c1": "elsewhere"} {
		n.make(n.request(id, memberOf(t, sandbox)))
	}
	n.container("alone", forever)
	for sandbox, want := range map[string]string{"a": "a1 a2", "b": "b1", "elsewhere": "c1", "none": ""} {
		ids := make(map[string]bool)
		for _, task := range n.Members(sandbox) {
			ids[task.ID] = true
		}
		for _, id := range strings.Fields(want) {
			if !ids[id] {
				t.Errorf("%s is not a member of %s", id, sandbox)
			}
		}
		if len(ids) != len(strings.Fields(want)) {
			t.Errorf("%s has the members %v, want %s", sandbox, ids, want)
		}
	}
	if members := n.Members("alone"); len(members) > 0 {
		t.Errorf("a container has the members %v", members)
	}
}

// The number of a thread that has ended may be that of another pod's thread.
func TestMemberGetsNoNamespaceOfAnotherPod(t *testing.T) {
	n := newSharedNode(t)
	gone, _ := n.podOf("gone")
	_, other := n.podOf("other")
	n.podOf("own")
	proctest.Must(t, gone.Kill("", unix.SIGKILL, false))
	exitOf(t, gone.init)
	for _, when := range []string{"ended", "deleted", "alive"} {
		sandbox := "gone"
		is := errdefs.IsFailedPrecondition
		switch when {
		case "deleted":
			_, err := gone.Delete(proctest.Context(t), "")
			proctest.Must(t, err)
		case "alive":
			sandbox, is = "own", errdefs.IsInvalidArgument
		}
		for _, kind := range proctest.PodKinds {
			for _, path := range []string{
				fmt.Sprintf("/proc/%d/ns/%s", other, pod.ProcNames[kind]),
				fmt.Sprintf("/proc/%d/task/%d/ns/%s", os.Getpid(), other, pod.ProcNames[kind]),
			} {
				task, err := n.Create(proctest.Context(t), n.request("member", memberOf(t, sandbox, specs.LinuxNamespace{Type: kind, Path: path})))
				if err == nil {
					n.adopt(task)
				}
				if !is(err) {
					t.Errorf("sandbox %s, %s by %s: got error %v", when, kind, path, err)
				}
			}
		}
	}
}

// Only a shared shim knows which of its threads holds which sandbox, even if its program
// has the other of the two names.
func TestMemberGetsNoNamespaceOfAThreadOfAnotherShim(t *testing.T) {
	program, err := os.Executable()
	proctest.Must(t, err)
	data, err := os.ReadFile(program)
	proctest.Must(t, err)
	for name, tc := range map[string]struct {
		program string
		refused bool
	}{
		"this program":    {filepath.Base(program), true},
		"another program": {"another", false},
	} {
		t.Run(name, func(t *testing.T) {
			other := filepath.Join(t.TempDir(), tc.program)
			proctest.Must(t, os.WriteFile(other, data, 0o755))
			// A Go program, so it has more than one thread.
			cmd := exec.Command(other, "-test.run=^TestSleepForAnotherTest$")
			cmd.Env = append(os.Environ(), "PROCESS_TEST_SLEEP=1")
			proctest.Must(t, cmd.Start())
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
			})
			var tid string
			proctest.Eventually(t, "it has threads", func() bool {
				threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", cmd.Process.Pid))
				for _, thread := range threads {
					if thread.Name() != strconv.Itoa(cmd.Process.Pid) {
						tid = thread.Name()
					}
				}
				return tid != ""
			})
			n := newSharedNode(t)
			task, err := n.Create(proctest.Context(t), n.request("member",
				memberOf(t, "elsewhere", specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/" + tid + "/ns/net"})))
			if err == nil {
				n.adopt(task)
			}
			if refused := errdefs.IsFailedPrecondition(err) && strings.Contains(err.Error(), "in another shim"); refused != tc.refused || !refused && err != nil {
				t.Errorf("got error %v", err)
			}
		})
	}
}

// TestSleepForAnotherTest is the body of a program that TestMemberGetsNoNamespaceOfAThreadOfAnotherShim starts.
func TestSleepForAnotherTest(*testing.T) {
	if os.Getenv("PROCESS_TEST_SLEEP") != "" {
		select {}
	}
}

// A client that gives a task up gets one that nobody is creating any more.
func TestTaskThatIsGivenUp(t *testing.T) {
	n, l := newSharedNode(t), newHookLog(t)
	spec := l.spec()
	spec.Hooks.CreateRuntime = []specs.Hook{l.hook("slow", `echo $$ >"$dir/new"; mv "$dir/new" "$dir/pid"; exec sleep 1000`)}
	r := n.request("pod", spec)
	link := filepath.Join(t.TempDir(), "link")
	proctest.Must(t, os.Symlink(filepath.Dir(r.Bundle), link))
	resolved := r.Bundle
	r.Bundle = filepath.Join(link, filepath.Base(resolved))
	done := n.creating(r)
	proctest.Eventually(t, "the hook runs", func() bool {
		_, err := os.Stat(filepath.Join(l.dir, "pid"))
		return err == nil
	})
	ctx := proctest.Context(t)
	_, err := n.Settled(ctx, "pod", t.TempDir())
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	if !n.Has("pod") || len(done) > 0 {
		t.Error("the task in one bundle has been given up for the one in another")
	}
	_, err = n.Settled(ctx, "pod", resolved)
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	if n.Has("pod") {
		t.Error("the id is still in use")
	}
	proctest.WantKind(t, n.await(done).err, errdefs.IsFailedPrecondition, "a failed precondition")
	noPodThreads(t)

	r.ID, r.Spec = "pod-2", sandboxSpec()
	task := n.make(r)
	for _, bundle := range []string{resolved, r.Bundle, ""} {
		if got, err := n.Settled(ctx, "pod-2", bundle); got != task || err != nil {
			t.Errorf("in %q: got %v and error %v", bundle, got, err)
		}
	}
}

func TestContainerThatIsGivenUpWhileItIsCreated(t *testing.T) {
	n := newSharedNode(t)
	arrived := n.gate("create")
	r := n.request("c", containerSpec(t, "c", forever))
	done := n.creating(r)
	open := arrived()
	defer open()
	_, err := n.Settled(proctest.Context(t), "c", r.Bundle)
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	proctest.WantKind(t, n.await(done).err, errdefs.IsCanceled, "canceled")
	if n.Has("c") {
		t.Error("the id is still in use")
	}
	n.knowsNothing()
}

// The create has not begun with anything that could be given up.
func TestTaskThatIsGivenUpAtOnce(t *testing.T) {
	for name, spec := range map[string]*specs.Spec{"sandbox": sandboxSpec(), "container": containerSpec(t, "c", forever)} {
		t.Run(name, func(t *testing.T) {
			n := newSharedNode(t)
			r := n.request("x", spec)
			settled := make(chan error, 1)
			r.Prepare = func(*CreateRequest) error {
				ctx := proctest.Context(t)
				go func() {
					_, err := n.Settled(ctx, "x", r.Bundle)
					settled <- err
				}()
				proctest.Eventually(t, "it is given up", func() bool {
					n.mu.Lock()
					defer n.mu.Unlock()
					return n.entries["x"].givenUp
				})
				return nil
			}
			proctest.WantKind(t, n.await(n.creating(r)).err, errdefs.IsFailedPrecondition, "a failed precondition")
			proctest.WantKind(t, <-settled, errdefs.IsNotFound, "not found")
			noPodThreads(t)
		})
	}
}
