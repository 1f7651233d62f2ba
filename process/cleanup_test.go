package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// cleanUp calls CleanUp as the shim's delete command does. That command does not reap, so the reaper is on hold.
func cleanUp(t *testing.T, bundle, id string) (Status, error) {
	t.Helper()
	defer reaper.Hold()()
	return CleanUp(proctest.Context(t), "test", bundle, id)
}

func TestCleanUpWithoutATask(t *testing.T) {
	before := time.Now()
	st, err := cleanUp(t, t.TempDir(), "c")
	if err != nil || st.State != Stopped || st.Pid != 0 || st.Exit.Status != 137 || st.Exit.At.Before(before) {
		t.Errorf("got %+v and error %v", st, err)
	}
	if _, err := cleanUp(t, filepath.Join(t.TempDir(), "no-bundle"), "c"); err != nil {
		t.Error(err)
	}
}

func TestCleanUpOfAContainer(t *testing.T) {
	n := newNode(t)
	r := n.request("c", containerSpec(t, "c", forever))
	r.Rootfs = []mount.Mount{{Type: "tmpfs", Source: "tmpfs"}}
	task, err := n.Create(proctest.Context(t), r)
	proctest.Must(t, err)
	task.Watch()
	pid, err := task.init.Start(proctest.Context(t))
	proctest.Must(t, err)
	st, err := cleanUp(t, r.Bundle, "c")
	if err != nil || st.Exit.Status != 137 || st.Pid != pid {
		t.Errorf("got %+v and error %v, want pid %d", st, err, pid)
	}
	n.knowsNothing()
	if mounted, err := mountinfo.Mounted(filepath.Join(r.Bundle, "rootfs")); mounted || err != nil {
		t.Errorf("the root file system is mounted: %t, error %v", mounted, err)
	}
	if left := cgroupsLeft(); len(left) > 0 {
		t.Errorf("cgroups are left: %v", left)
	}
	proctest.Eventually(t, "the process is gone", func() bool { return proctest.ProcessState(pid) == "" })
	exitOf(t, task.init)
	// CleanUp may be repeated.
	_, err = cleanUp(t, r.Bundle, "c")
	proctest.Must(t, err)
}

func TestCleanUpAnswersWithTheRecordedExit(t *testing.T) {
	n := newNode(t)
	task := n.container("c", "exit 42")
	exitOf(t, task.init)
	want := task.init.Status()
	for range 2 {
		st, err := cleanUp(t, task.Bundle, "c")
		if err != nil || st.Pid != want.Pid || st.Exit.Status != 42 || !st.Exit.At.Equal(want.Exit.At) {
			t.Errorf("got %+v and error %v, want %+v", st, err, want)
		}
	}
	n.knowsNothing()
}

func TestCleanUpThatFailsAnswersNevertheless(t *testing.T) {
	n := newNode(t)
	task := n.container("c", "exit 42")
	exitOf(t, task.init)
	n.tell("fail-delete", "no more bananas")
	st, err := cleanUp(t, task.Bundle, "c")
	if err == nil || !strings.Contains(err.Error(), "bananas") || st.Exit.Status != 42 {
		t.Errorf("got %+v and error %v", st, err)
	}
	n.untell("fail-delete")
}

func TestCleanUpOfASandbox(t *testing.T) {
	for _, end := range []bool{false, true} {
		n := newNode(t)
		spec := sandboxSpec()
		spec.Linux.CgroupsPath = "/" + cgroupPrefix() + "pod"
		task := n.pod(spec)
		want := uint32(137)
		if end {
			proctest.Must(t, task.Kill("", unix.SIGTERM, false))
			want = exitOf(t, task.init)
		}
		st, err := cleanUp(t, task.Bundle, "pod")
		if err != nil || st.Exit.Status != want {
			t.Errorf("ended: %t: got %+v and error %v", end, st, err)
		}
		if left := cgroupsLeft(); len(left) > 0 {
			t.Errorf("cgroups are left: %v", left)
		}
		_, err = cleanUp(t, task.Bundle, "pod")
		proctest.Must(t, err)
		n.Release() // the thread serves the next one
	}
}

func TestCleanUpWithBrokenRecords(t *testing.T) {
	for _, name := range []string{recordFile, exitFile} {
		dir := t.TempDir()
		proctest.Must(t, os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600))
		if _, err := cleanUp(t, dir, "c"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want an error that names %s", err, name)
		}
	}
}
