package process

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Thread is an operating system thread that does nothing but what it is told
// to. A sandbox lives in one: namespaces are a property of threads, not of
// processes, so this one can be in the pod's while all others stay in the
// host's.
type Thread struct {
	calls chan func()
	// lost says why the thread is in namespaces that it could not leave. It is
	// used in the thread only.
	lost error
}

// NewThread returns a thread that works as soon as Serve is called.
func NewThread() *Thread {
	return &Thread{calls: make(chan func())}
}

// Serve makes the calling goroutine's thread the one. It never returns, since
// a thread that has been in other namespaces must not go back to Go's pool. The
// goroutine must be locked to its thread (runtime.LockOSThread); for the
// namespaces to be seen under /proc/<pid>/ns it must be the main thread, which
// only a package's init function or main's can ensure.
func (t *Thread) Serve() {
	runtime.LockOSThread()
	for call := range t.calls {
		call()
	}
}

// id returns the thread's ID, that of the process for the main thread. Under it
// /proc shows the thread's namespaces (proc(5), /proc/tid).
func (t *Thread) id() (tid int, err error) {
	err = t.Do(func() error {
		tid = unix.Gettid()
		return nil
	})
	return tid, err
}

// Do runs f in the thread and returns its error, unless the thread is lost: what
// it would do then would be done to a pod that has ended. A panic in f is returned as an
// error as well, since f is given by a request, which must not end the thread.
func (t *Thread) Do(f func() error) error {
	done := make(chan error, 1)
	t.calls <- func() {
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic in the sandbox's thread: %v", r)
			}
		}()
		if t.lost != nil {
			done <- fmt.Errorf("the sandbox's thread cannot be used any more: %w", t.lost)
			return
		}
		done <- f()
	}
	return <-done
}
