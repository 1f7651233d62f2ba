package installer

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/cmd/containerd-shim-pause-install/node"
)

// restartScript restarts the host's containerd, as systemd would. What k3s does before,
// it does if the host is one of k3s.
const restartScript = `#!/bin/sh
if [ -e /run/containerd.pid ]; then
	pid=$(cat /run/containerd.pid)
	kill $pid
	while [ -e /proc/$pid/exe ]; do sleep 0.02; done
fi
echo restart >> /run/restarts
[ ! -e /run/before ] || sh /run/before || exit 1
config=$(cat /run/containerd.config)
[ ! -e $config ] || config="--config $config"
[ -n "${config##/*}" ] || config=
$(cat /run/containerd.path) $config >>/run/containerd.log 2>&1 &
echo $! > /run/containerd.pid
`

// host is a directory that is a host.
type host struct {
	*testing.T
	root       string
	containerd string // path on the host
	config     string
}

// newHost makes a host with a release of containerd, which does not run yet, at a path of it.
func newHost(t *testing.T, release, containerd, config string) *host {
	t.Helper()
	root, err := os.MkdirTemp("", "host") // short enough for the path of a socket
	if err != nil {
		t.Fatal(err)
	}
	h := &host{T: t, root: root, containerd: containerd, config: config}
	t.Cleanup(func() { h.must(os.RemoveAll(root)) })
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "run", "tmp", "usr/local/bin", "var/lib", "var/tmp"} {
		h.must(os.MkdirAll(h.path("/"+dir), 0o755))
	}
	// Each is a file system of its own, in which nothing of the machine can be removed.
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/dev"}, {"tmpfs", "/run"}} {
		h.must(unix.Mount(m.kind, h.path(m.dir), m.kind, 0, ""))
		t.Cleanup(func() { h.must(unix.Unmount(h.path(m.dir), unix.MNT_DETACH)) })
	}
	h.must(unix.Mknod(h.path("/dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	h.must(unix.Mknod(h.path("/dev/urandom"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 9))))
	busybox, err := exec.LookPath("busybox")
	h.must(err)
	h.copyProgram(busybox, "/bin/busybox")
	for _, name := range []string{"sh", "cat", "sleep", "sed", "grep"} {
		h.must(os.Symlink("busybox", h.path("/bin/"+name)))
	}
	from := program(t, "containerd")
	if release != newest {
		from = program(t, filepath.Join("containerd-"+release, "containerd"))
	}
	h.copyProgram(from, containerd)
	h.copyLibraries(from)
	h.write("/bin/restart", restartScript, 0o755)
	h.write("/run/containerd.path", containerd, 0o644)
	h.write("/run/containerd.config", config, 0o644)
	h.write("/run/containerd.log", "", 0o644)
	h.copyProgram(program(t, "containerd-shim-pause-v2"), "/run/shim")
	t.Cleanup(h.stop)
	return h
}

func (h *host) must(err error) {
	h.Helper()
	if err != nil {
		h.Fatal(err)
	}
}

func (h *host) path(name string) string { return filepath.Join(h.root, name) }

func (h *host) write(name, content string, mode fs.FileMode) {
	h.Helper()
	h.must(os.MkdirAll(filepath.Dir(h.path(name)), 0o755))
	h.must(os.WriteFile(h.path(name), []byte(content), mode))
}

func (h *host) read(name string) string {
	h.Helper()
	data, err := os.ReadFile(h.path(name))
	h.must(err)
	return string(data)
}

func (h *host) copyProgram(from, name string) {
	h.Helper()
	data, err := os.ReadFile(from)
	h.must(err)
	h.write(name, string(data), 0o755)
}

var library = regexp.MustCompile(`(/\S+)[ \t]\(0x`)

// copyLibraries copies what a program is linked with: that of Debian is not static.
func (h *host) copyLibraries(program string) {
	h.Helper()
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return // it is static
	}
	for _, match := range library.FindAllStringSubmatch(string(out), -1) {
		h.copyProgram(match[1], match[1])
	}
}

// dump is what containerd makes of its configuration.
func (h *host) dump() string {
	h.Helper()
	if _, err := os.Stat(h.path(h.config)); err != nil {
		return h.chroot(h.containerd, "config", "default")
	}
	return h.chroot(h.containerd, "--config", h.config, "config", "dump")
}

func (h *host) chroot(argv ...string) string {
	h.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: h.root}
	out, err := cmd.Output()
	if err != nil {
		h.Fatalf("%q: %v", argv, err)
	}
	return string(out)
}

