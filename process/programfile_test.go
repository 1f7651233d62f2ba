package process

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

// podWithPrograms makes a pod that needs both programs, and ends it.
func podWithPrograms(t *testing.T, n *node) {
	t.Helper()
	spec := userSpec("")
	pod := n.pod(spec)
	proctest.Must(t, pod.body.(*sandbox).startInit(proctest.Context(t)))
	proctest.Must(t, pod.Kill("", unix.SIGKILL, false))
	exitOf(t, pod.init)
	_, err := pod.Delete(proctest.Context(t), "")
	proctest.Must(t, err)
}

// inOwnPIDNamespace makes cmd start in new PID and mount namespaces.
func inOwnPIDNamespace(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
}

// refuseExecutables forbids executable files in memory, as hardened hosts do, and mounts the directory for temporary
// files with noexec.
func refuseExecutables(t *testing.T) {
	t.Helper()
	proctest.Must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	proctest.Must(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	err := os.WriteFile("/proc/sys/vm/memfd_noexec", []byte("2"), 0)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("the kernel knows no vm.memfd_noexec (Linux 6.3)")
	}
	proctest.Must(t, err)
	if fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_EXEC); err == nil {
		unix.Close(fd)
		t.Fatal("an executable memfd was made")
	}
	temp := t.TempDir()
	proctest.Must(t, unix.Mount("tmpfs", temp, "tmpfs", unix.MS_NOEXEC, ""))
	t.Cleanup(func() { proctest.Must(t, unix.Unmount(temp, unix.MNT_DETACH)) })
	t.Setenv("TMPDIR", temp)
}

func TestUserNamespaceWithoutExecutableMemfds(t *testing.T) {
	if proctest.Again(t, inOwnPIDNamespace) {
		n := newNode(t)
		refuseExecutables(t)
		podWithPrograms(t, n)
	}
}

func TestUserNamespaceWithoutDetachedMounts(t *testing.T) {
	for name, errno := range map[string]unix.Errno{"the kernel has none": unix.ENOSYS, "they are refused": unix.EPERM} {
		t.Run(name, func(t *testing.T) {
			if proctest.Again(t, inOwnPIDNamespace) {
				n := newNode(t)
				refuseExecutables(t)
				proctest.RefuseSyscall(t, unix.SYS_FSOPEN, errno)
				podWithPrograms(t, n)
				left, err := os.ReadDir(os.TempDir())
				if err != nil || len(left) > 0 {
					t.Errorf("left in the directory for temporary files: %v, error %v", left, err)
				}
			}
		})
	}
}

func TestProgramThatCannotBeMadeIsNamed(t *testing.T) {
	if proctest.Again(t, nil) {
		n := newNode(t)
		r := n.request("pod", userSpec(""))
		t.Setenv("TMPDIR", "/no/such/directory")
		proctest.RefuseSyscall(t, unix.SYS_FSOPEN, unix.EPERM)
		_, err := n.Create(proctest.Context(t), r)
		if err == nil || !strings.Contains(err.Error(), "program holder") || !errors.Is(err, unix.EPERM) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	}
}
