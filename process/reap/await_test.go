package reap

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

func TestStartTimeOfAProcess(t *testing.T) {
	first, err := StartTime(os.Getpid())
	proctest.Must(t, err)
	release := reaper.Hold()
	child := reaper.Claim(fork(t, "exec sleep 100000"))
	release()
	second, err := StartTime(child.Pid)
	proctest.Must(t, child.Signal(unix.SIGKILL))
	_, werr := child.Wait()
	proctest.Must(t, werr)
	if err != nil || first == 0 || second < first {
		t.Errorf("got %d, then %d and error %v", first, second, err)
	}
	if _, err := StartTime(1 << 30); err == nil {
		t.Error("no error for a process that does not exist")
	}
}

func TestChildIsAwaitedWithoutDescriptors(t *testing.T) {
	await := func(t *testing.T) {
		release := reaper.Hold()
		child := reaper.Claim(fork(t, "sleep 0.2; exit 42"))
		release()
		if status, err := child.Wait(); err != nil || status != 42 {
			t.Errorf("got %d and error %v, want 42", status, err)
		}
		if proctest.ProcessState(child.Pid) != "" {
			t.Error("it is not reaped")
		}
	}
	t.Run("none is left", func(t *testing.T) {
		proctest.NoLeakedFDs(t)
		release := reaper.Hold()
		child := reaper.Claim(fork(t, "sleep 0.2; exit 42"))
		release()
		defer proctest.UseUpDescriptors(t, 0)()
		status, err := child.Wait()
		if err != nil || status != 42 {
			t.Errorf("got %d and error %v, want 42", status, err)
		}
	})
	for name, tc := range map[string]struct {
		number uint32
		errno  unix.Errno
	}{
		"pidfd_open is refused":       {unix.SYS_PIDFD_OPEN, unix.EPERM},
		"the host has no more files":  {unix.SYS_PIDFD_OPEN, unix.ENFILE},
		"no memory for a descriptor":  {unix.SYS_PIDFD_OPEN, unix.ENOMEM},
		"the kernel knows no pidfds":  {unix.SYS_PIDFD_OPEN, unix.ENOSYS},
		"the poller has no more room": {unix.SYS_EPOLL_CTL, unix.ENOSPC},
		"no memory for the poller":    {unix.SYS_EPOLL_CTL, unix.ENOMEM},
	} {
		t.Run(name, func(t *testing.T) {
			if proctest.Again(t, nil) {
				proctest.RefuseSyscall(t, tc.number, tc.errno)
				await(t)
			}
		})
	}
}

// A process may become the shim's child after it is claimed, also where there are no pidfds.
func TestChildOfAnotherIsAwaitedWithoutDescriptors(t *testing.T) {
	defer reaper.Hold()()
	file := filepath.Join(t.TempDir(), "pid")
	between := fork(t, `sh -c 'sleep 0.4; exit 42' & echo $! >`+file+`.new; mv `+file+`.new `+file+`; exec sleep 0.2`)
	var pid int
	proctest.Eventually(t, "the child is there", func() bool {
		text, _ := os.ReadFile(file)
		_, err := fmt.Sscan(string(text), &pid)
		return err == nil
	})
	child := reaper.Claim(pid)
	defer proctest.UseUpDescriptors(t, 0)()
	go func() { _, _ = unix.Wait4(between, nil, 0, nil) }()
	status, err := child.Wait()
	if err != nil || status != 42 {
		t.Errorf("got %d and error %v, want 42", status, err)
	}
}
