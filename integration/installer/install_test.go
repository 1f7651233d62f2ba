package installer

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/cmd/containerd-shim-pause-install/node"
)

const (
	plainProgram = "/usr/local/bin/containerd"
	plainConfig  = "/etc/containerd/config.toml"

	k3sProgram = "/var/lib/rancher/k3s/data/current/bin/containerd"
	k3sConfig  = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml"
)

const (
	v3 = `version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  pod_annotations = ['example.com/*']
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  conf_dir = '/etc/other'
`
	v2 = `version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["example.com/*"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = "/etc/other"`
	v1 = `[plugins.cri.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["example.com/*"]
  [plugins.cri.containerd.runtimes.runc.options]
    SystemdCgroup = true
[plugins.cri.cni]
  conf_dir = "/etc/other"
`
)

// A layout is how a node's containerd may be configured.
type layout struct {
	name   string
	only   string // releases whose names begin so
	config map[string]string
	k3s    string // a script that makes the configuration before each start
	like   string // what the handlers must have, as the node's runc has
}

// base is what k3s makes a configuration of: it has the template base, and that of the user.
const makeK3sConfig = `cd /var/lib/rancher/k3s/agent/etc/containerd
t=config.toml.tmpl
[ ! -e config-v3.toml.tmpl ] || t=config-v3.toml.tmpl
if [ -e $t ]; then sed -e '/{{ template "base" . }}/{r base' -e 'd}' $t > config.toml; else cat base > config.toml; fi
`

var layouts = []layout{
	{name: "no file"},
	{name: "file without handlers", config: map[string]string{plainConfig: "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\n  max_concurrent_downloads = 5\n"}},
	{name: "version 1", only: "1", config: map[string]string{plainConfig: v1}, like: "systemd"},
	{name: "version 2", config: map[string]string{plainConfig: v2}, like: "systemd"},
	{name: "version 3", only: "2", config: map[string]string{plainConfig: v3}, like: "systemd"},
	{
		name: "empty list of imports", only: "1", config: map[string]string{plainConfig: "imports = []\n" + v2}, like: "systemd",
	},
	{
		name: "list of imports in lines", only: "2",
		config: map[string]string{plainConfig: "imports = [ # ours\n  '/etc/a.toml',\n  '/etc/b.toml' ]\n" + v3, "/etc/a.toml": "version = 3\n", "/etc/b.toml": "version = 3\n"},
		like:   "systemd",
	},
	{
		name: "directory that is imported", only: "2",
		config: map[string]string{plainConfig: "imports = ['conf.d/*.toml']\n" + v3, "/etc/containerd/conf.d/10-other.toml": "version = 3\n[debug]\n  level = 'warn'\n"},
		like:   "systemd",
	},
	{
		// With containerd 1.x the section of the imported file is the one that counts.
		name: "imported file with all of CRI", only: "1",
		config: map[string]string{plainConfig: "imports = ['/etc/containerd/cri.toml']\nversion = 2\n", "/etc/containerd/cri.toml": v2},
		like:   "systemd",
	},
	{name: "k3s", only: "1", config: map[string]string{filepath.Dir(k3sConfig) + "/base": v2, k3sConfig: v2}, k3s: makeK3sConfig, like: "systemd"},
	{name: "k3s, version 3", only: "2", config: map[string]string{filepath.Dir(k3sConfig) + "/base": v3, k3sConfig: v3}, k3s: makeK3sConfig, like: "systemd"},
	{
		name: "k3s with a template", only: "2", k3s: makeK3sConfig, like: "systemd",
		config: map[string]string{
			filepath.Dir(k3sConfig) + "/base":                v3,
			filepath.Dir(k3sConfig) + "/config-v3.toml.tmpl": "{{ template \"base\" . }}\n[debug]\n  level = 'warn'",
			k3sConfig: v3 + "\n[debug]\n  level = 'warn'",
		},
	},
	{
		name: "k3s with a directory", only: "2", k3s: makeK3sConfig, like: "systemd",
		config: map[string]string{
			filepath.Dir(k3sConfig) + "/base": "imports = ['" + filepath.Dir(k3sConfig) + "/config-v3.toml.d/*.toml']\n" + v3,
			k3sConfig:                         "imports = ['" + filepath.Dir(k3sConfig) + "/config-v3.toml.d/*.toml']\n" + v3,
		},
	},
}

func (l *layout) isFor(release string) bool {
	if release == newest {
		release = "2"
	}
	return strings.HasPrefix(release, l.only)
}

