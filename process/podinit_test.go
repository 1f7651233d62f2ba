package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sharer is the spec of a container of the pod that shares its PID namespace.
func sharer(t *testing.T) *specs.Spec {
	t.Helper()
	return member(t, specs.PIDNamespace, fmt.Sprintf("/proc/%d/ns/pid", podTID))
}

// sharedPod is a pod with one container that shares its PID namespace.
func (n *node) sharedPod(spec *specs.Spec) (pod *Task, init *podInit) {
	n.t.Helper()
	pod = n.pod(spec)
	n.make(n.request("a", sharer(n.t)))
	init = pod.body.(*sandbox).podInit()
	if init == nil {
		n.t.Fatal("there is no init")
	}
	return pod, init
}

// namespaceIn returns the path in a bundle's config.json and what it leads to.
func namespaceIn(t *testing.T, bundle string, kind specs.LinuxNamespaceType) string {
	t.Helper()
	s, err := oci.ReadSpec(bundle)
	proctest.Must(t, err)
	ns, ok := oci.NamespaceOf(s, kind)
	if !ok {
		t.Fatalf("the spec lists no %s namespace", kind)
	}
	return ns.Path
}

func TestSharedPIDNamespaceHasOneInit(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	pod := n.pod(sandboxSpec())
	if strings.Contains(n.told("calls"), "run ") {
		t.Error("an init was started that no container needs")
	}
	requests := make([]CreateRequest, 4)
	for i := range requests {
		requests[i] = n.request(fmt.Sprint("c", i), sharer(t))
	}
	var made sync.WaitGroup
	tasks := make([]*Task, len(requests))
	errs := make([]error, len(requests))
	for i, r := range requests {
		made.Go(func() { tasks[i], errs[i] = n.Create(proctest.Context(t), r) })
	}
	made.Wait()
	for i, task := range tasks {
		proctest.Must(t, errs[i])
		n.adopt(task)
	}
	init := pod.body.(*sandbox).podInit()
	want := proctest.Inode(t, fmt.Sprintf("/proc/%d/ns/pid", init.child.Pid))
	for _, r := range requests {
		if got := proctest.Inode(t, namespaceIn(t, r.Bundle, specs.PIDNamespace)); got != want {
			t.Errorf("the PID namespace of %s is %d, not the init's %d", r.ID, got, want)
		}
	}
	if runs := strings.Count(n.told("calls"), "run pod"); runs != 1 {
		t.Errorf("the init was run %d times", runs)
	}
	if pids, err := pod.Pids(); err != nil || !reflect.DeepEqual(pids, []Info{{Pid: podTID}, {Pid: init.child.Pid}}) {
		t.Errorf("pids are %v, error %v", pids, err)
	}
}

func TestSpecOfAMemberIsKeptButForItsNamespaces(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	before := map[string]any{
		"ociVersion": "9.9.9", "future": map[string]any{"x": []any{1.5, "<&>"}},
		"process":     map[string]any{"args": []any{proctest.Script(t, forever)}},
		"annotations": map[string]any{oci.SandboxIDAnnotation: "pod"},
		"linux": map[string]any{
			"cgroupsPath": containerSpec(t, "c", "").Linux.CgroupsPath,
			"seccomp":     map[string]any{"defaultAction": "SCMP_ACT_ERRNO", "unknown": true},
			"namespaces":  []any{map[string]any{"type": "pid", "path": fmt.Sprintf("/proc/%d/ns/pid", podTID)}, map[string]any{"type": "mount"}},
		},
	}
	dir := bundle(t, before)
	n.make(CreateRequest{ID: "c", Bundle: dir, Options: n.options})
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	proctest.Must(t, err)
	var after map[string]any
	proctest.Must(t, json.Unmarshal(data, &after))
	namespaces := after["linux"].(map[string]any)["namespaces"].([]any)
	if path := namespaces[0].(map[string]any)["path"].(string); !strings.Contains(path, "/fd/") {
		t.Errorf("the path is %s", path)
	}
	before["linux"].(map[string]any)["namespaces"] = namespaces
	if !reflect.DeepEqual(before, after) {
		t.Errorf("the spec has become %s", data)
	}
}

func TestSpecOfAMemberThatIsRightIsLeftAlone(t *testing.T) {
	n := newNode(t)
	n.pod(sandboxSpec())
	r := n.request("c", member(t, specs.NetworkNamespace, fmt.Sprintf("/proc/%d/ns/net", podTID)))
	path := filepath.Join(r.Bundle, "config.json")
	before := proctest.Inode(t, path)
	n.make(r)
	if proctest.Inode(t, path) != before {
		t.Error("the file was replaced")
	}
}

