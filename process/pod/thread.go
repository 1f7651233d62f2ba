package pod

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Thread is an operating system thread that holds a pod's namespaces. Namespaces belong to
// threads, not to processes: this thread is in the pod's, and all others stay in the host's.
// It runs only the functions that are passed to Do.
//
// There are two kinds. The main thread, whose namespaces are those in /proc/<pid>/ns, holds
// one pod after another. Another thread is made for one pod and ends with it; its namespaces
// are those in /proc/<tid>/ns.
type Thread struct {
	calls chan func()
	main  bool
	// held are the pod's namespaces that the thread is in. Used only in the thread.
	held []heldNamespace
	// lost is why the thread could not leave its pod's namespaces. Used only in the thread.
	lost error
}

// heldNamespace is a namespace of a pod that the thread is in. home is the host's namespace;
// the open file keeps the way back.
type heldNamespace struct {
	kind specs.LinuxNamespaceType
	flag int
	home *os.File
}

// NewMainThread returns the main thread, which works once that has called Serve.
func NewMainThread() *Thread { return &Thread{calls: make(chan func()), main: true} }

// StartThread starts a thread for one pod.
func StartThread() *Thread {
	t := &Thread{calls: make(chan func())}
	go t.Serve()
	return t
}

// Serve turns the calling goroutine's operating system thread into t. For the main thread,
// the caller must be a goroutine locked to it (runtime.LockOSThread) since an init function
// or main, and Serve never returns. For another thread, Serve returns after Leave; the
// goroutine must then return at once, and its thread ends.
func (t *Thread) Serve() {
	runtime.LockOSThread() // never undone: a thread that was in a pod must not go back to Go's pool
	for call := range t.calls {
		call()
	}
}

// ID returns the thread's ID, which is the process's for the main thread. /proc/<tid>/ns shows
// the thread's namespaces (proc(5), /proc/tid).
func (t *Thread) ID() (tid int, err error) {
	err = t.Do(func() error {
		tid = unix.Gettid()
		return nil
	})
	return tid, err
}

// Do runs f in the thread and returns its error. It turns a panic in f into an error, because
// a client's request must not end the thread. Do does not run f if the thread could not leave
// its last pod: f would act on that pod, which has ended.
func (t *Thread) Do(f func() error) error {
	done := make(chan error, 1)
	t.calls <- func() {
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic in the sandbox's thread: %v", r)
			}
		}()
		if t.lost != nil {
			done <- fmt.Errorf("cannot use the sandbox's thread any more: %w", t.lost)
			return
		}
		done <- f()
	}
	return <-done
}

// Enter puts the thread into the namespaces of a set, of which those without a file are new,
// and calls setup in the thread. After an error the thread is back in the host's namespaces.
func (t *Thread) Enter(set Namespaces, setup func() error) error {
	return t.Do(func() (err error) {
		if len(t.held) > 0 {
			return fmt.Errorf("cannot hold a second pod in a thread: %w", errdefs.ErrFailedPrecondition)
		}
		entered := false
		defer func() { // also after a panic in setup
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
			return fmt.Errorf("cannot open the host's %s namespace: %w", kind.Kind, err)
		}
		t.held = append(t.held, heldNamespace{kind.Kind, kind.flag, home})
		if err := ns.enter(kind.flag); err != nil {
			return fmt.Errorf("cannot enter the pod's %s namespace: %w", kind.Kind, err)
		}
	}
	return nil
}

// Files opens the pod's namespaces that the thread is in. The caller has to close them.
func (t *Thread) Files() (files map[specs.LinuxNamespaceType]*os.File, err error) {
	files = make(map[specs.LinuxNamespaceType]*os.File)
	err = t.Do(func() error {
		for _, kind := range NamespaceTypes {
			if !slices.ContainsFunc(t.held, func(h heldNamespace) bool { return h.kind == kind.Kind }) {
				continue
			}
			f, err := os.Open("/proc/thread-self/ns/" + kind.Proc)
			if err != nil {
				return fmt.Errorf("cannot open the pod's %s namespace: %w", kind.Kind, err)
			}
			files[kind.Kind] = f
		}
		return nil
	})
	if err != nil {
		for _, f := range files {
			f.Close()
		}
	}
	return files, err
}

// Return puts the thread into namespaces in which a thread of the program before this one
// was. They are the numbers of open files, which Return closes.
func (t *Thread) Return(numbers map[specs.LinuxNamespaceType]int) (ids map[specs.LinuxNamespaceType]NSID, err error) {
	var set Namespaces
	defer func() { set.Close() }()
	for kind, fd := range numbers {
		f, err := TakeNamespace(fd, kind)
		if err != nil {
			return nil, err
		}
		set = append(set, namespace{kind: kind, file: f})
	}
	err = t.Enter(set, func() (err error) {
		ids, err = ThreadNamespaces()
		return err
	})
	return ids, err
}

// Leave takes the thread out of the pod's namespaces. The kernel then frees those that no
// container or bind mount holds. A thread that was made for the pod ends and must not be
// used again; its end frees the namespaces even if it could not leave them.
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

// leave takes the thread back to the host's namespace. With a rootless containerd, that may
// belong to another user namespace than the shim's, and there is no way back (setns(2),
// EPERM). Then the thread enters a new namespace, so that the kernel still frees the pod's.
func (h *heldNamespace) leave() error {
	defer h.home.Close()
	err := unix.Setns(int(h.home.Fd()), h.flag)
	if errors.Is(err, unix.EPERM) {
		return os.NewSyscallError("unshare", unix.Unshare(h.flag))
	}
	return os.NewSyscallError("setns", err)
}
