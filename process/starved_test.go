package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// useUpDescriptors lets no more than so many descriptors be had, until release is called.
func useUpDescriptors(t *testing.T, free int) (release func()) {
	t.Helper()
	var before unix.Rlimit
	must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &before))
	taken := []int{openNull(t)}
	release = sync.OnceFunc(func() {
		must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil))
		for _, fd := range taken {
			unix.Close(fd)
		}
	})
	t.Cleanup(release)
	highest := 0
	for fd := range openFDs() {
		n, err := strconv.Atoi(fd)
		must(t, err)
		highest = max(highest, n)
	}
	must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(highest + free + 1), Max: before.Max}, nil))
	for {
		fd, err := unix.FcntlInt(uintptr(taken[0]), unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EINVAL) {
			break
		}
		must(t, err)
		taken = append(taken, fd)
	}
	for range free {
		last := len(taken) - 1
		unix.Close(taken[last])
		taken = taken[:last]
	}
	return release
}

func openNull(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	return fd
}

// again runs the test that calls it in another process, which the caller may have changed, and fails the test
// with it. It returns true in that process.
func again(t *testing.T, change func(*exec.Cmd)) (inside bool) {
	t.Helper()
	const variable = "PAUSE_TEST_AGAIN"
	if os.Getenv(variable) == t.Name() {
		return true
	}
	var names []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+regexp.QuoteMeta(name)+"$")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run="+strings.Join(names, "/"), "-test.count=1", "-test.timeout="+deadline.String())
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	if change != nil {
		change(cmd)
	}
	defer reaper.hold()()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "\nno tests to run") || strings.Contains(string(out), "testing: warning") {
		t.Errorf("it has not run: %s", out)
	}
	return false
}

// refuseSyscall makes a system call fail in this process from now on, as a seccomp filter around a shim may.
func refuseSyscall(t *testing.T, number uint32, errno unix.Errno) {
	t.Helper()
	const allow, fail = 0x7fff0000, 0x00050000 // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: number},
		{Code: unix.BPF_RET | unix.BPF_K, K: fail | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if err != 0 {
		t.Fatalf("cannot set a seccomp filter: %v", err)
	}
}

func TestChildIsAwaitedWithoutDescriptors(t *testing.T) {
	await := func(t *testing.T) {
		release := reaper.hold()
		child := reaper.claim(fork(t, "sleep 0.2; exit 42"))
		release()
		if status, err := child.wait(); err != nil || status != 42 {
			t.Errorf("got %d and error %v, want 42", status, err)
		}
		if processState(child.pid) != "" {
			t.Error("it is not reaped")
		}
	}
	t.Run("none is left", func(t *testing.T) {
		noLeakedFDs(t)
		release := reaper.hold()
		child := reaper.claim(fork(t, "sleep 0.2; exit 42"))
		release()
		defer useUpDescriptors(t, 0)()
		status, err := child.wait()
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
			if again(t, nil) {
				refuseSyscall(t, tc.number, tc.errno)
				await(t)
			}
		})
	}
}

// A child that becomes one only later is awaited in the same way without pidfds.
func TestChildOfAnotherIsAwaitedWithoutDescriptors(t *testing.T) {
	defer reaper.hold()()
	file := filepath.Join(t.TempDir(), "pid")
	between := fork(t, `sh -c 'sleep 0.4; exit 42' & echo $! >`+file+`.new; mv `+file+`.new `+file+`; exec sleep 0.2`)
	var pid int
	eventually(t, "the child is there", func() bool {
		text, _ := os.ReadFile(file)
		_, err := fmt.Sscan(string(text), &pid)
		return err == nil
	})
	child := reaper.claim(pid)
	defer useUpDescriptors(t, 0)()
	go func() { _, _ = unix.Wait4(between, nil, 0, nil) }()
	status, err := child.wait()
	if err != nil || status != 42 {
		t.Errorf("got %d and error %v, want 42", status, err)
	}
}

// Whatever the number of descriptors that are left, an OCI runtime has ended when the call of it returns.
func TestRunToEndWithoutDescriptors(t *testing.T) {
	done := filepath.Join(t.TempDir(), "done")
	worked := 0
	try := func(name string, free, later int) {
		t.Run(name, func(t *testing.T) {
			noLeakedFDs(t)
			before := children(t)
			defer reaper.hold()()
			release := useUpDescriptors(t, free)
			defer release()
			started := func() {
				release()
				release = useUpDescriptors(t, later) // others' requests have taken them
			}
			_, err := runToEnd(testContext(t), []string{"sh", "-c", "sleep 0.1; echo >" + done}, [3]*os.File{}, started)
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
		ctx, cancel := context.WithCancel(testContext(t))
		defer cancel()
		defer reaper.hold()()
		_, err := runToEnd(ctx, []string{"sleep", "100000"}, [3]*os.File{}, func() {
			t.Cleanup(useUpDescriptors(t, 0))
			cancel()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		noMoreChildren(t, before)
	})
}

// A process that was made must not be lost because its pid cannot be read at once.
func TestPidFileIsReadWhenThereAreDescriptorsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pid")
	must(t, os.WriteFile(path, []byte("42"), 0o600))
	time.AfterFunc(50*time.Millisecond, useUpDescriptors(t, 0))
	if pid, err := readPidFile(path); err != nil || pid != 42 {
		t.Errorf("got %d and error %v", pid, err)
	}
}

// However many descriptors are left: a container that cannot be created does not run, and of one that was the exit
// is told as it was.
func TestContainerWithoutDescriptors(t *testing.T) {
	created := 0
	for free := range 10 {
		t.Run(fmt.Sprint(free), func(t *testing.T) {
			n := newNode(t)
			before := children(t)
			r := n.request("c", containerSpec(t, "c", "exit 42"))
			release := useUpDescriptors(t, free)
			task, err := n.Create(testContext(t), r)
			if err == nil {
				created++
				task.Watch()
				_, err = task.init.Start(testContext(t))
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