func TestInitHasNoRights(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	score := 77
	spec.Process = &specs.Process{User: specs.User{UID: 12, GID: 34}, OOMScoreAdj: &score, SelinuxLabel: "l", ApparmorProfile: "p"}
	spec.Linux.MountLabel = "m"
	task, init := n.sharedPod(spec)
	var got specs.Spec
	proctest.Must(t, oci.ReadJSON(filepath.Join(task.Bundle, podInitDir, "config.json"), &got))
	p := got.Process
	read, err := oci.ReadSpec(task.Bundle)
	proctest.Must(t, err)
	want := pod.EnabledLabels(read)
	if !p.NoNewPrivileges || p.Capabilities == nil || !reflect.DeepEqual(*p.Capabilities, specs.LinuxCapabilities{}) {
		t.Errorf("rights are %+v, no new privileges %t", p.Capabilities, p.NoNewPrivileges)
	}
	if p.User.UID != 12 || p.User.GID != 34 || *p.OOMScoreAdj != score || p.SelinuxLabel != want.Process || p.ApparmorProfile != want.Profile || got.Linux.MountLabel != want.Mount {
		t.Errorf("it is not run as the sandbox's spec says: %+v", p)
	}
	if got.Linux.Seccomp.DefaultAction != specs.ActErrno || !got.Root.Readonly {
		t.Errorf("seccomp %+v, root %+v", got.Linux.Seccomp, got.Root)
	}
	var status strings.Builder
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", init.child.Pid))
	proctest.Must(t, err)
	status.Write(data)
	if !strings.Contains(status.String(), "Name:\tpause\n") {
		t.Errorf("its name is not pause: %s", status.String())
	}
}

func TestRootOfTheInitHoldsNothingElse(t *testing.T) {
	n := newNode(t)
	pod, _ := n.sharedPod(sandboxSpec())
	root := filepath.Join(pod.Bundle, "rootfs")
	entries, err := os.ReadDir(root)
	proctest.Must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"dev", "pause", "proc"}; !slices.Equal(names, want) {
		t.Errorf("it holds %q, want %q", names, want)
	}
	if err := os.WriteFile(filepath.Join(root, "pause"), nil, 0o600); err == nil {
		t.Error("the program can be written to")
	}
	var st unix.Statfs_t
	proctest.Must(t, unix.Statfs(root, &st))
	if st.Type != unix.TMPFS_MAGIC || st.Flags&unix.ST_RDONLY == 0 || st.Flags&unix.ST_NODEV == 0 || st.Flags&unix.ST_NOSUID == 0 {
		t.Errorf("it is a file system of type %x with flags %x", st.Type, st.Flags)
	}
}

func TestSandboxEndsWithItsInit(t *testing.T) {
	for name, tc := range map[string]struct {
		end    func(*Task, *podInit) error
		status uint32
	}{
		"killed by itself":     {func(_ *Task, i *podInit) error { return unix.Kill(i.child.Pid, unix.SIGKILL) }, 137},
		"told to end":          {func(_ *Task, i *podInit) error { return unix.Kill(i.child.Pid, unix.SIGTERM) }, 0},
		"sandbox told to end":  {func(t *Task, _ *podInit) error { return t.Kill("", unix.SIGTERM, false) }, 0},
		"sandbox killed":       {func(t *Task, _ *podInit) error { return t.Kill("", unix.SIGKILL, false) }, 137},
		"all killed":           {func(t *Task, _ *podInit) error { return t.Kill("", unix.SIGKILL, true) }, 137},
		"killed after a pause": {func(t *Task, _ *podInit) error { return killPaused(t) }, 137},
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			spec := sandboxSpec()
			spec.Linux.CgroupsPath = containerSpec(t, "pod", "").Linux.CgroupsPath
			pod, init := n.sharedPod(spec)
			// Signals that it does not know do nothing.
			proctest.Must(t, pod.Kill("", unix.SIGUSR1, false))
			proctest.Must(t, pod.Kill("", unix.SIGHUP, false))
			proctest.Must(t, tc.end(pod, init))
			if status := exitOf(t, pod.init); status != tc.status {
				t.Errorf("exit status %d, want %d", status, tc.status)
			}
			if !proctest.AtHome(t, podTID) {
				t.Error("the thread has not come back")
			}
			_, err := pod.Delete(proctest.Context(t), "")
			proctest.Must(t, err)
			nothingOfInit(t, n, pod)
		})
	}
}

func killPaused(t *Task) error {
	if err := t.Pause(context.Background()); err != nil {
		return err
	}
	return t.Kill("", unix.SIGKILL, false)
}

