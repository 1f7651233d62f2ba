package process

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/cgroups/v3/cgroup1/stats"
	statsv2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sandboxSpec returns the spec of a pod with its own namespaces.
func sandboxSpec() *specs.Spec {
	return &specs.Spec{
		Hostname:    "test-pod",
		Annotations: map[string]string{oci.ContainerTypeAnnotation: oci.ContainerTypeSandbox},
		Linux:       &specs.Linux{Namespaces: proctest.NamespaceList(append(proctest.PodKinds, specs.PIDNamespace, specs.MountNamespace)...)},
	}
}

func without(list []specs.LinuxNamespace, kind specs.LinuxNamespaceType) []specs.LinuxNamespace {
	return slices.DeleteFunc(slices.Clone(list), func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

// pod makes a sandbox and starts it.
func (n *node) pod(spec *specs.Spec) *Task {
	n.t.Helper()
	task := n.make(n.request("pod", spec))
	pid, err := task.init.Start(proctest.Context(n.t))
	proctest.Must(n.t, err)
	if pid != podTID {
		n.t.Errorf("the sandbox's pid is %d, want %d", pid, podTID)
	}
	return task
}

func utsName(t *testing.T) (host, domain string) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Error(err)
	}
	return unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Domainname[:])
}

func TestLifeOfASandbox(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	ctx := proctest.Context(t)
	task := n.make(n.request("pod", sandboxSpec()))
	p := process(t, task, "")
	if st := p.Status(); st != (Status{State: Created, Pid: podTID}) {
		t.Errorf("after create it is %+v", st)
	}
	if proctest.AtHome(t, podTID) {
		t.Error("the thread is in the host's namespaces")
	}
	proctest.OthersAtHome(t, podTID)

	pid, err := p.Start(ctx)
	if err != nil || pid != podTID || p.Status().State != Running {
		t.Errorf("start: pid %d, error %v, state %s", pid, err, p.Status().State)
	}
	_, err = p.Start(ctx)
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = task.Delete(ctx, "")
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	if pids, err := task.Pids(); err != nil || !reflect.DeepEqual(pids, []Info{{Pid: podTID}}) {
		t.Errorf("pids are %v, error %v", pids, err)
	}

	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	if status := exitOf(t, p); status != 137 {
		t.Errorf("exit status %d, want 137", status)
	}
	if !proctest.AtHome(t, podTID) {
		t.Error("the thread has not come back")
	}
	proctest.WantKind(t, task.Kill("", unix.SIGKILL, false), errdefs.IsNotFound, "not found")
	proctest.WantKind(t, task.Kill("", unix.SIGTERM, true), errdefs.IsNotFound, "not found")
	if pids, err := task.Pids(); err != nil || len(pids) != 1 {
		t.Errorf("pids are %v, error %v", pids, err)
	}
	if st := p.Status(); st.State != Stopped || st.Pid != podTID || st.Exit.At.IsZero() {
		t.Errorf("after the end it is %+v", st)
	}

	st, err := task.Delete(ctx, "")
	if err != nil || st.State != Deleted || st.Exit.Status != 137 {
		t.Errorf("delete: %+v, error %v", st, err)
	}
	_, err = task.Delete(ctx, "")
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	if got, want := n.events.all(), []string{"started pod", "exited 137 pod"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestNamesOfASandbox(t *testing.T) {
	host, domain := utsName(t)
	n := newNode(t)
	spec := sandboxSpec()
	spec.Hostname, spec.Domainname = "pod-host", "pod.domain"
	n.make(n.request("pod", spec))
	proctest.Must(t, podThread.Do(func() error {
		if h, d := utsName(t); h != "pod-host" || d != "pod.domain" {
			t.Errorf("names inside are %q and %q", h, d)
		}
		return nil
	}))
	if h, d := utsName(t); h != host || d != domain {
		t.Errorf("names of the host are %q and %q", h, d)
	}
}

func TestSignalsToASandbox(t *testing.T) {
	for _, tc := range []struct {
		name    string
		init    bool // the sandbox has a PID namespace
		ignored []unix.Signal
		sig     unix.Signal
		want    uint32
	}{
		{"term", true, nil, unix.SIGTERM, 0},
		{"int", true, nil, unix.SIGINT, 0},
		{"kill", true, nil, unix.SIGKILL, 137},
		{"ignored by an init", true, []unix.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGSEGV, unix.SIGCHLD, unix.SIGSTOP, 64}, unix.SIGTERM, 0},
		{"hup with the host's PID namespace", false, []unix.Signal{unix.SIGCHLD, unix.SIGWINCH, unix.SIGURG, unix.SIGCONT}, unix.SIGHUP, 129},
		{"term with the host's PID namespace", false, nil, unix.SIGTERM, 0},
		{"real-time signal", false, nil, 64, 192},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			spec := sandboxSpec()
			if !tc.init {
				spec.Linux.Namespaces = without(spec.Linux.Namespaces, specs.PIDNamespace)
			}
			task := n.pod(spec)
			for _, sig := range tc.ignored {
				proctest.Must(t, task.Kill("", sig, false))
			}
			proctest.Must(t, task.Kill("", tc.sig, true))
			// If one that must be ignored was not, that one's status would show.
			if status := exitOf(t, task.init); status != tc.want {
				t.Errorf("exit status %d, want %d", status, tc.want)
			}
		})
	}
}

