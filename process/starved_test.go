package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"
)

// However few descriptors are left, the OCI runtime must have ended when the call of it returns.
func TestRunToEndWithoutDescriptors(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	worked := 0
	try := func(name string, free, later int) {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			before := children(t)
			defer reaper.Hold()()
			release := proctest.UseUpDescriptors(t, free)
			defer release()
			started := func() {
				release()
				release = proctest.UseUpDescriptors(t, later) // others' requests have taken them
			}
			_, err := oci.RunToEnd(proctest.Context(t), nil, []string{"sh", "-c", "sleep 0.1; echo >" + done}, [3]*os.File{}, started)
			release()
			switch missing := os.Remove(done); {
			case err == nil && missing != nil:
				t.Error("it has not ended, but there is no error")
			case err != nil && missing == nil:
				t.Errorf("it was run, but: %v", err)
			case err == nil:
				worked++
			}
			noMoreChildren(t, before)
		})
	}
	for free := range 8 {
		try(fmt.Sprintf("%d are left", free), free, free)
		try(fmt.Sprintf("%d are left, then none", free), free, 0)
	}
	if worked == 0 {
		t.Error("eight descriptors were too few")
	}
	t.Run("its context ends", func(t *testing.T) {
		before := children(t)
		ctx, cancel := context.WithCancel(proctest.Context(t))
		defer cancel()
		defer reaper.Hold()()
		_, err := oci.RunToEnd(ctx, nil, []string{"sleep", "100000"}, [3]*os.File{}, func() {
			t.Cleanup(proctest.UseUpDescriptors(t, 0))
			cancel()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		noMoreChildren(t, before)
	})
}

// A process that was created must not be lost because the pid file cannot be opened at once.
func TestPidFileIsReadWhenThereAreDescriptorsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	proctest.Must(t, os.WriteFile(path, []byte("42"), 0o600))
	time.AfterFunc(50*time.Millisecond, proctest.UseUpDescriptors(t, 0))
	if pid, err := oci.ReadPidFile(path); err != nil || pid != 42 {
		t.Errorf("got %d and error %v", pid, err)
	}
}

// However few descriptors are left, a container that cannot be created must not run, and the exit of one that was
// created must be reported correctly.
func TestContainerWithoutDescriptors(t *testing.T) {
	created := 0
	for free := range 10 {
		t.Run(fmt.Sprint(free), func(t *testing.T) {
			n := newNode(t)
			before := children(t)
			r := n.request("c", containerSpec(t, "c", "exit 42"))
			release := proctest.UseUpDescriptors(t, free)
			task, err := n.Create(proctest.Context(t), r)
			if err == nil {
				created++
				task.Watch()
				_, err = task.init.Start(proctest.Context(t))
				if err == nil && exitOf(t, task.init) != 42 {
					t.Errorf("its exit is %+v", task.init.Status().Exit)
				}
			}
			release()
			if err != nil {
				t.Log(err)
			}
			if _, err := cleanUp(t, r.Bundle, "c"); err != nil { // as containerd has it done
				t.Error(err)
			}
			if task != nil {
				exitOf(t, task.init)
			}
			n.knowsNothing()
			noMoreChildren(t, before)
			if left := cgroupsLeft(); len(left) > 0 {
				t.Errorf("cgroups are left: %v", left)
			}
		})
	}
	if created == 0 {
		t.Error("so many descriptors were too few")
	}
}