// nothingOfInit fails the test if something of a pod's init is left.
func nothingOfInit(t *testing.T, n *node, pod *Task) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(n.options.Root, "test", pod.ID)); !os.IsNotExist(err) {
		t.Error("the OCI runtime still knows the init")
	}
	if mounted, err := mountinfo.Mounted(filepath.Join(pod.Bundle, "rootfs")); mounted || err != nil {
		t.Errorf("its root is mounted: %t, error %v", mounted, err)
	}
	if _, err := os.Stat(filepath.Join(pod.Bundle, podInitDir)); !os.IsNotExist(err) {
		t.Error("its bundle is left")
	}
}

func TestInitThatCannotBeRun(t *testing.T) {
	for _, kind := range []string{"fail-run", "late-run"} {
		t.Run(kind, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			spec := sandboxSpec()
			limit := int64(33)
			spec.Linux.CgroupsPath = containerSpec(t, "pod", "").Linux.CgroupsPath
			spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
			pod := n.pod(spec)
			n.tell(kind, "no inits today")
			_, err := n.Create(proctest.Context(t), n.request("a", sharer(t)))
			if err == nil || !strings.Contains(err.Error(), "no inits today") {
				t.Errorf("got error %v", err)
			}
			if runs := strings.Count(n.told("calls"), "run pod"); runs != 1 {
				t.Errorf("it was tried %d times, though the runtime has seccomp", runs)
			}
			if pod.body.(*sandbox).podInit() != nil || pod.init.Status().State != Running {
				t.Errorf("there is an init, or the sandbox has ended: %+v", pod.init.Status())
			}
			nothingOfInit(t, n, pod)
			if got := pidsLimit(t, pod); got != 33 {
				t.Errorf("the sandbox's cgroup has a limit of %d pids", got)
			}
			n.untell(kind)
			n.make(n.request("b", sharer(t)))
		})
	}
}

func TestInitWithARuntimeWithoutSeccomp(t *testing.T) {
	n := newNode(t)
	n.tell("no-seccomp", "")
	pod, _ := n.sharedPod(sandboxSpec())
	var got specs.Spec
	proctest.Must(t, oci.ReadJSON(filepath.Join(pod.Bundle, podInitDir, "config.json"), &got))
	if got.Linux.Seccomp != nil {
		t.Error("the spec has seccomp")
	}
	if runs := strings.Count(n.told("calls"), "run pod"); runs != 2 {
		t.Errorf("it was run %d times", runs)
	}
}

// The fake runtime only knows cgroup paths in cgroupfs form.
func TestInitIsInTheCgroupOfTheSandbox(t *testing.T) {
	name := fmt.Sprintf("%sinit-%d", cgroupPrefix(), containers.Add(1))
	for _, path := range []string{"/" + name, "-.slice:" + name + ":pod"} {
		n := newNode(t)
		spec := sandboxSpec()
		spec.Linux.CgroupsPath = path
		pod, init := n.sharedPod(spec)
		procs, err := pod.group().Pids()
		proctest.Must(t, err)
		if !slices.Equal(procs, []int{init.child.Pid}) {
			t.Errorf("processes in the cgroup %s are %v, want %d", path, procs, init.child.Pid)
		}
		n.Release() // the thread serves the next one
	}
}

func TestInitSharesThePodsNamespaces(t *testing.T) {
	n := newNode(t)
	spec := userSpec("")
	spec.Linux.Namespaces = without(spec.Linux.Namespaces, specs.UTSNamespace) // the host's
	spec.Hostname = ""
	pod, _ := n.sharedPod(spec)
	var got specs.Spec
	proctest.Must(t, oci.ReadJSON(filepath.Join(pod.Bundle, podInitDir, "config.json"), &got))
	want := map[specs.LinuxNamespaceType]uint64{
		specs.PIDNamespace: 0, specs.MountNamespace: 0, specs.CgroupNamespace: 0, // new
		specs.NetworkNamespace: proctest.Inode(t, proctest.ThreadNS(podTID, "net")),
		specs.IPCNamespace:     proctest.Inode(t, proctest.ThreadNS(podTID, "ipc")),
		specs.UserNamespace:    pod.body.(*sandbox).userns.ID.Inode,
	}
	for _, ns := range got.Linux.Namespaces {
		var ino uint64
		if ns.Path != "" {
			ino = proctest.Inode(t, ns.Path)
		}
		if number, ok := want[ns.Type]; !ok || ino != number {
			t.Errorf("%s namespace %s is %d, want %d", ns.Type, ns.Path, ino, number)
		}
		delete(want, ns.Type)
	}
	if len(want) > 0 {
		t.Errorf("types that are missing: %v", want)
	}
	if !reflect.DeepEqual(got.Linux.UIDMappings, spec.Linux.UIDMappings) || !reflect.DeepEqual(got.Linux.GIDMappings, spec.Linux.GIDMappings) {
		t.Errorf("the mappings are %v and %v", got.Linux.UIDMappings, got.Linux.GIDMappings)
	}
}