// start starts containerd, by way of what restarts it. How often that was is counted from here.
func (h *host) start() {
	h.Helper()
	h.must(h.restartCommand().Run())
	for start := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", h.path("/run/containerd/containerd.sock"))
		if err == nil {
			conn.Close()
			break
		}
		if time.Since(start) > time.Minute {
			h.Fatalf("containerd does not start: %v", err)
		}
	}
	h.must(os.Remove(h.path("/run/restarts")))
}

func (h *host) restartCommand() *exec.Cmd {
	cmd := exec.Command("/bin/restart")
	cmd.Dir = "/"
	cmd.SysProcAttr = &unix.SysProcAttr{Chroot: h.root}
	return cmd
}

func (h *host) stop() {
	var pid int
	if text, err := os.ReadFile(h.path("/run/containerd.pid")); err == nil {
		if _, err := fmt.Sscan(string(text), &pid); err == nil && pid > 1 {
			unix.Kill(pid, unix.SIGKILL) // It may have ended.
		}
	}
	if h.Failed() {
		if log, err := os.ReadFile(h.path("/run/containerd.log")); err == nil {
			h.Logf("log of containerd:\n%s", log[max(0, len(log)-1000):])
		}
	}
	for range 500 {
		if _, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); pid == 0 || err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	h.Errorf("containerd does not end")
}

func (h *host) restarts() int {
	text, err := os.ReadFile(h.path("/run/restarts"))
	if err != nil {
		return 0
	}
	return strings.Count(string(text), "restart")
}

func (h *host) options(out *strings.Builder) *node.Options {
	return &node.Options{
		Root:    h.root,
		Program: h.path("/run/shim"), // a copy, as somebody may build another meanwhile
		Dir:     "/usr/local/bin",
		State:   "/var/lib/containerd-shim-pause-v2",
		Restart: []string{"/bin/restart"},
		Timeout: time.Minute,
		Out:     out,
	}
}

// do runs the installer, and returns what it says.
func (h *host) do(action func(context.Context, *node.Options) error) (said string, err error) {
	h.Helper()
	var out strings.Builder
	err = action(h.Context(), h.options(&out))
	if testing.Verbose() {
		h.Logf("%s%v", out.String(), err)
	}
	return out.String(), err
}

func (h *host) install() string {
	h.Helper()
	said, err := h.do(node.Install)
	if err != nil {
		h.Fatalf("%s%v", said, err)
	}
	return said
}

func (h *host) remove() string {
	h.Helper()
	said, err := h.do(node.Remove)
	if err != nil {
		h.Fatalf("%s%v", said, err)
	}
	return said
}

// snapshot describes all files of the host, but for what containerd keeps for itself.
func (h *host) snapshot() map[string]string {
	h.Helper()
	found := map[string]string{}
	h.must(filepath.WalkDir(h.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, h.root)
		switch name {
		case "/proc", "/sys", "/dev", "/run", "/tmp", "/var/lib/containerd", "/var/run":
			return filepath.SkipDir
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		text := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %x", sha256.Sum256(data))
			if name != k3sConfig { // which k3s writes
				text += fmt.Sprintf(" %v", info.ModTime())
			}
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " " + to
		}
		found[name] = text
		return nil
	}))
	return found
}

// expectSame fails the test if the host is not as it was.
func (h *host) expectSame(when string, before map[string]string) {
	h.Helper()
	for _, d := range difference(before, h.snapshot()) {
		h.Errorf("%s: %s", when, d)
	}
}

func difference(before, after map[string]string) (list []string) {
	for name, b := range before {
		if a, ok := after[name]; !ok {
			list = append(list, name+" is missing")
		} else if a != b {
			list = append(list, fmt.Sprintf("%s is %s, was %s", name, a, b))
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			list = append(list, name+" is left")
		}
	}
	return list
}

// daemonPid is that of the containerd that was started last.
func (h *host) daemonPid() string { h.Helper(); return h.read("/run/containerd.pid") }