func TestSignalsThatDoNotExist(t *testing.T) {
	n := newNode(t)
	task := n.pod(sandboxSpec())
	for _, sig := range []unix.Signal{-1, 0, 65, 1 << 30} {
		proctest.WantKind(t, task.Kill("", sig, false), errdefs.IsInvalidArgument, "an invalid argument")
		proctest.WantKind(t, task.Kill("", sig, true), errdefs.IsInvalidArgument, "an invalid argument")
	}
	proctest.WantKind(t, task.Kill("nobody", unix.SIGTERM, false), errdefs.IsNotFound, "not found")
	if task.init.Status().State != Running {
		t.Error("it does not run any more")
	}
}

func TestWhatASandboxCannotDo(t *testing.T) {
	n := newNode(t)
	task := n.pod(sandboxSpec())
	ctx := proctest.Context(t)
	proctest.WantKind(t, task.Exec("e", stdio.Config{}, []byte("{}")), errdefs.IsNotImplemented, "not implemented")
	proctest.WantKind(t, task.Checkpoint(ctx, oci.CheckpointOptions{}), errdefs.IsNotImplemented, "not implemented")
	_, err := task.Process("e")
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = task.Stats()
	proctest.WantKind(t, err, errdefs.IsNotFound, "not found")
	proctest.WantKind(t, task.Pause(ctx), errdefs.IsFailedPrecondition, "a failed precondition")
	if task.init.Status().State != Running {
		t.Error("it does not run any more")
	}
	proctest.Must(t, task.init.Resize(80, 25))
	task.init.CloseStdin()

	r := n.request("restored", sandboxSpec())
	r.Checkpoint = "/images"
	_, err = n.Create(ctx, r)
	proctest.WantKind(t, err, errdefs.IsNotImplemented, "not implemented")
}

func TestUpdateOfASandboxWithoutCgroup(t *testing.T) {
	n := newNode(t)
	task := n.pod(sandboxSpec())
	err := task.Update(proctest.Context(t), &specs.LinuxResources{})
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition, as pause has it")
}

func TestOneSandboxAtATime(t *testing.T) {
	n := newNode(t)
	first := n.pod(sandboxSpec())
	before := proctest.Inode(t, proctest.ThreadNS(podTID, "net"))
	_, err := n.Create(proctest.Context(t), n.request("second", sandboxSpec()))
	proctest.WantKind(t, err, errdefs.IsFailedPrecondition, "a failed precondition")
	_, err = n.Create(proctest.Context(t), n.request("pod", sandboxSpec()))
	proctest.WantKind(t, err, errdefs.IsAlreadyExists, "that it exists")
	if proctest.Inode(t, proctest.ThreadNS(podTID, "net")) != before {
		t.Error("the first one's namespaces are gone")
	}
	proctest.Must(t, first.Kill("", unix.SIGTERM, false))
	exitOf(t, first.init)

	second := n.make(n.request("second", sandboxSpec()))
	// The delete of the first does not touch the second.
	_, err = first.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	if proctest.AtHome(t, podTID) {
		t.Error("the second one's namespaces are gone")
	}
	_, err = second.init.Start(proctest.Context(t))
	proctest.Must(t, err)
}

