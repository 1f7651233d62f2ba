package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// member is the spec of a container of the pod with one namespace given by path.
func member(t *testing.T, kind specs.LinuxNamespaceType, path string) *specs.Spec {
	t.Helper()
	s := containerSpec(t, "member", forever)
	s.Annotations = map[string]string{oci.ContainerTypeAnnotation: "container", oci.SandboxIDAnnotation: "pod"}
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: kind, Path: path}}
	return s
}

func TestMembersGetNoNamespaceOfTheHost(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{
		Type: specs.UserNamespace, Path: bindUserNamespace(t),
	})
	n.pod(spec)
	for _, kind := range append(proctest.PodKinds, specs.PIDNamespace, specs.UserNamespace) {
		name := pod.ProcNames[kind]
		link := filepath.Join(t.TempDir(), "link")
		proctest.Must(t, os.Symlink(hostPath(t, name), link))
		mounted := filepath.Join(t.TempDir(), "mounted")
		proctest.Must(t, os.WriteFile(mounted, nil, 0o600))
		proctest.Must(t, unix.Mount(hostPath(t, name), mounted, "", unix.MS_BIND, ""))
		t.Cleanup(func() { proctest.Must(t, unix.Unmount(mounted, unix.MNT_DETACH)) })
		for _, path := range []string{
			"/proc/self/ns/" + name,
			hostPath(t, name),
			fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), name),
			proctest.ThreadNS(os.Getpid(), name),
			"/proc/.." + hostPath(t, name),
			link,
			mounted,
		} {
			task, err := n.Create(proctest.Context(t), n.request("member", member(t, kind, path)))
			if err == nil {
				n.adopt(task)
			}
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s by %s: got %v, want an invalid argument that names the path", kind, path, err)
			}
		}
	}
	if calls := n.told("calls"); calls != "" {
		t.Errorf("the OCI runtime was called: %s", calls)
	}
}

func bindUserNamespace(t *testing.T) string {
	t.Helper()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
	process := sleeper(t, &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids})
	return fmt.Sprintf("/proc/%d/ns/user", process)
}

func TestMembersGetTheNamespacesOfThePod(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	for _, ns := range pod.NamespaceTypes {
		task := n.make(n.request("member", member(t, ns.Kind, proctest.ThreadNS(podTID, ns.Proc))))
		_, err := task.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
	}
	if got, want := n.told("net"), fmt.Sprint(proctest.Inode(t, proctest.ThreadNS(podTID, "net"))); got != want {
		t.Errorf("the container's network namespace is %s, want the pod's %s", got, want)
	}
}

// The containers of a pod made by hand may have no paths in their specs.
func TestMembersWithoutPathsGetTheNamespacesOfThePod(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	spec := member(t, specs.MountNamespace, "")
	kinds := append(proctest.PodKinds, specs.PIDNamespace, specs.CgroupNamespace)
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, proctest.NamespaceList(kinds...)...)
	r := n.request("member", spec)
	n.make(r)
	for _, ns := range pod.NamespaceTypes {
		if proctest.Inode(t, namespaceIn(t, r.Bundle, ns.Kind)) != proctest.Inode(t, proctest.ThreadNS(podTID, ns.Proc)) {
			t.Errorf("the %s namespace is not the pod's", ns.Kind)
		}
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.PIDNamespace, specs.CgroupNamespace} {
		if path := namespaceIn(t, r.Bundle, kind); path != "" {
			t.Errorf("the %s namespace is not a new one, but %s", kind, path)
		}
	}
	if calls := n.told("calls"); calls != "create member" {
		t.Errorf("the OCI runtime was called: %s", calls)
	}
}

// By the runtime specification, a type of namespace that a spec does not list is the host's. So the
// shim must not add it.
func TestMembersGetNoNamespaceThatTheyDoNotList(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	r := n.request("member", member(t, specs.NetworkNamespace, ""))
	n.make(r)
	got, err := oci.ReadSpec(r.Bundle)
	proctest.Must(t, err)
	if list := got.Linux.Namespaces; len(list) != 1 || list[0].Type != specs.NetworkNamespace {
		t.Errorf("it lists %v", list)
	}
}