func (l *layout) host(t *testing.T, release string) *host {
	t.Helper()
	containerd, config := plainProgram, plainConfig
	if l.k3s != "" {
		containerd, config = k3sProgram, k3sConfig
	}
	h := newHost(t, release, containerd, config)
	for name, content := range l.config {
		h.write(name, content, 0o640)
	}
	if l.k3s != "" {
		h.write("/run/before", l.k3s, 0o644)
	}
	h.start()
	return h
}

// forEach runs a test on a host of each layout with each release.
func forEach(t *testing.T, test func(t *testing.T, l *layout, h *host)) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			for _, l := range layouts {
				if l.isFor(release) {
					t.Run(l.name, func(t *testing.T) { test(t, &l, l.host(t, release)) })
				}
			}
		})
	}
}

func TestInstallAndRemove(t *testing.T) {
	forEach(t, func(t *testing.T, l *layout, h *host) {
		before, dumpBefore := h.snapshot(), h.dump()

		h.install()
		if n := h.restarts(); n != 1 {
			t.Errorf("containerd was restarted %d times", n)
		}
		for _, want := range []string{"runtime_path = ./usr/local/bin/containerd-shim-pause-v2.", "runtime_path = ./usr/local/bin/containerd-shim-pause-shared-v2."} {
			expectMatch(t, h.dump(), want, 1)
		}
		if l.like != "" { // ours are like runc
			expectMatch(t, h.dump(), "SystemdCgroup = true", 3)
			expectMatch(t, h.dump(), `pod_annotations = \[.example.com/\*.\]`, 3)
			expectMatch(t, h.dump(), `conf_dir = ./etc/other.`, 1)
		}
		installed, pid := h.snapshot(), h.daemonPid()
		if said := h.install(); !strings.Contains(said, "need not be restarted") {
			t.Errorf("the second time it says: %s", said)
		}
		h.expectSame("after the second installation", installed)
		if _, err := h.do(node.Check); err != nil {
			t.Errorf("the check says: %v", err)
		}
		if h.daemonPid() != pid {
			t.Error("containerd was restarted again")
		}

		h.remove()
		h.expectSame("after the removal", before)
		if n := h.restarts(); n != 2 {
			t.Errorf("containerd was restarted %d times in all", n)
		}
		if dump := h.dump(); dump != dumpBefore {
			t.Errorf("the configuration is now:\n%s\nwas:\n%s", dump, dumpBefore)
		}
		if said := h.remove(); !strings.Contains(said, "nothing is installed") {
			t.Errorf("the second removal says: %s", said)
		}
		if _, err := h.do(node.Check); err == nil {
			t.Error("the check is content after the removal")
		}
	})
}

// one is a host for what does not depend on releases.
func one(t *testing.T) *host {
	t.Helper()
	l := layout{config: map[string]string{plainConfig: "imports = []\n" + v3}}
	return l.host(t, newest)
}

func TestNewProgramNeedsNoRestart(t *testing.T) {
	h := one(t)
	before := h.snapshot()
	old := filepath.Join(t.TempDir(), "old")
	h.must(os.WriteFile(old, []byte("an older build"), 0o600))
	if _, err := h.do(withProgram(old, node.Install)); err != nil {
		t.Fatal(err)
	}
	if said := h.install(); !strings.Contains(said, "need not be restarted") || h.restarts() != 1 {
		t.Errorf("%d restarts, it says: %s", h.restarts(), said)
	}
	if h.read("/usr/local/bin/containerd-shim-pause-v2") == "an older build" {
		t.Error("the program is the old one")
	}
	// And back.
	if _, err := h.do(withProgram(old, node.Install)); err != nil || h.restarts() != 1 {
		t.Errorf("%d restarts, %v", h.restarts(), err)
	}
	h.remove()
	h.expectSame("after the removal", before)
}

func TestFilesOfOthersComeBack(t *testing.T) {
	h := one(t)
	h.write("/usr/local/bin/containerd-shim-pause-v2", "somebody else's", 0o700)
	h.must(os.Symlink("/nowhere", h.path("/usr/local/bin/containerd-shim-pause-shared-v2")))
	before := h.snapshot()
	h.install()
	h.remove()
	h.expectSame("after the removal", before)
}

func TestWhatOthersChangedStays(t *testing.T) {
	h := one(t)
	h.install()
	edited := h.read(plainConfig) + "\n[debug]\n  level = 'warn' # by an administrator\n"
	h.write(plainConfig, edited, 0o640)
	if said := h.install(); !strings.Contains(said, "need not be restarted") {
		t.Errorf("after a change of another setting it says: %s", said)
	}
	if said := h.remove(); !strings.Contains(said, plainConfig+": was changed by somebody else; only what was added to it is removed") {
		t.Errorf("it says: %s", said)
	}
	if got, want := h.read(plainConfig), "imports = []\n"+v3+"\n[debug]\n  level = 'warn' # by an administrator\n"; got != want {
		t.Errorf("the configuration is %q, want %q", got, want)
	}
}