func TestDeleteOfACreatedSandbox(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	task := n.make(n.request("pod", sandboxSpec()))
	st, err := task.Delete(proctest.Context(t), "")
	if err != nil || st.Exit.Status != 137 {
		t.Errorf("got %+v and error %v", st, err)
	}
	if !proctest.AtHome(t, podTID) {
		t.Error("the thread has not come back")
	}
	if got, want := n.events.all(), []string{"exited 137 pod"}; !slices.Equal(got, want) {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestReleaseEndsTheSandbox(t *testing.T) {
	n := newNode(t)
	n.Release() // there is none
	task := n.pod(sandboxSpec())
	n.Release()
	if st := task.init.Status(); st.State != Stopped || st.Exit.Status != 137 {
		t.Errorf("got %+v", st)
	}
	n.Release()
}

func TestOutputOfASandboxEndsWithIt(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	r := n.request("pod", sandboxSpec())
	r.Stdio = stdio.Config{Stdin: proctest.Mkfifo(t), Stdout: proctest.Mkfifo(t), Stderr: proctest.Mkfifo(t)}
	stdout, stderr := proctest.ReadFifo(t, r.Stdio.Stdout), proctest.ReadFifo(t, r.Stdio.Stderr)
	task := n.make(r)
	if got := task.init.Stdio(); got != r.Stdio {
		t.Errorf("stdio is %+v", got)
	}
	<-stdout.Open
	<-stderr.Open
	select {
	case <-stdout.Done:
		t.Error("the output has ended before the sandbox")
	default:
	}
	proctest.Must(t, task.Kill("", unix.SIGTERM, false))
	if out, err := stdout.All(), stderr.All(); out != "" || err != "" {
		t.Errorf("output is %q and %q", out, err)
	}
}

func TestSandboxesThatAreRefused(t *testing.T) {
	process := sleeper(t, &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWPID})
	is := func(target error) func(error) bool {
		return func(err error) bool { return err != nil && strings.Contains(err.Error(), target.Error()) }
	}
	for _, tc := range []struct {
		name   string
		change func(*specs.Spec)
		kind   func(error) bool
		want   string // part of the message
	}{
		{"host name without UTS namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = without(s.Linux.Namespaces, specs.UTSNamespace)
		}, errdefs.IsInvalidArgument, "UTS"},
		{"domain name without UTS namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = without(s.Linux.Namespaces, specs.UTSNamespace)
			s.Hostname, s.Domainname = "", "d"
		}, errdefs.IsInvalidArgument, "UTS"},
		{"host name in the host's UTS namespace by path", func(s *specs.Spec) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.UTSNamespace),
				specs.LinuxNamespace{Type: specs.UTSNamespace, Path: fmt.Sprintf("/proc/%d/ns/uts", podTID)})
		}, errdefs.IsInvalidArgument, "UTS"},
		{"sysctl in the host's network namespace by path", func(s *specs.Spec) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.NetworkNamespace),
				specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: fmt.Sprintf("/proc/%d/ns/net", podTID)})
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		}, errdefs.IsInvalidArgument, "net.ipv4.ip_forward"},
		{"host name too long", func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 65) }, is(unix.EINVAL), "xxx"},
		{"namespace listed twice", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
		}, errdefs.IsInvalidArgument, "network"},
		{"network namespace that does not exist", func(s *specs.Spec) {
			s.Linux.Namespaces[0].Path = "/nonexistent/net"
		}, is(unix.ENOENT), "/nonexistent/net"},
		{"user namespace that does not exist", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/nonexistent/user"})
		}, is(unix.ENOENT), "/nonexistent/user"},
		{"network namespace of a wrong type", func(s *specs.Spec) {
			s.Linux.Namespaces[0].Path = "/proc/thread-self/ns/ipc"
		}, is(unix.EINVAL), "/proc/thread-self/ns/ipc"},
		{"network namespace that is none", func(s *specs.Spec) {
			s.Linux.Namespaces[0].Path = "/dev/null"
		}, errdefs.IsInvalidArgument, "/dev/null is not a namespace"},
		{"mount namespace of a wrong type", func(s *specs.Spec) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.MountNamespace),
				specs.LinuxNamespace{Type: specs.MountNamespace, Path: "/proc/thread-self/ns/net"})
		}, errdefs.IsInvalidArgument, "mount namespace /proc/thread-self/ns/net is of another type"},
		{"user namespace of the host", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces,
				specs.LinuxNamespace{Type: specs.UserNamespace, Path: fmt.Sprintf("/proc/%d/ns/user", podTID)})
		}, errdefs.IsInvalidArgument, "is the host's"},
		{"PID namespace by path", func(s *specs.Spec) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.PIDNamespace),
				specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", process)})
		}, errdefs.IsInvalidArgument, "cannot be given by a path"},
		{"PID namespace of the host by path", func(s *specs.Spec) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.PIDNamespace),
				specs.LinuxNamespace{Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", podTID)})
		}, errdefs.IsInvalidArgument, "cannot be given by a path"},
		{"sysctl", func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"kernel.panic": "1"}
		}, errdefs.IsInvalidArgument, "kernel.panic"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			spec := sandboxSpec()
			tc.change(spec)
			spec.Linux.CgroupsPath = "/" + cgroupPrefix() + "refused"
			r := n.request("pod", spec)
			task, err := n.Create(proctest.Context(t), r)
			if task != nil || !tc.kind(err) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "task pod") {
				t.Errorf("got %v and error %v", task, err)
			}
			if !proctest.AtHome(t, podTID) {
				t.Error("the thread has not come back")
			}
			if left := cgroupsLeft(); len(left) > 0 {
				t.Errorf("cgroups are left: %v", left)
			}
			if errdefs.IsInvalidArgument(err) {
				if _, err := os.Stat(filepath.Join(r.Bundle, recordFile)); err == nil {
					t.Error("something was made before the spec was refused")
				}
			}
			n.make(n.request("pod", sandboxSpec())) // the thread is free
		})
	}
}

