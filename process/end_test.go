package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// killedShim is what a killed shim leaves of a container. No OCI runtime has created the container, and none can
// be called.
type killedShim struct {
	t      *testing.T
	bundle string
	state  string // the OCI runtime's directory of the container
	cgroup *cgroups.Cgroup
	pids   []int // that of the init first
}

// leave creates what a killed shim leaves of a container with the given number of processes.
func leave(t *testing.T, processes int, namespaces ...specs.LinuxNamespace) *killedShim {
	t.Helper()
	spec := containerSpec(t, "c", forever)
	spec.Linux.Namespaces = namespaces
	root := t.TempDir()
	l := &killedShim{t: t, bundle: bundle(t, spec), state: filepath.Join(root, "test", "c")}
	options := oci.Options{BinaryName: proctest.GoProgram(t, "runtime", proctest.RuncModule), Root: root}
	proctest.Must(t, writeRecord(l.bundle, bundleRecord{Options: options, CgroupsPath: spec.Linux.CgroupsPath}))
	var err error
	l.cgroup, err = cgroups.Create(spec.Linux.CgroupsPath, false, nil)
	proctest.Must(t, err)
	t.Cleanup(func() {
		_ = l.cgroup.Signal(unix.SIGKILL)
		_ = l.cgroup.Remove(proctest.Context(t))
	})
	for range processes {
		pid := sleeper(t, nil)
		proctest.Must(t, l.cgroup.Add(pid))
		l.pids = append(l.pids, pid)
	}
	start, err := reap.StartTime(l.pids[0])
	proctest.Must(t, err)
	l.writeState(start)
	return l
}

func (l *killedShim) writeState(start uint64) {
	l.t.Helper()
	paths := make(map[string]string)
	for i, dir := range l.cgroup.Paths() {
		paths[fmt.Sprint(i)] = dir
	}
	data, err := json.Marshal(oci.RuncState{InitPid: l.pids[0], InitStart: start, CgroupPaths: paths})
	proctest.Must(l.t, err)
	proctest.Must(l.t, os.MkdirAll(l.state, 0o700))
	proctest.Must(l.t, os.WriteFile(filepath.Join(l.state, "state.json"), data, 0o600))
}

func (l *killedShim) wantNothing() {
	l.t.Helper()
	for _, pid := range l.pids {
		l.wantEnded(pid)
	}
	if _, err := os.Lstat(l.state); !os.IsNotExist(err) {
		l.t.Errorf("the OCI runtime's state is left: %v", err)
	}
	for _, dir := range l.cgroup.Paths() {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			l.t.Errorf("%s is left: %v", dir, err)
		}
	}
}

func (l *killedShim) wantEnded(pid int) {
	l.t.Helper()
	proctest.Eventually(l.t, "the process has ended", func() bool { return hasEnded(pid) })
}

func hasEnded(pid int) bool { return slices.Contains([]string{"", "Z"}, proctest.ProcessState(pid)) }

var ownPIDs = specs.LinuxNamespace{Type: specs.PIDNamespace}

func TestCleanUpWithoutTheOCIRuntime(t *testing.T) {
	for name, tc := range map[string]struct {
		processes  int
		namespaces []specs.LinuxNamespace
		change     func(t *testing.T, l *killedShim)
	}{
		"with a PID namespace": {1, []specs.LinuxNamespace{ownPIDs}, nil},
		"without":              {3, nil, nil},
		"without, and no init": {3, nil, func(t *testing.T, l *killedShim) { proctest.Must(t, unix.Kill(l.pids[0], unix.SIGKILL)) }},
		"all have ended":       {2, nil, func(t *testing.T, l *killedShim) { proctest.Must(t, l.cgroup.Signal(unix.SIGKILL)) }},
		"the state is lost":    {3, []specs.LinuxNamespace{ownPIDs}, func(t *testing.T, l *killedShim) { proctest.Must(t, os.RemoveAll(l.state)) }},
		"the cgroup was removed": {1, nil, func(t *testing.T, l *killedShim) {
			proctest.Must(t, l.cgroup.Signal(unix.SIGKILL))
			proctest.Must(t, l.cgroup.Remove(proctest.Context(t)))
		}},
		"it is paused":   {1, []specs.LinuxNamespace{ownPIDs}, func(t *testing.T, l *killedShim) { proctest.Must(t, l.cgroup.Freeze(proctest.Context(t))) }},
		"all are paused": {3, nil, func(t *testing.T, l *killedShim) { proctest.Must(t, l.cgroup.Freeze(proctest.Context(t))) }},
	} {
		t.Run(name, func(t *testing.T) {
			l := leave(t, tc.processes, tc.namespaces...)
			if tc.change != nil {
				tc.change(t, l)
			}
			for range 2 { // it can be repeated
				if _, err := cleanUp(t, l.bundle, "c"); err != nil {
					t.Error(err)
				}
				l.wantNothing()
			}
		})
	}
}

