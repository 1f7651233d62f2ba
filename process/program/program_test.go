package program

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

// start starts a program. If PAUSE_TEST_EMULATOR is set, such as to qemu-aarch64-static, that
// emulator runs it: the tests are then built for another architecture.
func start(t *testing.T, program func() ([]byte, error), change func(*exec.Cmd)) *exec.Cmd {
	t.Helper()
	data, err := program()
	proctest.Must(t, err)
	path := filepath.Join(t.TempDir(), "program")
	proctest.Must(t, os.WriteFile(path, data, 0o755))
	cmd := exec.Command(path)
	if emulator := os.Getenv("PAUSE_TEST_EMULATOR"); emulator != "" {
		cmd = exec.Command(emulator, path)
	}
	if change != nil {
		change(cmd)
	}
	proctest.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	return cmd
}

// needNative skips a test that an emulator would falsify, or that needs root.
func needNative(t *testing.T) {
	t.Helper()
	if os.Getenv("PAUSE_TEST_EMULATOR") != "" {
		t.Skip("an emulated process has the files and namespaces of its emulator")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can make namespaces")
	}
}

// awaitBlocked waits until a process has blocked all signals.
func awaitBlocked(t *testing.T, pid int) {
	t.Helper()
	proctest.Eventually(t, "signals are blocked", func() bool {
		data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		proctest.Must(t, err)
		_, after, _ := strings.Cut(string(data), "SigBlk:\t")
		mask, err := strconv.ParseUint(after[:16], 16, 64)
		proctest.Must(t, err)
		return mask&1 != 0 // SIGHUP, the first
	})
}

func TestPodInitEndsOnSignal(t *testing.T) {
	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := start(t, PodInit, nil)
			awaitBlocked(t, cmd.Process.Pid)
			proctest.Must(t, cmd.Process.Signal(sig))
			proctest.Must(t, cmd.Wait())
		})
	}
}

func TestPodInitIgnoresOtherSignals(t *testing.T) {
	cmd := start(t, PodInit, nil)
	awaitBlocked(t, cmd.Process.Pid)
	for _, sig := range []syscall.Signal{unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGPIPE, unix.SIGCHLD, unix.SIGALRM, 40} {
		proctest.Must(t, cmd.Process.Signal(sig))
	}
	proctest.Must(t, cmd.Process.Signal(unix.SIGTERM))
	proctest.Must(t, cmd.Wait()) // it fails if a signal other than SIGTERM has ended the init
}

func TestPodInitSurvivesStop(t *testing.T) {
	needNative(t) // in an emulator, a stop does not interrupt sigtimedwait
	cmd := start(t, PodInit, nil)
	awaitBlocked(t, cmd.Process.Pid)
	proctest.Must(t, cmd.Process.Signal(unix.SIGSTOP))
	proctest.Must(t, cmd.Process.Signal(unix.SIGCONT))
	proctest.Must(t, cmd.Process.Signal(unix.SIGTERM))
	proctest.Must(t, cmd.Wait())
}

func TestPodInitClosesItsStreams(t *testing.T) {
	needNative(t)
	cmd := start(t, PodInit, nil)
	proctest.Eventually(t, "no stream is open", func() bool {
		for fd := range 3 {
			_, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", cmd.Process.Pid, fd))
			if !errors.Is(err, os.ErrNotExist) {
				return false
			}
		}
		return true
	})
}

func TestPodInitReapsOrphans(t *testing.T) {
	needNative(t)
	cmd := start(t, PodInit, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	})
	pid := strconv.Itoa(cmd.Process.Pid)
	children := func() string {
		data, err := os.ReadFile(filepath.Join("/proc", pid, "task", pid, "children"))
		proctest.Must(t, err)
		return string(data)
	}
	// The shell leaves three children to the init. One of them ends only when it is killed.
	out, err := exec.Command("nsenter", "-t", pid, "-p", "sh", "-c", "sleep 0 & sleep 0 & sleep 1000 >/dev/null 2>&1 & echo $!").Output()
	proctest.Must(t, err)
	if strings.TrimSpace(string(out)) == "" {
		t.Fatal("no pid")
	}
	proctest.Eventually(t, "one child is left", func() bool { return len(strings.Fields(children())) == 1 })
	_, err = exec.Command("nsenter", "-t", pid, "-p", "sh", "-c", "kill "+string(out)).Output()
	proctest.Must(t, err)
	proctest.Eventually(t, "no child is left", func() bool { return children() == "" })
}