// With a target container, CRI gives the path of the target's PID namespace. The target's pid may
// be another process's when the OCI runtime opens the path.
func TestMembersMayShareThePIDNamespaceOfAnotherContainer(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	proctest.NoLeakedFDs(t)
	target := sleeper(t, &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	path := fmt.Sprintf("/proc/%d/ns/pid", target)
	want := proctest.Inode(t, path)
	r := n.request("member", member(t, specs.PIDNamespace, path))
	arrived := n.gate("create")
	type result struct {
		task *Task
		err  error
	}
	done := make(chan result, 1)
	go func() {
		task, err := n.Create(proctest.Context(t), r)
		done <- result{task, err}
	}()
	open := arrived()
	proctest.Must(t, unix.Kill(target, unix.SIGKILL))
	proctest.Eventually(t, "the target has ended", func() bool { s := proctest.ProcessState(target); return s == "" || s == "Z" })
	given := namespaceIn(t, r.Bundle, specs.PIDNamespace)
	if prefix := fmt.Sprintf("/proc/./%d/fd/", os.Getpid()); !strings.HasPrefix(given, prefix) {
		t.Errorf("the path is %s, want one of %s", given, prefix)
	}
	if got := proctest.Inode(t, given); got != want {
		t.Errorf("%s leads to %d, not the target's %d", given, got, want)
	}
	open()
	got := <-done
	proctest.Must(t, got.err)
	n.adopt(got.task)
	if strings.Contains(n.told("calls"), "run ") {
		t.Error("an init was started that no container needs")
	}
}

func TestMembersOfAPodInAnotherNamespaceAreRefused(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	other := proctest.BindNetwork(t)
	task, err := n.Create(proctest.Context(t), n.request("member", member(t, specs.NetworkNamespace, other)))
	if err == nil {
		t.Error("a network namespace was accepted that is not the pod's")
		n.adopt(task)
	}
}

func TestMembersOfAPodOnTheHost(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	spec.Hostname = ""
	spec.Linux.Namespaces = nil
	n.pod(spec)
	for _, kind := range append(proctest.PodKinds, specs.PIDNamespace) {
		task := n.make(n.request("member", member(t, kind, fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), pod.ProcNames[kind]))))
		_, err := task.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
	}
}

// CRI names namespaces by the pid that the sandbox had before an upgrade. There may be no such
// process any more, or another one.
func TestMembersByAFormerPidOfTheSandbox(t *testing.T) {
	onHost := sandboxSpec()
	onHost.Hostname = ""
	onHost.Linux.Namespaces = nil
	for name, spec := range map[string]*specs.Spec{"with namespaces": sandboxSpec(), "on the host": onHost} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			sandbox := n.pod(spec).body.(*sandbox)
			const gone = 1 << 29 // more than any kernel has (proc_sys_kernel(5), pid_max)
			other := exec.CommandContext(proctest.Context(t), "unshare", "-niup", "sleep", "1000")
			proctest.Must(t, other.Start())
			t.Cleanup(func() {
				_ = other.Process.Kill()
				_ = other.Wait()
			})
			sandbox.formerPIDs = []int{gone, other.Process.Pid}
			kinds := slices.Clone(proctest.PodKinds)
			if !sandbox.own[specs.PIDNamespace] {
				kinds = append(kinds, specs.PIDNamespace)
			}
			for _, kind := range kinds {
				for _, pid := range sandbox.formerPIDs {
					task := n.make(n.request("member", member(t, kind, namespacePath(pid, pod.ProcNames[kind]))))
					s, err := oci.ReadSpec(task.Bundle)
					proctest.Must(t, err)
					if path := s.Linux.Namespaces[0].Path; strings.Contains(path, fmt.Sprint(pid)) {
						t.Errorf("the %s namespace is %s", kind, path)
					}
					_, err = task.Delete(proctest.Context(t), "")
					proctest.Must(t, err)
				}
			}
		})
	}
}