func TestSpecsThatCannotBeRead(t *testing.T) {
	n := newNode(t)
	for _, text := range []string{"", "{", `{"linux":[]}`, `{"hostname":7}`} {
		_, err := n.Create(proctest.Context(t), CreateRequest{ID: "x", Bundle: rawBundle(t, text), Options: n.options})
		proctest.WantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
	}
	_, err := n.Create(proctest.Context(t), CreateRequest{ID: "x", Bundle: t.TempDir(), Options: n.options})
	if err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("got %v, want an error that names config.json", err)
	}
}

func TestCgroupOfASandbox(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	ctx := proctest.Context(t)
	shares, limit := uint64(512), int64(64<<20)
	spec := sandboxSpec()
	spec.Linux.CgroupsPath = "/" + cgroupPrefix() + "pod"
	spec.Linux.Resources = &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: &shares},
		Memory: &specs.LinuxMemory{Limit: &limit},
	}
	task := n.pod(spec)
	if len(cgroupsLeft()) == 0 {
		t.Fatal("there is no cgroup")
	}
	memoryLimit := func() uint64 {
		t.Helper()
		m, err := task.Stats()
		proctest.Must(t, err)
		switch m := m.(type) {
		case *stats.Metrics:
			return m.Memory.Usage.Limit
		case *statsv2.Metrics:
			return m.Memory.UsageLimit
		}
		t.Fatalf("metrics are of type %T", m)
		return 0
	}
	if got := memoryLimit(); got != uint64(limit) {
		t.Errorf("memory limit is %d, want %d", got, limit)
	}
	limit = 32 << 20
	proctest.Must(t, task.Update(ctx, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}))
	if got := memoryLimit(); got != uint64(limit) {
		t.Errorf("memory limit is %d, want %d", got, limit)
	}

	proctest.Must(t, task.Pause(ctx))
	if st := task.init.Status(); st.State != Paused {
		t.Errorf("it is %s", st.State)
	}
	proctest.WantKind(t, task.Pause(ctx), errdefs.IsFailedPrecondition, "a failed precondition")
	proctest.Must(t, task.Resume(ctx))
	proctest.WantKind(t, task.Resume(ctx), errdefs.IsFailedPrecondition, "a failed precondition")

	// The shim itself is not in the cgroup.
	for _, dir := range task.cgroup.Paths() {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil || len(procs) > 0 {
			t.Errorf("processes in %s: %q, error %v", dir, procs, err)
		}
	}

	proctest.Must(t, task.Kill("", unix.SIGTERM, false))
	exitOf(t, task.init)
	// The cgroup must be gone before the delete: programs that watch cgroups take the shim's pid
	// for the pod's as long as it exists.
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left at the exit: %v", left)
	}
	_, err := task.Delete(ctx, "")
	proctest.Must(t, err)
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
}