// A seccomp filter around containerd may not know pidfd_open, and descriptors may be used up.
func TestCleanUpWithoutPidfds(t *testing.T) {
	for name, errno := range map[string]unix.Errno{"refused": unix.EPERM, "unknown": unix.ENOSYS, "used up": unix.ENFILE} {
		t.Run(name, func(t *testing.T) {
			if proctest.Again(t, nil) {
				first, second := leave(t, 1, ownPIDs), leave(t, 3)
				proctest.RefuseSyscall(t, unix.SYS_PIDFD_OPEN, errno)
				for _, l := range []*killedShim{first, second} {
					if _, err := cleanUp(t, l.bundle, "c"); err != nil {
						t.Error(err)
					}
					l.wantNothing()
				}
			}
		})
	}
}

// No process may survive, whatever the OCI runtime does.
func TestCleanUpKillsThoughTheOCIRuntimeFails(t *testing.T) {
	n := newNode(t)
	n.tell("fail-delete", "no more bananas")
	for _, namespaces := range [][]specs.LinuxNamespace{nil, {ownPIDs}} {
		spec := containerSpec(t, "c", forever+" & "+forever)
		spec.Linux.Namespaces = namespaces
		r := n.request("c", spec)
		task, err := n.Create(proctest.Context(t), r)
		proctest.Must(t, err)
		task.Watch()
		pid, err := task.init.Start(proctest.Context(t))
		proctest.Must(t, err)
		if _, err := cleanUp(t, r.Bundle, "c"); err == nil {
			t.Error("no error")
		}
		proctest.Eventually(t, "the process has ended", func() bool { return proctest.ProcessState(pid) == "" })
		exitOf(t, task.init)
		n.untell("fail-delete")
		_, err = task.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
		n.tell("fail-delete", "no more bananas")
	}
	n.untell("fail-delete")
}

// If the OCI runtime was killed, it is called again.
func TestCleanUpTriesAgainWhenTheOCIRuntimeWasKilled(t *testing.T) {
	n := newNode(t)
	task := n.container("c", "exit 42")
	exitOf(t, task.init)
	n.tell("killed-delete", "")
	if _, err := cleanUp(t, task.Bundle, "c"); err != nil {
		t.Error(err)
	}
	n.knowsNothing()
}

// Another process may have got the init's pid meanwhile. It must not be killed.
func TestCleanUpSparesWhoHasThePidOfTheInit(t *testing.T) {
	l := leave(t, 1, ownPIDs)
	other := sleeper(t, nil)
	proctest.Must(t, unix.Kill(l.pids[0], unix.SIGKILL))
	l.wantEnded(l.pids[0])
	start, err := reap.StartTime(other)
	proctest.Must(t, err)
	ended := l.pids[0]
	l.pids[0] = other
	l.writeState(start + 1)
	if _, err := cleanUp(t, l.bundle, "c"); err != nil {
		t.Error(err)
	}
	if hasEnded(other) {
		t.Error("it was killed")
	}
	l.pids[0] = ended
	l.wantNothing()
}

// A cgroup that was in use before the container is not the container's to remove.
func TestCleanUpSparesOthersInTheCgroup(t *testing.T) {
	n := newNode(t)
	first := n.container("first", forever)
	spec, err := oci.ReadSpec(first.Bundle)
	proctest.Must(t, err)
	n.tell("fail-create", "the cgroup is not empty")
	r := n.request("second", spec)
	if _, err := n.Create(proctest.Context(t), r); err == nil {
		t.Error("no error")
	}
	n.untell("fail-create")
	if _, err := cleanUp(t, r.Bundle, "second"); err != nil {
		t.Error(err)
	}
	if st := first.init.Status(); st.State != Running || hasEnded(st.Pid) {
		t.Errorf("the first is %s", st.State)
	}
}