// Users other than root cannot enter the directory with the Sandbox API's bundles.
func TestRootOfTheInitOfASandboxThatIsNoTask(t *testing.T) {
	for _, dead := range []bool{false, true} {
		t.Run(fmt.Sprintf("dead %t", dead), func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			r := n.request("pod", sandboxSpec())
			state := t.TempDir()
			bundle := filepath.Join(state, "io.containerd.sandbox.controller.v1.shim", "test", "pod")
			proctest.Must(t, os.MkdirAll(filepath.Dir(bundle), 0o700))
			proctest.Must(t, os.Rename(r.Bundle, bundle))
			r.Bundle, r.Sandbox = bundle, true
			pod := n.make(r)
			proctest.Must(t, pod.body.(*sandbox).startInit(proctest.Context(t)))
			_, err := pod.init.Start(proctest.Context(t))
			proctest.Must(t, err)
			root := filepath.Join(state, "io.containerd.pause.v2", "test", "pod")
			if mounted, err := mountinfo.Mounted(root); !mounted || err != nil {
				t.Errorf("its root is mounted: %t, error %v", mounted, err)
			}
			for dir := root; dir != state; dir = filepath.Dir(dir) {
				if st, err := os.Stat(dir); err != nil || st.Mode()&0o001 == 0 {
					t.Errorf("users cannot reach %s: %v, error %v", dir, st, err)
				}
			}
			if dead {
				_, err = cleanUp(t, bundle, "pod")
				proctest.Must(t, err)
				exitOf(t, pod.init)
			} else {
				proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
				exitOf(t, pod.init)
				_, err = pod.Delete(proctest.Context(t), "")
				proctest.Must(t, err)
			}
			if _, err := os.Stat(root); !os.IsNotExist(err) {
				t.Errorf("its root is left: %v", err)
			}
		})
	}
}

func TestSandboxIsKilledWhileItsInitStarts(t *testing.T) {
	proctest.NoLeakedFDs(t)
	n := newNode(t)
	pod := n.pod(sandboxSpec())
	arrived := n.gate("run")
	done := make(chan error, 1)
	r := n.request("a", sharer(t))
	go func() {
		task, err := n.Create(proctest.Context(t), r)
		if err == nil {
			n.adopt(task)
		}
		done <- err
	}()
	open := arrived()
	defer open()
	proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
	proctest.WantKind(t, <-done, errdefs.IsFailedPrecondition, "a failed precondition")
	if status := exitOf(t, pod.init); status != 137 {
		t.Errorf("exit status %d, want 137", status)
	}
	_, err := pod.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
	nothingOfInit(t, n, pod)
}

func TestInitCanBeStartedBeforeItIsNeeded(t *testing.T) {
	n := newNode(t)
	pod := n.pod(sandboxSpec())
	proctest.Must(t, pod.body.(*sandbox).startInit(proctest.Context(t)))
	proctest.Must(t, pod.body.(*sandbox).startInit(proctest.Context(t)))
	if runs := strings.Count(n.told("calls"), "run pod"); runs != 1 {
		t.Errorf("the init was run %d times", runs)
	}
	proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
	exitOf(t, pod.init)
	proctest.WantKind(t, pod.body.(*sandbox).startInit(proctest.Context(t)), errdefs.IsFailedPrecondition, "a failed precondition")
}

func TestNoInitInThePIDNamespaceOfTheHost(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.Namespaces = without(spec.Linux.Namespaces, specs.PIDNamespace)
	pod := n.pod(spec)
	n.make(n.request("a", sharer(t)))
	if pod.body.(*sandbox).podInit() != nil {
		t.Error("there is an init")
	}
	proctest.WantKind(t, pod.body.(*sandbox).startInit(proctest.Context(t)), errdefs.IsInvalidArgument, "an invalid argument")
}

func TestCleanUpOfAnInit(t *testing.T) {
	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.CgroupsPath = containerSpec(t, "pod", "").Linux.CgroupsPath
	pod := n.pod(spec)
	proctest.Must(t, pod.body.(*sandbox).startInit(proctest.Context(t)))
	init := pod.body.(*sandbox).podInit()
	st, err := cleanUp(t, pod.Bundle, "pod")
	if err != nil || st.Exit.Status != 137 {
		t.Errorf("got %+v and error %v", st, err)
	}
	proctest.Eventually(t, "the init is gone", func() bool { return proctest.ProcessState(init.child.Pid) == "" })
	if mounted, err := mountinfo.Mounted(filepath.Join(pod.Bundle, "rootfs")); mounted || err != nil {
		t.Errorf("its root is mounted: %t, error %v", mounted, err)
	}
	n.knowsNothing()
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	exitOf(t, pod.init)
	_, err = cleanUp(t, pod.Bundle, "pod")
	proctest.Must(t, err)
}
