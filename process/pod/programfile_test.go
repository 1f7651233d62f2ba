package pod

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/program"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestProgramFileIsExecuted(t *testing.T) {
	code, err := program.PodInit()
	if errdefs.IsNotImplemented(err) {
		t.Skip(err)
	}
	proctest.Must(t, err)
	proctest.NoLeakedFDs(t)
	// Programs may be made and started at the same time (ETXTBSY, see writeProgram).
	errs := make(chan error)
	const many = 16
	for range many {
		go func() { errs <- runProgram(code) }()
	}
	for range many {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func runProgram(code []byte) error {
	file, err := programFile("init", code)
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{file}
	// With this flag Go does not fork in its usual way, where no other thread runs until execve(2).
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := cmd.Process.Kill(); err != nil {
		return err
	}
	_ = cmd.Wait() // it was killed
	return nil
}