// pidsLimit is the limit that the metrics of a task show.
func pidsLimit(t *testing.T, task *Task) uint64 {
	t.Helper()
	m, err := task.Stats()
	proctest.Must(t, err)
	switch m := m.(type) {
	case *stats.Metrics:
		return m.Pids.Limit
	case *statsv2.Metrics:
		return m.Pids.Limit
	}
	t.Fatalf("metrics are of type %T", m)
	return 0
}

// If the options and the form of the path differ, the form decides.
func TestFormOfTheCgroupsPath(t *testing.T) {
	name := cgroupPrefix() + "form"
	for _, c := range []struct {
		path    string
		systemd bool
		want    string
	}{
		{"/" + name, false, "/" + name},
		{"/" + name, true, "/" + name},
		{"-.slice:" + name + ":pod", false, "/" + name + "-pod.scope"},
		{"-.slice:" + name + ":pod", true, "/" + name + "-pod.scope"},
	} {
		n := newNode(t)
		n.options.SystemdCgroup = c.systemd
		spec := sandboxSpec()
		spec.Linux.CgroupsPath = c.path
		task := n.pod(spec)
		if got := task.group().String(); got != c.want {
			t.Errorf("%s, systemd %t: the cgroup is %s, want %s", c.path, c.systemd, got, c.want)
		}
		// The clean-up after a dead shim finds it as well.
		_, err := cleanUp(t, task.Bundle, "pod")
		proctest.Must(t, err)
		if left := cgroupsLeft(); len(left) > 0 {
			t.Errorf("%s, systemd %t: cgroups are left: %v", c.path, c.systemd, left)
		}
		n.Release() // the thread serves the next one
	}
}

func TestKillOfAPausedSandbox(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.CgroupsPath = "/" + cgroupPrefix() + "pod"
	task := n.pod(spec)
	proctest.Must(t, task.Pause(proctest.Context(t)))
	proctest.Must(t, task.Kill("", unix.SIGKILL, false))
	if status := exitOf(t, task.init); status != 137 {
		t.Errorf("exit status %d", status)
	}
}

func TestCgroupThatCannotBeMade(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.CgroupsPath = "/" + cgroupPrefix() + "pod"
	limit := int64(1)
	spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}, Unified: map[string]string{"no.such": "1"}}
	if _, err := n.Create(proctest.Context(t), n.request("pod", spec)); err == nil || !strings.Contains(err.Error(), "no.such") {
		t.Errorf("got %v", err)
	}
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	n.make(n.request("pod", sandboxSpec()))
}

// panicking is a context whose Done panics on the nth call.
type panicking struct {
	context.Context
	n *int
}

func (c panicking) Done() <-chan struct{} {
	if *c.n--; *c.n == 0 {
		panic("on purpose")
	}
	return c.Context.Done()
}

// A panic in a create must leave no id, thread or lock in use.
func TestPanicWhileCreating(t *testing.T) {
	create := func(n *node, r CreateRequest, at int) (panicked bool) {
		defer func() { panicked = recover() != nil }()
		task, err := n.Create(panicking{proctest.Context(t), &at}, r)
		proctest.Must(t, err)
		n.adopt(task)
		return false
	}
	sandboxes, members := 0, 0
	for at := 1; ; at++ {
		n := newNode(t)
		if !create(n, n.request("pod", sandboxSpec()), at) {
			n.Release()
			break
		}
		sandboxes++
		if !proctest.AtHome(t, podTID) {
			t.Fatal("the thread has not come back")
		}
	}
	for at := 1; ; at++ {
		n := newNode(t)
		pod := n.pod(sandboxSpec())
		r := n.request("member", member(t, specs.NetworkNamespace, ""))
		panicked := create(n, r, at)
		if panicked {
			members++
			n.make(n.request("member", member(t, specs.NetworkNamespace, "")))
		}
		proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
		exitOf(t, pod.init)
		_, err := pod.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
		if !panicked {
			break
		}
	}
	if sandboxes == 0 || members == 0 {
		t.Errorf("%d creates of a sandbox and %d of a container have panicked", sandboxes, members)
	}
}
