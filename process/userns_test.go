package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Host IDs of the root of user namespaces.
const rootUID, rootGID = 100000, 200000

// userSpec returns the spec of a pod with a user namespace, a new one if the path is empty.
func userSpec(path string) *specs.Spec {
	s := sandboxSpec()
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: path})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: rootUID, Size: 65536}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: rootGID, Size: 65536}}
	return s
}

// ownerOf returns the user namespace that owns a namespace.
func ownerOf(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	proctest.Must(t, err)
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	proctest.Must(t, err)
	defer unix.Close(fd)
	return proctest.Inode(t, fmt.Sprintf("/proc/self/fd/%d", fd))
}

// sleeperInUserNamespace starts a process in a new user namespace, and in a network namespace
// that belongs to it.
func sleeperInUserNamespace(t *testing.T) (pid int) {
	t.Helper()
	return sleeper(t, &unix.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: rootUID, Size: 65536}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: rootGID, Size: 65536}},
	})
}

func TestNamespacesBelongToTheUserNamespaceOfThePod(t *testing.T) {
	process := sleeperInUserNamespace(t)
	userns, netns := fmt.Sprintf("/proc/%d/ns/user", process), fmt.Sprintf("/proc/%d/ns/net", process)
	byPath := userSpec(userns)
	byNetwork := userSpec("")
	onHostNetwork := userSpec("")
	for i, ns := range byPath.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			byPath.Linux.Namespaces[i].Path = netns
			byNetwork.Linux.Namespaces[i].Path = netns
		}
	}
	onHostNetwork.Linux.Namespaces = without(onHostNetwork.Linux.Namespaces, specs.NetworkNamespace)
	for name, tc := range map[string]struct {
		spec  *specs.Spec
		given bool // the user namespace
		kinds []string
	}{
		"new":                            {userSpec(""), false, []string{"net", "ipc", "uts"}},
		"given":                          {byPath, true, []string{"net", "ipc", "uts"}},
		"that of the network namespace":  {byNetwork, true, []string{"net", "ipc", "uts"}},
		"with the network of the host's": {onHostNetwork, false, []string{"ipc", "uts"}},
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			before := children(t)
			pod := n.pod(tc.spec)
			noMoreChildren(t, before)
			held := pod.body.(*sandbox).userns.ID.Inode
			if tc.given != (held == proctest.Inode(t, userns)) {
				t.Errorf("the user namespace is the given one: %t", !tc.given)
			}
			for _, kind := range tc.kinds {
				if owner := ownerOf(t, proctest.ThreadNS(podTID, kind)); owner != held {
					t.Errorf("the owner of %s is %d, not the pod's %d", kind, owner, held)
				}
			}
			sameUser(t)
		})
	}
}

// children returns the pids of this process's children, including zombies.
func children(t *testing.T) (pids []string) {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/status")
	proctest.Must(t, err)
	for _, name := range names {
		status, err := os.ReadFile(name)
		if err == nil && strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid())) {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}

// noMoreChildren fails the test if there are others than before.
func noMoreChildren(t *testing.T, before []string) {
	t.Helper()
	for _, pid := range children(t) {
		if !slices.Contains(before, pid) {
			t.Errorf("process %s is left", pid)
		}
	}
}

// sameUser fails the test if a thread no longer belongs to root.
func sameUser(t *testing.T) {
	t.Helper()
	names, err := filepath.Glob("/proc/self/task/*/status")
	proctest.Must(t, err)
	for _, name := range names {
		status, err := os.ReadFile(name)
		if err == nil && !strings.Contains(string(status), "Uid:\t0\t0\t0\t0\n") {
			t.Errorf("%s belongs to another user", name)
		}
	}
}

func TestMembersGetTheUserNamespaceOfThePod(t *testing.T) {
	n := newNode(t)
	pod := n.pod(userSpec(""))
	held := pod.body.(*sandbox).userns.ID.Inode
	for _, path := range []string{"", fmt.Sprintf("/proc/%d/ns/user", podTID), pod.body.(*sandbox).userns.Path()} {
		spec := member(t, specs.UserNamespace, path)
		spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 5, Size: 5}}
		r := n.request("member", spec)
		task := n.make(r)
		if got := proctest.Inode(t, namespaceIn(t, r.Bundle, specs.UserNamespace)); got != held {
			t.Errorf("path %q leads to %d, not the pod's %d", path, got, held)
		}
		got, err := oci.ReadSpec(r.Bundle)
		proctest.Must(t, err)
		if path == "" && got.Linux.UIDMappings[0].HostID != rootUID {
			t.Errorf("the mappings are %+v", got.Linux.UIDMappings)
		}
		_, err = task.Delete(proctest.Context(t), "")
		proctest.Must(t, err)
	}
	other := fmt.Sprintf("/proc/%d/ns/user", sleeperInUserNamespace(t))
	_, err := n.Create(proctest.Context(t), n.request("member", member(t, specs.UserNamespace, other)))
	proctest.WantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
}

func TestSysctlsInAUserNamespace(t *testing.T) {
	values := map[string]string{"kernel.msgmax": "9001", "kernel.sem": "250\t32001\t100\t128", "fs.mqueue.msg_max": "11", "net.core.somaxconn": "321", "net.ipv4.ping_group_range": "7 1007"}
	read := func(key string) string {
		data, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(data))
	}
	before := make(map[string]string)
	for key := range values {
		before[key] = read(key)
	}
	n := newNode(t)
	spec := userSpec("")
	spec.Linux.Sysctl = values
	n.pod(spec)
	proctest.Must(t, podThread.Do(func() error {
		for key, want := range values {
			if key == "net.ipv4.ping_group_range" { // read in the host's user namespace
				want = fmt.Sprintf("%d\t%d", rootGID+7, rootGID+1007)
			}
			if got := read(key); got != want {
				t.Errorf("%s is %q, want %q", key, got, want)
			}
		}
		return nil
	}))
	for key, want := range before {
		if got := read(key); got != want {
			t.Errorf("%s of the host is %q, was %q", key, got, want)
		}
	}
	sameUser(t)
}

func TestUserNamespacesThatCannotBe(t *testing.T) {
	unmapped := userSpec("")
	unmapped.Linux.GIDMappings = nil
	rootless := userSpec("")
	rootless.Linux.UIDMappings[0].ContainerID = 1
	unknownGroup := userSpec("")
	unknownGroup.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": "0 2147483647"}
	for name, spec := range map[string]*specs.Spec{
		"unknown group": unknownGroup,
		"no mappings":   unmapped,
		"no root":       rootless,
		"no such file":  userSpec("/no/such/namespace"),
		"not one":       userSpec("/proc/self/ns/time"),
		"unmapped":      userSpec(fmt.Sprintf("/proc/%d/ns/user", sleeper(t, &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}))),
		"not even a ns": userSpec("/dev/null"),
		"bad ID mapping": func() *specs.Spec {
			s := userSpec("")
			s.Linux.UIDMappings = append(s.Linux.UIDMappings, s.Linux.UIDMappings...)
			return s
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			n := newNode(t)
			before := children(t)
			task, err := n.Create(proctest.Context(t), n.request("pod", spec))
			if err == nil {
				n.adopt(task)
				t.Error("no error")
			}
			if !proctest.AtHome(t, podTID) {
				t.Error("the thread is not at home")
			}
			noMoreChildren(t, before)
			n.pod(sandboxSpec()) // the place is free
		})
	}
}
