package shim

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// shortDir returns a new directory in which the path of a shim's socket stays within
// the limit. In t.TempDir it may exceed the limit.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// makeStale leaves a socket on which nobody listens.
func makeStale(t *testing.T, path string) {
	t.Helper()
	l, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if !exists(t, path) {
		t.Fatal("closing the listener removed its socket")
	}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestSocketAddressIsThatOfTheStockShim(t *testing.T) {
	for _, tc := range []struct{ dir, grpc, namespace, group, want string }{
		// Results of SocketAddress of containerd 2.2.0 and of CreateSocketAddress of 2.4.2.
		{
			"/run/containerd/s", "/run/containerd/containerd.sock", "k8s.io", "4f1a",
			"unix:///run/containerd/s/a450ce02f213d51dce6f95a85a1b1434ba5c8e1f82fc5ccd48f75bc09d5936e0",
		},
		{
			"/run/user/1000/containerd/s", "/run/containerd/containerd.sock", "k8s.io", "4f1a",
			"unix:///run/user/1000/containerd/s/a450ce02f213d51dce6f95a85a1b1434ba5c8e1f82fc5ccd48f75bc09d5936e0",
		},
		{
			"/run/containerd/s", "unix:///run/k3s/containerd/containerd.sock", "default", "../up",
			"unix:///run/containerd/s/ec0f6aa1e5ae9c0bbe03366a2087604cff4436c575d3aded00504d3c0cd47482",
		},
	} {
		if got := socketAddress(tc.dir, tc.grpc, tc.namespace, tc.group); got != tc.want {
			t.Errorf("%s/%s: got %s\nwant %s", tc.namespace, tc.group, got, tc.want)
		}
	}
}

func TestClaimedSocketIsTheOwnersOnly(t *testing.T) {
	dir := filepath.Join(shortDir(t), "run", "s")
	path := filepath.Join(dir, "socket")
	l, err := claimSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, path: fs.ModeSocket | 0o600} {
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("mode of %s is %v, want %v", path, info.Mode(), want)
		}
	}
}

func TestClaimOfASocketThatIsServed(t *testing.T) {
	path := filepath.Join(shortDir(t), "socket")
	first, err := claimSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	// The process that has claimed the socket has not called accept yet.
	second, err := claimSocket(path)
	if err != nil || second != nil {
		t.Errorf("got listener %v and error %v, want neither", second, err)
	}
	if !exists(t, path) {
		t.Error("the socket is gone")
	}
}

func TestClaimOfASocketWithAFullBacklog(t *testing.T) {
	path := filepath.Join(shortDir(t), "socket")
	l, err := claimSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for {
		conn, err := net.Dial("unix", path)
		if err != nil {
			break
		}
		defer conn.Close()
	}
	second, err := claimSocket(path)
	if err != nil || second != nil {
		t.Errorf("got listener %v and error %v, want neither", second, err)
	}
}

func TestClaimsOfAStaleSocketAtTheSameTime(t *testing.T) {
	path := filepath.Join(shortDir(t), "socket")
	for range 50 {
		makeStale(t, path)
		const claims = 4
		listeners := make(chan *os.File, claims)
		var wg sync.WaitGroup
		for range claims {
			wg.Go(func() {
				l, err := claimSocket(path)
				if err != nil {
					t.Error(err)
				}
				if l != nil {
					listeners <- l
				}
			})
		}
		wg.Wait()
		close(listeners)
		if len(listeners) != 1 {
			t.Fatalf("%d claims won, want 1", len(listeners))
		}
		for l := range listeners {
			conn, err := net.Dial("unix", path)
			if err != nil {
				t.Fatalf("the winner's socket was removed: %v", err)
			}
			conn.Close()
			l.Close()
		}
		if err := removeStaleSocket(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClaimsThatFail(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"path too long":        filepath.Join(dir, strings.Repeat("x", maxSocketPath-len(dir))),
		"directory is a file":  filepath.Join(file, "socket"),
		"no socket is in use ": file,
	} {
		t.Run(name, func(t *testing.T) {
			l, err := claimSocket(path)
			if err == nil {
				t.Errorf("got listener %v and no error", l)
			} else if !strings.Contains(err.Error(), file) && !strings.Contains(err.Error(), path) {
				t.Errorf("error %q names no path", err)
			}
		})
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "precious" {
		t.Errorf("the file is %q, error %v", text, err)
	}
}

func TestTheLongestPathIsAllowed(t *testing.T) {
	dir := shortDir(t)
	l, err := claimSocket(filepath.Join(dir, strings.Repeat("x", maxSocketPath-len(dir)-1)))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestOnlyStaleSocketsAreRemoved(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "socket")
	l, err := claimSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := removeStaleSocket(path); err != nil || !exists(t, path) {
		t.Errorf("a served socket exists: %t, error %v", exists(t, path), err)
	}
	l.Close()
	for range 2 { // The second time there is none.
		if err := removeStaleSocket(path); err != nil || exists(t, path) {
			t.Errorf("a stale socket exists: %t, error %v", exists(t, path), err)
		}
	}
	if err := removeStaleSocket(filepath.Join(dir, "gone", "socket")); err != nil {
		t.Errorf("without the directory: %v", err)
	}
}

func TestRecordedAddress(t *testing.T) {
	bundle := t.TempDir()
	if path, err := readAddress(bundle); err != nil || path != "" {
		t.Errorf("without a record got %q and error %v", path, err)
	}
	if err := writeAddress(bundle, "unix:///run/s/x"); err != nil {
		t.Fatal(err)
	}
	// containerd up to 1.7 dials the very bytes of the file.
	if text, err := os.ReadFile(filepath.Join(bundle, "address")); err != nil || string(text) != "unix:///run/s/x" {
		t.Errorf("recorded %q, error %v", text, err)
	}
	if path, err := readAddress(bundle); err != nil || path != "/run/s/x" {
		t.Errorf("got %q and error %v", path, err)
	}
	for _, bad := range []string{"", "/run/s/x", "unix://x", "vsock://3:1024"} {
		if err := writeAddress(bundle, bad); err != nil {
			t.Fatal(err)
		}
		if path, err := readAddress(bundle); err == nil {
			t.Errorf("%q gives %q and no error", bad, path)
		}
	}
}