func TestNothingIsDoneToNodesThatItCannotServe(t *testing.T) {
	for _, tc := range []struct {
		name string
		make func(h *host)
		want string
	}{
		{"broken configuration", func(h *host) { h.write(plainConfig, "version = [", 0o644) }, "cannot load its configuration"},
		{"symbolic link", func(h *host) {
			h.must(os.Rename(h.path(plainConfig), h.path("/etc/real.toml")))
			h.must(os.Symlink("/etc/real.toml", h.path(plainConfig)))
		}, "is a symbolic link to /etc/real.toml"},
		{"handler of that name", func(h *host) {
			h.write(plainConfig, v3+"\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.pause]\n  runtime_type = 'io.containerd.runc.v2'\n", 0o644)
		}, "has a handler pause already"},
		{"no CRI", func(h *host) {
			h.write(plainConfig, "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.runtime']\n", 0o644)
		}, "CRI"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := one(t)
			tc.make(h)
			before := h.snapshot()
			said, err := h.do(node.Install)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s%v", said, err)
			}
			h.expectSame("after the refusal", before)
			if h.restarts() != 0 {
				t.Error("containerd was restarted")
			}
		})
	}
}

// The configuration loads, but containerd does not come up with it.
func TestContainerdThatDoesNotComeUpGetsItsConfigurationBack(t *testing.T) {
	h := one(t)
	before := h.snapshot()
	h.write("/run/before", "! grep -q containerd-shim-pause /etc/containerd/config.toml", 0o644)
	said, err := h.do(node.Install)
	if err == nil || !strings.Contains(said, "so they are removed") {
		t.Errorf("%s%v", said, err)
	}
	if got := h.read(plainConfig); got != "imports = []\n"+v3 {
		t.Errorf("the configuration is %q", got)
	}
	if !strings.Contains(said, "containerd works, without the handlers") {
		t.Errorf("it says: %s", said)
	}
	h.must(os.Remove(h.path("/run/before")))
	h.remove()
	h.expectSame("after the removal", before)
}

func TestProgramInUseIsNotRemoved(t *testing.T) {
	h := one(t)
	before := h.snapshot()
	h.install()
	installed := h.snapshot()
	bundle := t.TempDir()
	h.must(os.WriteFile(filepath.Join(bundle, "config.json"), []byte("{}"), 0o600))
	shim := exec.Command(h.path("/usr/local/bin/containerd-shim-pause-shared-v2"), "-namespace", "k8s.io", "-id", "pod", "-socket", filepath.Join(bundle, "s"))
	shim.Dir = bundle
	h.must(shim.Start())
	t.Cleanup(func() { shim.Process.Kill(); shim.Wait() })
	if said, err := h.do(node.Remove); !errors.Is(err, node.ErrInUse) || !strings.Contains(err.Error(), "containerd-shim-pause-shared-v2, pod)") {
		t.Errorf("%s%v", said, err)
	}
	h.expectSame("while a shim runs", installed)
	// It is found after an update as well.
	newer := filepath.Join(t.TempDir(), "newer")
	h.must(os.WriteFile(newer, []byte("a newer build"), 0o600))
	if _, err := h.do(withProgram(newer, node.Install)); err != nil {
		t.Fatal(err)
	}
	if said, err := h.do(node.Remove); !errors.Is(err, node.ErrInUse) {
		t.Errorf("after an update: %s%v", said, err)
	}
	h.must(shim.Process.Kill())
	shim.Wait()
	h.remove()
	h.expectSame("after the removal", before)
}

// A DaemonSet removes on all nodes, also on those where it could install nothing.
func TestRemovalOfNothingNeedsNoContainerd(t *testing.T) {
	h := one(t)
	h.must(os.Remove(h.path(plainProgram)))
	before := h.snapshot()
	if said := h.remove(); !strings.Contains(said, "nothing is installed") {
		t.Errorf("it says: %s", said)
	}
	h.expectSame("after the removal", before)
}

func TestOneInstallerAtATime(t *testing.T) {
	h := one(t)
	o := h.options(new(strings.Builder))
	var second error
	o.Reached = func(string) {
		if second == nil {
			_, second = h.do(node.Remove)
		}
	}
	h.must(node.Install(t.Context(), o))
	if second == nil || !strings.Contains(second.Error(), "another installer is at work") {
		t.Errorf("the second one got: %v", second)
	}
	h.remove()
}
