package pod

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func noSetup() error { return nil }

// enterList resolves a list, and enters it.
func enterList(thread *Thread, list []specs.LinuxNamespace, setup func() error) error {
	set, err := Resolve(list)
	if err != nil {
		return err
	}
	defer set.Close()
	return thread.Enter(set, setup)
}

func TestThreadTakesNewNamespaces(t *testing.T) {
	proctest.NoLeakedFDs(t)
	thread, tid := startThread()
	list := proctest.NamespaceList(append(proctest.PodKinds, specs.MountNamespace, specs.PIDNamespace)...)
	ran := 0
	err := enterList(thread, list, func() error { ran = unix.Gettid(); return nil })
	proctest.Must(t, err)
	if ran != tid {
		t.Errorf("setup ran in thread %d, want %d", ran, tid)
	}
	inside := make(map[string]uint64)
	for _, ns := range NamespaceTypes {
		inside[ns.Proc] = proctest.Inode(t, proctest.ThreadNS(tid, ns.Proc))
		if inside[ns.Proc] == proctest.Inode(t, proctest.ThreadNS(unix.Gettid(), ns.Proc)) {
			t.Errorf("the thread is in the host's %s namespace", ns.Proc)
		}
	}
	for _, name := range []string{"mnt", "pid", "user", "cgroup"} {
		if proctest.Inode(t, proctest.ThreadNS(tid, name)) != proctest.Inode(t, proctest.ThreadNS(unix.Gettid(), name)) {
			t.Errorf("the thread is not in the host's %s namespace", name)
		}
	}
	proctest.OthersAtHome(t, tid)

	proctest.Must(t, thread.Leave())
	if !proctest.AtHome(t, tid) {
		t.Error("the thread has not come back")
	}
	proctest.Must(t, thread.Leave()) // nothing is left to be done
}

func TestThreadTakesOnlyWhatIsListed(t *testing.T) {
	for _, kind := range proctest.PodKinds {
		thread, tid := startThread()
		err := enterList(thread, proctest.NamespaceList(kind), noSetup)
		proctest.Must(t, err)
		for _, ns := range NamespaceTypes {
			own := proctest.Inode(t, proctest.ThreadNS(tid, ns.Proc)) != proctest.Inode(t, proctest.ThreadNS(unix.Gettid(), ns.Proc))
			if own != (ns.Kind == kind) {
				t.Errorf("%s alone: own %s namespace: %t", kind, ns.Kind, own)
			}
		}
		proctest.Must(t, thread.Leave())
	}
}

func TestThreadTakesExistingNamespaces(t *testing.T) {
	process := proctest.Sleeper(t, &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET})
	for name, path := range map[string]string{
		"bind mount":           proctest.BindNetwork(t),
		"of another process":   fmt.Sprintf("/proc/%d/ns/net", process),
		"of the host, however": "/proc/thread-self/ns/net",
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			thread, tid := startThread()
			list := []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: path}, {Type: specs.IPCNamespace}}
			err := enterList(thread, list, noSetup)
			proctest.Must(t, err)
			if got, want := proctest.Inode(t, proctest.ThreadNS(tid, "net")), proctest.Inode(t, path); got != want {
				t.Errorf("the thread is in namespace %d, want %d", got, want)
			}
			proctest.Must(t, thread.Leave())
			if !proctest.AtHome(t, tid) {
				t.Error("the thread has not come back")
			}
		})
	}
}

// The end of a network namespace takes its devices with it, and the other ends of its pairs.
func TestNamespacesAreFreedByTheKernel(t *testing.T) {
	thread, tid := startThread()
	err := enterList(thread, proctest.NamespaceList(proctest.PodKinds...), noSetup)
	proctest.Must(t, err)
	device := fmt.Sprintf("pt%d", tid)
	run(t, "ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", fmt.Sprint(tid))
	if _, err := net.InterfaceByName(device); err != nil {
		t.Fatal(err)
	}
	proctest.Must(t, thread.Leave())
	proctest.Eventually(t, "the device is gone", func() bool {
		_, err := net.InterfaceByName(device)
		return err != nil
	})
}

func TestErrorsBringTheThreadBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	proctest.Must(t, os.WriteFile(file, nil, 0o600))
	failed := errors.New("setup failed")
	with := func(uts string) []specs.LinuxNamespace {
		return append(proctest.NamespaceList(specs.NetworkNamespace, specs.IPCNamespace),
			specs.LinuxNamespace{Type: specs.UTSNamespace, Path: uts})
	}
	for _, tc := range []struct {
		name  string
		list  []specs.LinuxNamespace
		setup func() error
		want  error
	}{
		{"setup", proctest.NamespaceList(proctest.PodKinds...), func() error { return failed }, failed},
		{"panic in setup", proctest.NamespaceList(proctest.PodKinds...), func() error { panic("on purpose") }, nil},
		{"a path that does not exist", with("/nonexistent"), noSetup, os.ErrNotExist},
		{"a path of another type", with("/proc/thread-self/ns/net"), noSetup, errdefs.ErrInvalidArgument},
		{"a path that is not a namespace", with(file), noSetup, errdefs.ErrInvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			thread, tid := startThread()
			err := enterList(thread, tc.list, tc.setup)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got error %v, want %v", err, tc.want)
			}
			if path := tc.list[2].Path; !strings.Contains(err.Error(), path) {
				t.Errorf("%v does not name %s", err, path)
			}
			if !proctest.AtHome(t, tid) {
				t.Error("the thread has not come back")
			}
		})
	}
}

