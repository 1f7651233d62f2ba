package pod

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Thread is an operating system thread in which a pod lives: namespaces are a
// property of threads, not of processes, so this one can be in the pod's while all
// others stay in the host's. It does nothing but what it is told to.
//
// There are two kinds. The main thread, whose namespaces are those under
// /proc/<pid>/ns, serves one pod after the other. Others are made for a pod, and
// end with it; their namespaces are under /proc/<tid>/ns.
type Thread struct {
	calls chan func()
	main  bool
	// held are the pod's namespaces that the thread is in. It is used in the thread only.
	held []heldNamespace
	// lost says why the thread is in namespaces that it could not leave. It is
	// used in the thread only.
	lost error
}

// heldNamespace is a namespace that the thread is in. home is the open file of the
// one that it came from, kept open so that the way back cannot be lost.
type heldNamespace struct {
	kind specs.LinuxNamespaceType
	flag int
	home *os.File
}

// NewMainThread returns a thread that works as soon as the main thread calls Serve.
func NewMainThread() *Thread { return &Thread{calls: make(chan func()), main: true} }

// StartThread starts a thread for one pod.
func StartThread() *Thread {
	t := &Thread{calls: make(chan func())}
	go t.Serve()
	return t
}

// Serve makes the calling goroutine's thread the one. For the main thread it must be
// called by a goroutine that has been locked to it (runtime.LockOSThread) since an
// init function or main; there it never returns. Otherwise it returns when the thread
// has left its pod, and the thread ends with the goroutine, which must return at once.
func (t *Thread) Serve() {
	runtime.LockOSThread() // never undone: a thread that has been elsewhere must not go back to Go's pool
	for call := range t.calls {
		call()
	}
}

// ID returns the thread's ID, that of the process for the main thread. Under it
// /proc shows the thread's namespaces (proc(5), /proc/tid).
func (t *Thread) ID() (tid int, err error) {
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

// Enter puts the thread into the namespaces of a set: into an existing one if it has
// a file, else into a new one. Then it calls setup in the thread. After an error the
// thread is where it was before.
func (t *Thread) Enter(set Namespaces, setup func() error) error {
	return t.Do(func() (err error) {
		if len(t.held) > 0 {
			return fmt.Errorf("the thread holds a pod already: %w", errdefs.ErrFailedPrecondition)
		}
		entered := false
		defer func() { // A panic in setup is undone, too.
			if !entered {
				err = errors.Join(err, t.goHome())
			}
		}()
		if err := t.take(set); err != nil {
			return err
		}
		if err := setup(); err != nil {
			return err
		}
		entered = true
		return nil
	})
}

// take runs in the thread.
func (t *Thread) take(set Namespaces) error {
	for _, kind := range NamespaceTypes {
		ns := set.find(kind.Kind)
		if ns == nil {
			continue
		}
		home, err := os.Open("/proc/thread-self/ns/" + kind.Proc)
		if err != nil {
			return fmt.Errorf("cannot remember the host's %s namespace: %w", kind.Kind, err)
		}
		t.held = append(t.held, heldNamespace{kind.Kind, kind.flag, home})
		if err := ns.enter(kind.flag); err != nil {
			return fmt.Errorf("cannot enter the pod's %s namespace: %w", kind.Kind, err)
		}
	}
	return nil
}

// Leave takes the thread out of the pod's namespaces, so that the kernel frees them
// unless containers or bind mounts still hold them. A thread that was made for the
// pod ends, and must not be used again; so it does not matter if it finds no way home.
func (t *Thread) Leave() error {
	err := t.Do(t.goHome)
	if t.main {
		return err
	}
	close(t.calls)
	return nil
}

// goHome runs in the thread.
func (t *Thread) goHome() error {
	var errs []error
	for _, h := range t.held {
		if err := h.leave(); err != nil {
			errs = append(errs, fmt.Errorf("cannot leave the pod's %s namespace: %w", h.kind, err))
		}
	}
	t.held = nil
	t.lost = errors.Join(errs...)
	return t.lost
}

// leave leaves a namespace for the one that the thread came from. Where that belongs to
// another user namespace than the shim's, as with a rootless containerd, there is no way
// back (setns(2), EPERM); then a new one does, so that the pod's is freed all the same.
func (h *heldNamespace) leave() error {
	defer h.home.Close()
	err := unix.Setns(int(h.home.Fd()), h.flag)
	if errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("unshare", unix.Unshare(h.flag))
	}
	return os.NewSyscallError("setns", err)
}
