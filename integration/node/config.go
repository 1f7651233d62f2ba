package node

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func (n *Node) configFile() string { return filepath.Join(n.Dir, "config.toml") }

// writeNetwork makes the directories of the node and writes the configuration of
// its network.
func (n *Node) writeNetwork() error {
	network, err := n.network()
	if err != nil {
		return err
	}
	for _, dir := range []string{"cni", "fifo", "s"} {
		if err := os.Mkdir(filepath.Join(n.Dir, dir), 0o711); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(n.Dir, "cni", "10-bridge.conflist"), []byte(network), 0o600)
}

// writeConfig writes the configuration of the containerd that the node has now.
func (n *Node) writeConfig() error {
	handlers, err := n.handlers()
	if err != nil {
		return err
	}
	for _, h := range handlers {
		if err := os.WriteFile(n.optionsFile(h), []byte(n.runtimeOptions(h.OCIRuntime)+h.Options), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(n.configFile(), []byte(n.config(handlers)), 0o600)
}

// handlers are all handlers of CRI that the node has, with absolute paths of shims.
func (n *Node) handlers() ([]Handler, error) {
	handlers := []Handler{
		{Name: "runc", Type: StockType, OCIRuntime: n.options.OCIRuntime},
		{Name: "pause", Type: PauseType, OCIRuntime: n.options.OCIRuntime},
		{Name: "pause-shared", Type: SharedType, OCIRuntime: n.options.OCIRuntime},
	}
	handlers = slices.DeleteFunc(handlers, func(h Handler) bool {
		return slices.ContainsFunc(n.options.Handlers, func(other Handler) bool { return other.Name == h.Name })
	})
	handlers = append(handlers, n.options.Handlers...)
	for i, h := range handlers {
		if h.Shim == "" {
			continue
		}
		path, err := n.LookPath(h.Shim)
		if err != nil {
			return nil, err
		}
		handlers[i].Shim = path
	}
	return handlers, nil
}

// config is containerd's configuration. Whatever is not named in it is read from,
// or written to, a place outside the node.
func (n *Node) config(handlers []Handler) string {
	template, key := configVersion2, "plugins.'io.containerd.grpc.v1.cri'"
	if n.Version.hasConfigVersion3() {
		template, key = configVersion3, "plugins.'io.containerd.cri.v1.runtime'"
	}
	b := new(strings.Builder)
	strings.NewReplacer(
		"$dir", n.Dir,
		"$snapshotter", n.Snapshotter,
		"$pause", n.PauseImage,
		"$default", n.options.DefaultHandler,
		"$bindir", n.cniDirs(),
		"$restrict", fmt.Sprint(!canLowerOOMScore()),
		"$cdi", when(n.Version.hasCDI(), "cdi_spec_dirs = ['"+n.Dir+"/cdi']"),
	).WriteString(b, template) //nolint:errcheck // a strings.Builder has no errors
	if n.Version.hasNRI() {
		fmt.Fprintf(b, "\n[plugins.'io.containerd.nri.v1.nri']\n  socket_path = '%[2]s'\n  plugin_path = '%[1]s/nri/plugins'\n  plugin_config_path = '%[1]s/nri/conf.d'\n", n.Dir, n.NRISocket())
	}
	if n.Version.hasSocketDir() && !n.oldSockets {
		fmt.Fprintf(b, "\n[plugins.'io.containerd.shim.v1.manager']\n  socket_dir = '%s/s'\n", n.Dir)
	}
	for _, h := range handlers {
		if h.Sandboxer == "" || n.Version.hasSandboxers() {
			n.configHandler(b, key+".containerd.runtimes.'"+h.Name+"'", h)
		}
	}
	return b.String()
}

// configVersion3 is for containerd 2.x.
const configVersion3 = `version = 3
root = '$dir/root'
state = '$dir/state'
disabled_plugins = ['io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing']

[grpc]
  address = '$dir/containerd.sock'
[ttrpc]
  address = '$dir/containerd.sock.ttrpc'
[debug]
  level = 'info'

[plugins.'io.containerd.internal.v1.opt']
  path = '$dir/opt'
[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = '$dir/verifiers'

[plugins.'io.containerd.cri.v1.images']
  snapshotter = '$snapshotter'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '$pause'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '$dir/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
  $cdi
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = $restrict
[plugins.'io.containerd.cri.v1.runtime'.cni]
  $bindir
  conf_dir = '$dir/cni'
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = '$default'
`

// configVersion2 is for containerd 1.x.
const configVersion2 = `version = 2
root = '$dir/root'
state = '$dir/state'
disabled_plugins = ['io.containerd.tracing.processor.v1.otlp', 'io.containerd.internal.v1.tracing']

[grpc]
  address = '$dir/containerd.sock'
[ttrpc]
  address = '$dir/containerd.sock.ttrpc'
[debug]
  level = 'info'

[plugins.'io.containerd.internal.v1.opt']
  path = '$dir/opt'

[plugins.'io.containerd.grpc.v1.cri']
  sandbox_image = '$pause'
  $cdi
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = $restrict
[plugins.'io.containerd.grpc.v1.cri'.registry]
  config_path = '$dir/certs.d'
[plugins.'io.containerd.grpc.v1.cri'.cni]
  $bindir
  conf_dir = '$dir/cni'
[plugins.'io.containerd.grpc.v1.cri'.containerd]
  snapshotter = '$snapshotter'
  default_runtime_name = '$default'
`

// configHandler writes the tables of a runtime handler, the first of which is key.
func (n *Node) configHandler(b *strings.Builder, key string, h Handler) {
	fmt.Fprintf(b, "\n[%s]\n  runtime_type = '%s'\n", key, h.Type)
	if n.Version.hasSandboxers() {
		if h.Sandboxer == "" {
			h.Sandboxer = "podsandbox"
		}
		fmt.Fprintf(b, "  sandboxer = '%s'\n", h.Sandboxer)
	}
	if h.Sandboxer == "shim" && n.Version.hasPodsWithoutImages() {
		b.WriteString("  disable_pause_image_pull = true\n")
	}
	if h.Shim != "" {
		fmt.Fprintf(b, "  runtime_path = '%s'\n", h.Shim)
	}
	if h.NoOptions {
		return
	}
	fmt.Fprintf(b, "[%s.options]\n", key)
	if h.Type == StockType || n.Version.passesOptions() {
		b.WriteString(n.runtimeOptions(h.OCIRuntime) + h.Options)
	} else {
		fmt.Fprintf(b, "  ConfigPath = '%s'\n", n.optionsFile(h))
	}
}

// runtimeOptions are those of all containers, as TOML.
func (n *Node) runtimeOptions(ociRuntime string) string {
	return fmt.Sprintf("  BinaryName = '%s'\n  Root = '%s'\n  SystemdCgroup = %t\n", ociRuntime, n.RuntimeRoot(), n.options.SystemdCgroup)
}

// optionsFile is the path of a file with a handler's options, see passesOptions.
func (n *Node) optionsFile(h Handler) string { return filepath.Join(n.Dir, "handler-"+h.Name+".toml") }

func when(condition bool, text string) string {
	if condition {
		return text
	}
	return ""
}

// network is the CNI configuration: a bridge, its own subnet, port mappings.
func (n *Node) network() (string, error) {
	subnet, err := freeSubnet()
	if err != nil {
		return "", err
	}
	r := strings.NewReplacer("$name", n.ID, "$dir", n.Dir, "$subnet", subnet)
	return r.Replace(`{
  "cniVersion": "1.0.0",
  "name": "$name",
  "plugins": [
    {
      "type": "bridge", "bridge": "$name", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "$dir/ipam",
        "ranges": [[{"subnet": "$subnet"}]], "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`), nil
}

// cniDirs is the line of the configuration with the directories of plugins.
func (n *Node) cniDirs() string {
	if n.Version.hasManyCNIDirs() {
		return "bin_dirs = ['" + cniDir() + "']"
	}
	return "bin_dir = '" + cniDir() + "'"
}

func cniDir() string {
	const upstream = "/opt/cni/bin"
	if _, err := os.Stat(filepath.Join(upstream, "bridge")); err == nil {
		return upstream
	}
	return "/usr/lib/cni" // Debian's
}

// freeSubnet finds a subnet that overlaps with that of no interface.
func freeSubnet() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("cannot find a free subnet: %w", err)
	}
	for i := range 256 {
		// Nodes that start at the same time should not find the same one.
		_, subnet, err := net.ParseCIDR(fmt.Sprintf("10.197.%d.0/24", (os.Getpid()+i)%256))
		if err != nil {
			return "", err
		}
		if !overlaps(subnet, addrs) {
			return subnet.String(), nil
		}
	}
	return "", fmt.Errorf("cannot find a free subnet in 10.197.0.0/16")
}

