package pod

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

func podFiles(t *testing.T) *Files {
	t.Helper()
	dir := t.TempDir()
	f := &Files{
		Dir: filepath.Join(dir, "root", "pod"), ShmDir: filepath.Join(dir, "state", "pod", "shm"),
		Hostname: "name", DNS: &DNS{Servers: []string{"192.0.2.1"}},
	}
	t.Cleanup(func() { proctest.Must(t, f.Remove()) })
	return f
}

// wantFiles fails the test if a file is not as Make has made it, or if /dev/shm is not mounted.
func (f *Files) wantFiles(t *testing.T) {
	t.Helper()
	hosts, err := os.ReadFile("/etc/hosts")
	proctest.Must(t, err)
	for name, want := range map[string]string{"hostname": "name\n", "hosts": string(hosts), "resolv.conf": "nameserver 192.0.2.1\n"} {
		got, err := os.ReadFile(filepath.Join(f.Dir, name))
		if err != nil || string(got) != want {
			t.Errorf("%s is %q, error %v, want %q", name, got, err, want)
		}
	}
	if !proctest.Mounted(t, f.ShmDir) {
		t.Error("nothing is mounted for /dev/shm")
	}
}

// wantGone fails the test if anything is left.
func (f *Files) wantGone(t *testing.T) {
	t.Helper()
	for _, dir := range f.dirs() {
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
	if proctest.Mounted(t, f.ShmDir) {
		t.Errorf("%s is mounted", f.ShmDir)
	}
}

// Some of the files may be removed, and others not.
func TestPodFilesAreRestored(t *testing.T) {
	removals := []struct {
		name   string
		remove func(t *testing.T, f *Files)
	}{
		{"mount", func(t *testing.T, f *Files) { proctest.Must(t, unix.Unmount(f.ShmDir, unix.MNT_DETACH)) }},
		{"shm", func(t *testing.T, f *Files) {
			_ = unix.Unmount(f.ShmDir, unix.MNT_DETACH)
			proctest.Must(t, os.Remove(f.ShmDir))
		}},
		{"state directory", func(t *testing.T, f *Files) {
			_ = unix.Unmount(f.ShmDir, unix.MNT_DETACH)
			proctest.Must(t, os.RemoveAll(filepath.Dir(f.ShmDir)))
		}},
		{"hostname", func(t *testing.T, f *Files) { proctest.Must(t, os.Remove(filepath.Join(f.Dir, "hostname"))) }},
		{"hosts", func(t *testing.T, f *Files) { proctest.Must(t, os.Remove(filepath.Join(f.Dir, "hosts"))) }},
		{"resolv.conf", func(t *testing.T, f *Files) { proctest.Must(t, os.Remove(filepath.Join(f.Dir, "resolv.conf"))) }},
		{"root directory", func(t *testing.T, f *Files) { proctest.Must(t, os.RemoveAll(f.Dir)) }},
		{"directory of all", func(t *testing.T, f *Files) { proctest.Must(t, os.RemoveAll(filepath.Dir(f.Dir))) }},
	}
	for mask := range 1 << len(removals) {
		name := "without"
		f := podFiles(t)
		proctest.Must(t, f.Make())
		f.wantFiles(t)
		inShm := filepath.Join(f.ShmDir, "file")
		proctest.Must(t, os.WriteFile(inShm, nil, 0o600))
		for i, r := range removals {
			if mask&(1<<i) != 0 {
				name += ", " + r.name
				r.remove(t, f)
			}
		}
		if err := f.Restore(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.wantFiles(t)
		if _, err := os.Stat(inShm); err != nil {
			t.Errorf("%s: /dev/shm has lost its files: %v", name, err)
		}
		proctest.Must(t, f.Remove())
		f.wantGone(t)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

func TestPodFilesThatAreThereAreLeftAlone(t *testing.T) {
	f := podFiles(t)
	proctest.Must(t, f.Make())
	path := filepath.Join(f.Dir, "hosts")
	proctest.Must(t, os.WriteFile(path, []byte("changed"), 0o600))
	proctest.Must(t, os.Remove(filepath.Join(f.Dir, "hostname")))
	proctest.Must(t, f.Restore())
	if text, err := os.ReadFile(path); err != nil || string(text) != "changed" {
		t.Errorf("got %q and error %v", text, err)
	}
}

// Nothing may be written to, or mounted on, the target of a link.
func TestPodFilesAreNotRestoredThroughLinks(t *testing.T) {
	f := podFiles(t)
	proctest.Must(t, f.Make())
	elsewhere := t.TempDir()
	for _, path := range []string{f.Dir, filepath.Dir(f.ShmDir), f.ShmDir} {
		proctest.Must(t, f.Restore())
		_ = unix.Unmount(f.ShmDir, unix.MNT_DETACH)
		proctest.Must(t, os.RemoveAll(path))
		proctest.Must(t, os.Symlink(elsewhere, path))
		if err := f.Restore(); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("%s: got %v", path, err)
		}
		proctest.Must(t, os.Remove(path))
	}
	if left, err := os.ReadDir(elsewhere); err != nil || len(left) > 0 {
		t.Errorf("got %v and error %v", left, err)
	}
}

// inOwnMountNamespace has a process start in a new mount namespace.
func inOwnMountNamespace(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
}

func TestPodFilesWithoutOpenTree(t *testing.T) {
	for name, tc := range map[string]struct {
		number uint32
		errno  unix.Errno
	}{
		"open_tree is refused":  {unix.SYS_OPEN_TREE, unix.EPERM},
		"no open_tree":          {unix.SYS_OPEN_TREE, unix.ENOSYS},
		"move_mount is refused": {unix.SYS_MOVE_MOUNT, unix.EPERM},
		"no move_mount":         {unix.SYS_MOVE_MOUNT, unix.ENOSYS},
	} {
		t.Run(name, func(t *testing.T) {
			if !proctest.Again(t, inOwnMountNamespace) {
				return
			}
			proctest.Must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
			proctest.NoLeakedFDs(t)
			proctest.RefuseSyscall(t, tc.number, tc.errno)
			f := podFiles(t)
			for range 2 {
				proctest.Must(t, f.Make())
				f.wantFiles(t)
				for range 2 {
					proctest.Must(t, unix.Unmount(f.ShmDir, unix.MNT_DETACH))
					proctest.Must(t, removeDirs(f.dirs()))
					proctest.Must(t, f.Restore())
					f.wantFiles(t)
				}
				proctest.Must(t, f.Remove())
				f.wantGone(t)
			}
		})
	}
}

func TestPodFilesThatCannotBeMadeLeaveNothing(t *testing.T) {
	if proctest.Again(t, nil) {
		proctest.NoLeakedFDs(t)
		proctest.RefuseSyscall(t, unix.SYS_MOUNT, unix.EPERM)
		f := podFiles(t)
		if err := f.Make(); !errors.Is(err, unix.EPERM) {
			t.Errorf("got %v", err)
		}
		f.wantGone(t)
	}
}