func TestContainersOutsideOfThePod(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	// Not marked as a member: a client may give any namespace, as with the stock shim.
	spec := containerSpec(t, "free", forever)
	spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: hostPath(t, "net")}}
	n.make(n.request("free", spec))
}

// Another shim's main thread has the pod's network namespace, but not its PID
// namespace: that path leads to the host's.
func TestMembersOfASandboxInAnotherShimGetNoNamespaceOfTheHost(t *testing.T) {
	program, err := os.Executable()
	proctest.Must(t, err)
	other := filepath.Join(t.TempDir(), filepath.Base(program))
	sleep, err := exec.LookPath("sleep")
	proctest.Must(t, err)
	data, err := os.ReadFile(sleep)
	proctest.Must(t, err)
	proctest.Must(t, os.WriteFile(other, data, 0o755))
	cmd := exec.Command(other, "100000")
	proctest.Must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.UserNamespace} {
		n := newNode(t)
		spec := member(t, kind, fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, pod.ProcNames[kind]))
		spec.Annotations[oci.SandboxIDAnnotation] = "elsewhere"
		_, err := n.Create(proctest.Context(t), n.request("stranger", spec))
		if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "in another shim") {
			t.Errorf("%s namespace: error is %v", kind, err)
		}
	}
}

func TestMembersOfAnEndedSandboxAreRefused(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	proctest.Must(t, os.Symlink(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), link))
	for name, path := range map[string]string{
		"process":             fmt.Sprintf("/proc/%d/ns/net", os.Getpid()),
		"thread":              proctest.ThreadNS(podTID, "net"),
		"link to the process": link,
		"roundabout":          fmt.Sprintf("/proc/self/../%d/ns/net", os.Getpid()),
		"of the host":         hostPath(t, "net"),
		"new":                 "",
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			task := n.pod(sandboxSpec())
			proctest.Must(t, task.Kill("", unix.SIGKILL, false))
			exitOf(t, task.init)
			for _, when := range []string{"ended", "deleted"} {
				if when == "deleted" {
					_, err := task.Delete(proctest.Context(t), "")
					proctest.Must(t, err)
					if path == "" || !strings.HasPrefix(path, fmt.Sprintf("/proc/%d/", os.Getpid())) {
						break // the sandbox may be in another shim
					}
				}
				made, err := n.Create(proctest.Context(t), n.request("member", member(t, specs.NetworkNamespace, path)))
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("the sandbox has %s: got %v, want a failed precondition", when, err)
				}
				if err == nil {
					n.adopt(made)
					_, _ = made.Delete(proctest.Context(t), "")
				}
			}
		})
	}
}

// created is the result of a create.
type created struct {
	task *Task
	err  error
}

// creating starts to create a task in the background.
func (n *node) creating(r CreateRequest) <-chan created {
	n.t.Helper()
	done := make(chan created, 1)
	ctx := proctest.Context(n.t)
	go func() {
		task, err := n.Create(ctx, r)
		done <- created{task, err}
	}()
	return done
}

func (n *node) await(done <-chan created) created {
	n.t.Helper()
	select {
	case c := <-done:
		if c.err == nil {
			n.adopt(c.task)
		}
		return c
	case <-time.After(proctest.Deadline):
		n.t.Fatalf("create has not returned after %v", proctest.Deadline)
		return created{}
	}
}

// A create can hang as long as the OCI runtime does. The sandbox must end nevertheless,
// and the create with it.
func TestEndOfASandboxEndsTheCreateOfAContainer(t *testing.T) {
	for name, end := range map[string]func(n *node, pod *Task){
		"kill":         func(_ *node, pod *Task) { proctest.Must(t, pod.Kill("", unix.SIGKILL, false)) },
		"end of shim":  func(n *node, _ *Task) { n.Release() },
		"term, as CRI": func(_ *node, pod *Task) { proctest.Must(t, pod.Kill("", unix.SIGTERM, false)) },
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			pod := n.pod(sandboxSpec())
			n.tell("hang-create", "")
			r := n.request("member", member(t, specs.NetworkNamespace, proctest.ThreadNS(podTID, "net")))
			before, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
			proctest.Must(t, err)
			done := n.creating(r)
			proctest.Eventually(t, "the OCI runtime is at work", func() bool { return n.told("calls") != "" })
			end(n, pod)
			exitOf(t, pod.init)
			if c := n.await(done); !errdefs.IsFailedPrecondition(c.err) || !strings.Contains(c.err.Error(), "sandbox pod has ended") {
				t.Errorf("the error of create is %v", c.err)
			}
			_, err = pod.Delete(proctest.Context(t), "")
			proctest.Must(t, err)
			if !proctest.AtHome(t, podTID) {
				t.Error("the thread has not come back")
			}
			after, err := os.ReadFile(filepath.Join(r.Bundle, "config.json"))
			proctest.Must(t, err)
			if string(after) != string(before) {
				t.Errorf("the spec is left as %s, it was %s", after, before)
			}
			n.untell("hang-create")
			n.pod(sandboxSpec()) // the thread is free for another
		})
	}
}