// startHolder starts a holder with a user namespace as its descriptor 3, gives it
// its order, and returns its report.
func startHolder(t *testing.T, userns *os.File, order Order) (pid int, report Report, end func()) {
	t.Helper()
	in, stdin, err := os.Pipe()
	proctest.Must(t, err)
	stdout, out, err := os.Pipe()
	proctest.Must(t, err)
	cmd := start(t, Holder, func(cmd *exec.Cmd) {
		cmd.Stdin, cmd.Stdout = in, out
		cmd.ExtraFiles = []*os.File{userns}
	})
	in.Close()
	out.Close()
	proctest.Must(t, binary.Write(stdin, binary.NativeEndian, order))
	proctest.Must(t, binary.Read(stdout, binary.NativeEndian, &report))
	return cmd.Process.Pid, report, func() {
		stdin.Close()
		proctest.Must(t, cmd.Wait())
		stdout.Close()
	}
}

// newUserNamespace returns the user namespace of a process that sleeps.
func newUserNamespace(t *testing.T) *os.File {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}},
	}
	proctest.Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	f, err := os.Open("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/ns/user")
	proctest.Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestHolderMakesNamespacesInUserNamespace(t *testing.T) {
	needNative(t)
	userns := newUserNamespace(t)
	pid, report, end := startHolder(t, userns, Order{UserNamespace: 3, Flags: unix.CLONE_NEWIPC | unix.CLONE_NEWUTS})
	proctest.Must(t, report.Err())
	for _, kind := range []string{"ipc", "uts"} {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + kind)
		proctest.Must(t, err)
		defer f.Close()
		if inode(t, f) == inodeAt(t, "/proc/self/ns/"+kind) {
			t.Errorf("%s is the host's", kind)
		}
		owner, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
		proctest.Must(t, err)
		ownerFile := os.NewFile(uintptr(owner), "owner")
		defer ownerFile.Close()
		if inode(t, ownerFile) != inode(t, userns) {
			t.Errorf("the owner of %s is another user namespace", kind)
		}
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	proctest.Must(t, err)
	for _, line := range []string{"Uid:\t100000\t100000\t100000\t100000", "Gid:\t200000\t200000\t200000\t200000"} {
		if !strings.Contains(string(status), line) {
			t.Errorf("status of the holder lacks %q", line)
		}
	}
	end()
}

func TestHolderReportsErrors(t *testing.T) {
	needNative(t)
	notUser, err := os.Open("/proc/self/ns/uts")
	proctest.Must(t, err)
	defer notUser.Close()
	_, report, end := startHolder(t, notUser, Order{UserNamespace: 3})
	defer end()
	var sysErr *os.SyscallError
	if err := report.Err(); !errors.As(err, &sysErr) || sysErr.Syscall != "setns" || !errors.Is(err, unix.EINVAL) {
		t.Errorf("got %v", err)
	}
}

func TestHolderEndsWithoutOrder(t *testing.T) {
	cmd := start(t, Holder, func(cmd *exec.Cmd) { cmd.Stdin, cmd.Stdout = nil, nil })
	proctest.Must(t, cmd.Wait())
}

func TestUnknownReport(t *testing.T) {
	for _, r := range []Report{{}, {Result: 8, Step: 1}, {Result: -1, Step: 99}} {
		if r.Err() == nil {
			t.Errorf("no error for %+v", r)
		}
	}
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	proctest.Must(t, unix.Fstat(int(f.Fd()), &st))
	return st.Ino
}

func inodeAt(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	proctest.Must(t, err)
	defer f.Close()
	return inode(t, f)
}