// A container is removed completely even if the OCI runtime has lost its state.
func TestDeleteWhenTheOCIRuntimeHasLostItsState(t *testing.T) {
	for name, lose := range map[string]func(dir string) error{
		"no directory": os.RemoveAll,
		"no files": func(dir string) error {
			return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700))
		},
		"a broken file of runc": func(dir string) error { return os.WriteFile(filepath.Join(dir, "state.json"), nil, 0o600) },
		"a broken file of crun": func(dir string) error { return os.WriteFile(filepath.Join(dir, "status"), []byte("{"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			r := n.request("c", containerSpec(t, "c", forever))
			r.Rootfs = []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}
			task := n.make(r)
			_, err := task.init.Start(proctest.Context(t))
			proctest.Must(t, err)
			proctest.Must(t, lose(filepath.Join(n.options.Root, "test", "c")))
			n.tell("fail-delete", "what state?")
			kill(t, task)
			remove(t, task)
			n.knowsNothing()
			if left := cgroupsLeft(); len(left) > 0 {
				t.Errorf("cgroups are left: %v", left)
			}
			if proctest.Mounted(t, filepath.Join(r.Bundle, "rootfs")) {
				t.Error("the root file system is mounted")
			}
		})
	}
}

// A container that could not be created must not run, even if its removal fails.
func TestFailedCreateWhoseRemovalFails(t *testing.T) {
	n := newNode(t)
	n.tell("late-create", "too late")
	n.tell("fail-delete", "no more bananas")
	r := n.request("c", containerSpec(t, "c", forever))
	if _, err := n.Create(proctest.Context(t), r); err == nil || !strings.Contains(err.Error(), "too late") || !strings.Contains(err.Error(), "bananas") {
		t.Errorf("got %v", err)
	}
	text, err := os.ReadFile(filepath.Join(n.options.Root, "test", "c", "pid"))
	proctest.Must(t, err)
	var pid int
	_, err = fmt.Sscan(string(text), &pid)
	proctest.Must(t, err)
	proctest.Eventually(t, "the process is gone", func() bool { return proctest.ProcessState(pid) == "" })
	n.untell("fail-delete")
	if _, err := cleanUp(t, r.Bundle, "c"); err != nil {
		t.Error(err)
	}
	n.knowsNothing()
}

func TestForcedDeleteThatHangs(t *testing.T) {
	n := newNode(t)
	task := n.container("c", forever)
	n.tell("hang-delete", "")
	r := task.body.(*container).runtime
	r.Force = 50 * time.Millisecond
	if err := r.Delete(proctest.Context(t), "c", true); err == nil || !strings.Contains(err.Error(), "has not ended after") {
		t.Errorf("got %v", err)
	}
	if status := exitOf(t, task.init); status != 128+9 {
		t.Errorf("the exit status is %d", status)
	}
	n.untell("hang-delete")
}

// An OCI runtime may be killed while it creates a container, for example because the client has gone. It may
// have created the cgroup, but not yet written any state. Then runc delete --force succeeds, but removes only runc's
// own directory.
func TestDeleteOfAContainerThatIsHalfMade(t *testing.T) {
	for name, fifo := range map[string]bool{"no file": false, "the fifo": true} {
		t.Run(name, func(t *testing.T) {
			l := leave(t, 1)
			proctest.Must(t, os.Remove(filepath.Join(l.state, "state.json")))
			if fifo {
				proctest.Must(t, unix.Mkfifo(filepath.Join(l.state, "exec.fifo"), 0o600))
			}
			runtime := proctest.Script(t, "#!/bin/sh\nrm -rf "+l.state)
			proctest.Must(t, os.Chmod(runtime, 0o700))
			rt := &oci.Runtime{Options: oci.Options{BinaryName: runtime, Root: filepath.Dir(filepath.Dir(l.state))}, Namespace: "test", Bundle: l.bundle, CgroupsPath: l.cgroup.String(), Reaper: reaper}
			proctest.Must(t, rt.Delete(proctest.Context(t), "c", true))
			l.wantNothing()
		})
	}
}