// The thread must not leave the namespaces while the OCI runtime is about to enter them by
// path: the same paths would then lead to the host's.
func TestNamespacesStayWhileAContainerJoins(t *testing.T) {
	n := newNode(t)
	task := n.pod(sandboxSpec())
	sb := task.body.(*sandbox)
	_, leave, err := sb.enter(proctest.Context(t))
	proctest.Must(t, err)
	pod := proctest.Inode(t, proctest.ThreadNS(podTID, "net"))
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	exitOf(t, task.init)
	if proctest.Inode(t, proctest.ThreadNS(podTID, "net")) != pod {
		t.Error("the thread has left the pod's network namespace")
	}
	if _, _, err := sb.enter(proctest.Context(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the error of a late create is %v", err)
	}
	leave()
	_, err = task.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	if !proctest.AtHome(t, podTID) {
		t.Error("the thread has not come back")
	}
}

// A container of a checkpoint enters its namespaces only when it starts.
func TestRestoredContainerGetsNoNamespaceOfTheHost(t *testing.T) {
	n := newNode(t)
	pod := n.pod(sandboxSpec())
	want := fmt.Sprint(proctest.Inode(t, proctest.ThreadNS(podTID, "net")))
	restored := func(id string) *Task {
		r := n.request(id, member(t, specs.NetworkNamespace, proctest.ThreadNS(podTID, "net")))
		r.Checkpoint = t.TempDir()
		return n.make(r)
	}
	good, late := restored("good"), restored("late")
	_, err := good.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	if got := n.told("net"); got != want {
		t.Errorf("the container is in network namespace %s, want the pod's %s", got, want)
	}
	proctest.Must(t, good.Kill("", unix.SIGKILL, false))
	exitOf(t, good.init)
	calls := n.told("calls")
	proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
	exitOf(t, pod.init)
	_, err = late.init.Start(proctest.Context(t))
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	if got := n.told("calls"); got != calls {
		t.Errorf("the OCI runtime was called after the end of the sandbox: %s", strings.TrimPrefix(got, calls))
	}
}

// A path that leads to no namespace is refused without blocking, even if it is a fifo.
func TestPathsThatLeadToNoNamespace(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	file := filepath.Join(t.TempDir(), "file")
	proctest.Must(t, os.WriteFile(file, nil, 0o600))
	for name, path := range map[string]string{"fifo": proctest.Mkfifo(t), "file": file, "device": os.DevNull} {
		for _, kind := range append(proctest.PodKinds, specs.PIDNamespace, specs.UserNamespace, specs.MountNamespace) {
			if c := n.await(n.creating(n.request("member", member(t, kind, path)))); c.err == nil || !strings.Contains(c.err.Error(), path) {
				t.Errorf("%s as %s namespace: error is %v", name, kind, c.err)
			}
		}
		spec := sandboxSpec()
		spec.Linux.Namespaces = without(spec.Linux.Namespaces, specs.NetworkNamespace)
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path})
		r := n.request("other", spec)
		if c := n.await(n.creating(r)); !errdefs.IsInvalidArgument(c.err) || !strings.Contains(c.err.Error(), path) {
			t.Errorf("%s for a sandbox: error is %v", name, c.err)
		}
	}
}