func TestPanicInSetupIsAnError(t *testing.T) {
	thread, tid := startThread()
	if err := thread.Do(func() error { panic("ouch") }); err == nil || !strings.Contains(err.Error(), "ouch") {
		t.Errorf("got %v", err)
	}
	proctest.Must(t, thread.Do(func() error {
		if unix.Gettid() != tid {
			t.Error("it is another thread")
		}
		return nil
	}))
}

func TestThreadThatCannotLeaveIsNotUsedAgain(t *testing.T) {
	home, err := os.Open("/proc/thread-self/ns/uts")
	proctest.Must(t, err)
	defer home.Close()
	thread, _ := startThread()
	// Bring the thread back, because other tests check the namespaces of all threads.
	defer func() {
		back := make(chan error)
		thread.calls <- func() { back <- unix.Setns(int(home.Fd()), unix.CLONE_NEWUTS) }
		proctest.Must(t, <-back)
	}()
	err = enterList(thread, []specs.LinuxNamespace{{Type: specs.UTSNamespace}}, func() error { return nil })
	proctest.Must(t, err)
	proctest.Must(t, thread.held[0].home.Close())
	if err := thread.Leave(); err == nil {
		t.Fatal("the thread has left, though the way back is closed")
	}
	if err := enterList(thread, nil, func() error { return nil }); err == nil {
		t.Error("the thread was used again")
	}
}

// A child is not forked from the thread that is in a pod.
func TestChildrenStayAtHome(t *testing.T) {
	thread, _ := startThread()
	err := enterList(thread, proctest.NamespaceList(proctest.PodKinds...), noSetup)
	proctest.Must(t, err)
	for _, ns := range NamespaceTypes {
		if got, want := run(t, "stat", "-Lc", "%i", "/proc/self/ns/"+ns.Proc), fmt.Sprint(proctest.Inode(t, proctest.ThreadNS(unix.Gettid(), ns.Proc))); got != want {
			t.Errorf("a child is in %s namespace %s, want %s", ns.Proc, got, want)
		}
	}
	proctest.Must(t, thread.Leave())
}

func TestANamespaceTypeIsListedOnce(t *testing.T) {
	proctest.Must(t, CheckNamespaceList(proctest.NamespaceList(proctest.PodKinds...)))
	err := CheckNamespaceList(append(proctest.NamespaceList(proctest.PodKinds...), specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/x"}))
	proctest.WantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
}

func TestPathsThatLeadToTheHost(t *testing.T) {
	process := proctest.Sleeper(t, &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID})
	link := filepath.Join(t.TempDir(), "link")
	proctest.Must(t, os.Symlink(hostPath(t, "net"), link))
	for path, want := range map[string]bool{
		"":                                      false,
		link:                                    true,
		hostPath(t, "net"):                      true,
		fmt.Sprintf("/proc/%d/ns/net", process): false,
		proctest.BindNetwork(t):                 false,
	} {
		set, err := Resolve([]specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: path}})
		if err != nil || set[0].host != want {
			t.Errorf("%q: got %+v and error %v", path, set, err)
		}
		if own := set.Own()[specs.NetworkNamespace]; own == want {
			t.Errorf("%q: the sandbox's own: %t", path, own)
		}
		set.Close()
	}
	_, err := Resolve([]specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/nonexistent"}})
	if !errors.Is(err, syscall.ENOENT) {
		t.Errorf("got %v, want ENOENT", err)
	}
	_, err = Resolve([]specs.LinuxNamespace{{Type: "colour", Path: "/proc/self/ns/net"}})
	proctest.WantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
}

// The thread enters the namespace that was checked, even if the path has changed since.
func TestResolvedNamespacesDoNotChange(t *testing.T) {
	proctest.NoLeakedFDs(t)
	link := filepath.Join(t.TempDir(), "link")
	checked := proctest.BindNetwork(t)
	proctest.Must(t, os.Symlink(checked, link))
	set, err := Resolve([]specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: link}})
	proctest.Must(t, err)
	defer set.Close()
	proctest.Must(t, os.Remove(link))
	proctest.Must(t, os.Symlink(hostPath(t, "net"), link))
	thread, tid := startThread()
	proctest.Must(t, thread.Enter(set, noSetup))
	if got, want := proctest.Inode(t, proctest.ThreadNS(tid, "net")), proctest.Inode(t, checked); got != want {
		t.Errorf("the thread is in namespace %d, want %d", got, want)
	}
	proctest.Must(t, thread.Leave())
}

// A thread that was made for a pod ends with it, and closes its files.
func TestThreadOfAPodEndsWithIt(t *testing.T) {
	proctest.NoLeakedFDs(t)
	for range 3 {
		thread := StartThread()
		tid, err := thread.ID()
		proctest.Must(t, err)
		proctest.Must(t, enterList(thread, proctest.NamespaceList(proctest.PodKinds...), noSetup))
		if proctest.AtHome(t, tid) {
			t.Error("the thread is in the host's namespaces")
		}
		proctest.OthersAtHome(t, tid)
		proctest.Must(t, thread.Leave())
		proctest.Eventually(t, "the thread has ended", func() bool {
			_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
			return errors.Is(err, os.ErrNotExist)
		})
	}
}
