package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"golang.org/x/sys/unix"
)

func TestMembersOfAGroupShareAShim(t *testing.T) {
	d := newDaemonSide(t)
	sandbox, app := d.bundle(""), d.bundle("pod")
	first := d.mustStart("pod", sandbox)
	second := d.mustStart("app", app)
	if first.pid != second.pid || first.path != second.path {
		t.Errorf("got processes %d on %s and %d on %s", first.pid, first.path, second.pid, second.path)
	}
	if other := d.mustStart("other", d.bundle("")); other.pid == first.pid {
		t.Error("one of another group shares it too")
	}
	for _, bundle := range []string{sandbox, app} {
		if path, err := readAddress(bundle); err != nil || path != first.path {
			t.Errorf("the bundle has the address %q, error %v", path, err)
		}
	}

	// The end of a member does not take the socket from the others.
	if _, stderr, err := d.call(app, nil, "-namespace", "test", "-id", "app", "-bundle", app, "delete"); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	if connect(t, first.path).pid != first.pid {
		t.Error("the shim is no longer to be found")
	}
}

// containerd may have been restarted with another socket directory.
func TestMemberOfAPodFindsItsShimWhereverItsSocketIs(t *testing.T) {
	const tasks = "io.containerd.runtime.v2.task"
	for _, tc := range []struct {
		name, kind, sandbox, group string
		found                      bool
	}{
		{"a sandbox task", tasks, "pod", "pod", true},
		{"a sandbox of the Sandbox API", sandboxBundles, "pod", "pod", true},
		{"a group that is no pod", tasks, "other", "pod", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			state := t.TempDir()
			d := newDaemonSide(t)
			bundle := func(kind, id, group string) string {
				path := filepath.Join(state, kind, "test", id)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(d.bundle(group), path); err != nil {
					t.Fatal(err)
				}
				return path
			}
			sandbox := d.mustStart(tc.sandbox, bundle(tc.kind, tc.sandbox, ""))
			d.socketDir = filepath.Join(shortDir(t), "moved")
			member := bundle(tasks, "c1", tc.group)
			s := d.mustStart("c1", member)
			if (s.pid == sandbox.pid) != tc.found {
				t.Errorf("the shim is %d, that of the sandbox %d", s.pid, sandbox.pid)
			}
			if path, err := readAddress(member); err != nil || path != s.path {
				t.Errorf("the bundle says %s, error %v", path, err)
			}
			if tc.found && exists(t, d.socketDir) {
				t.Error("there is something in the new directory")
			}
		})
	}
}

// The first would have the address of the second, which is in another namespace.
func TestGroupCannotBeOfAnotherNamespace(t *testing.T) {
	d := newDaemonSide(t)
	victim := d.mustStart("pod", d.bundle(""))
	result, err := d.start("c1", d.bundle("../test/pod"), nil)
	if err == nil || !strings.Contains(err.Error(), `"../test/pod"`) {
		t.Errorf("got %v and error %v, want one that names the group; the shim of the pod is %s", result, err, victim.path)
	}
}

func TestMemberOfAPodWhoseShimIsDeadGetsANewShim(t *testing.T) {
	d := newDaemonSide(t)
	sandbox, member := d.bundle(""), d.bundle("pod")
	pod := filepath.Join(filepath.Dir(member), "pod")
	if err := os.Rename(sandbox, pod); err != nil {
		t.Fatal(err)
	}
	s := d.mustStart("pod", pod)
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wait()
	if again := d.mustStart("c1", member); again.pid == s.pid {
		t.Error("a dead shim was found")
	}
}

func TestStartsOfAGroupAtTheSameTimeGiveOneShim(t *testing.T) {
	d := newDaemonSide(t)
	const starts = 6
	bundles := make([]string, starts)
	for i := range bundles {
		bundles[i] = d.bundle("pod")
	}
	if err := os.Mkdir(d.socketDir, 0o700); err != nil {
		t.Fatal(err)
	}
	makeStale(t, strings.TrimPrefix(socketAddress(d.socketDir, "/run/test/containerd.sock", "test", "pod"), unixScheme))

	results := make([]*bootapi.BootstrapResult, starts)
	var wg sync.WaitGroup
	for i, bundle := range bundles {
		wg.Go(func() {
			var err error
			if results[i], err = d.start(fmt.Sprintf("c%d", i), bundle, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	pids := make(map[int]bool)
	for _, r := range results {
		pids[connect(t, strings.TrimPrefix(r.Address, unixScheme)).pid] = true
	}
	if len(pids) != 1 {
		t.Errorf("processes %v serve the group", pids)
	}
}
