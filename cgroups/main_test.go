package cgroups

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hog is the argument that makes the test binary eat memory until it is killed.
const hog = "-cgroups-test-hog"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == hog {
		eatMemory()
	}
	// The runtime's poller keeps descriptors of its own once it is in use.
	r, w, _ := os.Pipe()
	r.Close()
	w.Close()
	code := m.Run()
	if left := leftovers(); len(left) > 0 {
		fmt.Println("cgroups left behind:", left)
		code = 1
	}
	os.Exit(code)
}

func prefix() string { return fmt.Sprintf("pause-cgroups-test-%d-", os.Getpid()) }

func leftovers() []string {
	var left []string
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(filepath.Join(pattern, prefix()+"*"))
		left = append(left, found...)
	}
	return left
}

// eatMemory waits for a line, so that it can be put into a cgroup first.
func eatMemory() {
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	for {
		chunk, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		for i := 0; i < len(chunk); i += 4096 {
			chunk[i] = 1
		}
	}
}

// start runs a command that is killed and reaped at the end of the test.
func start(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// fakeTree writes files below a new directory and returns it.
func fakeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		isDir := strings.HasSuffix(name, "/")
		if isDir {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if isDir {
			continue
		}
		if err := os.WriteFile(path, []byte(files[name]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// fakeV1 is a layout of one hierarchy per name, in directories of that name below root.
func fakeV1(root string, controllers ...string) *layout {
	l := &layout{proc: filepath.Join(root, "proc")}
	for _, c := range controllers {
		l.v1 = append(l.v1, hierarchy{mountpoint: filepath.Join(root, c), root: "/", controllers: strings.Split(c, ",")})
	}
	return l
}

func fakeV2(root string) *layout {
	return &layout{proc: filepath.Join(root, "proc"), unified: &hierarchy{mountpoint: root, root: "/"}}
}

func content(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