func overlaps(subnet *net.IPNet, addrs []net.Addr) bool {
	for _, a := range addrs {
		if other, ok := a.(*net.IPNet); ok && (subnet.Contains(other.IP) || other.Contains(subnet.IP)) {
			return true
		}
	}
	return false
}

// usableSnapshotter says which snapshotter works in dir: overlayfs cannot be used
// on an overlay, as in a container.
func usableSnapshotter(dir string) string {
	probe := filepath.Join(dir, "probe")
	defer os.RemoveAll(probe)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if os.MkdirAll(filepath.Join(probe, d), 0o700) != nil {
			return "native"
		}
	}
	merged := filepath.Join(probe, "merged")
	data := strings.ReplaceAll("lowerdir=$/lower,upperdir=$/upper,workdir=$/work", "$", probe)
	if unix.Mount("overlay", merged, "overlay", 0, data) != nil {
		return "native"
	}
	if unix.Unmount(merged, 0) != nil {
		return "native"
	}
	return "overlayfs"
}

// canLowerOOMScore says whether this process may lower its oom_score_adj, for
// which root needs CAP_SYS_RESOURCE.
func canLowerOOMScore() bool {
	const path = "/proc/self/oom_score_adj"
	old, err := os.ReadFile(path)
	if err != nil || os.WriteFile(path, []byte("-998"), 0) != nil {
		return false
	}
	return os.WriteFile(path, old, 0) == nil
}
