package oci

import (
	"runtime"
	"sync"
	"syscall"
)

// Starter starts OCI runtimes, all in one thread, which never ends.
//
// An OCI runtime must not outlive the shim, so the kernel kills it when its parent ends. To the
// kernel, the parent is the thread that has forked (prctl(2), PR_SET_PDEATHSIG), and threads of
// a shim do end: that of a sandbox in a shared shim, and those in which a root file system with
// many layers is mounted. Any goroutine may have forked in such a thread before, when it was
// still one of Go's pool; the runtime that it started would be killed at the end of another pod.
type Starter struct {
	begin sync.Once
	calls chan func()
}

// NewStarter returns a starter, whose thread begins with its first use.
func NewStarter() *Starter { return &Starter{calls: make(chan func())} }

// forkExec is [syscall.ForkExec] in the starter's thread, or in any if s is nil.
func (s *Starter) forkExec(path string, args []string, attr *syscall.ProcAttr) (pid int, err error) {
	if s == nil {
		return syscall.ForkExec(path, args, attr)
	}
	s.begin.Do(func() { go s.serve() })
	done := make(chan struct{})
	s.calls <- func() {
		pid, err = syscall.ForkExec(path, args, attr)
		close(done)
	}
	<-done
	return pid, err
}

func (s *Starter) serve() {
	runtime.LockOSThread()
	for call := range s.calls {
		call()
	}
}
