package task

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/shim/wire"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// podConfigType is the name of the message that CRI sends with CreateSandbox.
const podConfigType = "runtime.v1.PodSandboxConfig"

// podConfig is what a sandbox needs of CRI's PodSandboxConfig. The names in JSON
// are those that CRI gives.
// Source: kubernetes, staging/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
type podConfig struct {
	Metadata struct {
		Name      string `protobuf:",1" json:"name,omitempty"`
		UID       string `protobuf:",2" json:"uid,omitempty"`
		Namespace string `protobuf:",3" json:"namespace,omitempty"`
		Attempt   uint32 `protobuf:",4" json:"attempt,omitempty"`
	} `protobuf:",1" json:"metadata"`
	Hostname     string            `protobuf:",2" json:"hostname,omitempty"`
	LogDirectory string            `protobuf:",3" json:"log_directory,omitempty"`
	DNS          *dnsConfig        `protobuf:",4" json:"dns_config,omitempty"`
	Labels       map[string]string `protobuf:",6" json:"labels,omitempty"`
	Annotations  map[string]string `protobuf:",7" json:"annotations,omitempty"`
	Linux        linuxConfig       `protobuf:",8" json:"linux"`
}

type dnsConfig struct {
	Servers  []string `protobuf:",1" json:"servers,omitempty"`
	Searches []string `protobuf:",2" json:"searches,omitempty"`
	Options  []string `protobuf:",3" json:"options,omitempty"`
}

type linuxConfig struct {
	CgroupParent string            `protobuf:",1" json:"cgroup_parent,omitempty"`
	Security     securityContext   `protobuf:",2" json:"security_context"`
	Sysctls      map[string]string `protobuf:",3" json:"sysctls,omitempty"`
}

type securityContext struct {
	Namespaces         namespaceOptions `protobuf:",1" json:"namespace_options"`
	User               *int64Value      `protobuf:",3" json:"run_as_user,omitempty"`
	Group              *int64Value      `protobuf:",8" json:"run_as_group,omitempty"`
	SupplementalGroups []int64          `protobuf:",5" json:"supplemental_groups,omitempty"`
	Privileged         bool             `protobuf:",6" json:"privileged,omitempty"`
}

type int64Value struct {
	Value int64 `protobuf:",1" json:"value,omitempty"`
}

type namespaceOptions struct {
	Network namespaceMode  `protobuf:",1" json:"network,omitempty"`
	PID     namespaceMode  `protobuf:",2" json:"pid,omitempty"`
	IPC     namespaceMode  `protobuf:",3" json:"ipc,omitempty"`
	User    *userNamespace `protobuf:",5" json:"userns_options,omitempty"`
}

type userNamespace struct {
	Mode namespaceMode `protobuf:",1" json:"mode,omitempty"`
	UIDs []idMapping   `protobuf:",2" json:"uids,omitempty"`
	GIDs []idMapping   `protobuf:",3" json:"gids,omitempty"`
}

type idMapping struct {
	HostID      uint32 `protobuf:",1" json:"host_id,omitempty"`
	ContainerID uint32 `protobuf:",2" json:"container_id,omitempty"`
	Length      uint32 `protobuf:",3" json:"length,omitempty"`
}

// namespaceMode is CRI's NamespaceMode.
type namespaceMode int32

const (
	modePod  namespaceMode = 0
	modeNode namespaceMode = 2
)

// decodePodConfig returns nil for a client that is not CRI.
func decodePodConfig(options *anypb.Any) (*podConfig, error) {
	if options.GetTypeUrl() == "" {
		return nil, nil
	}
	if name := path.Base(options.GetTypeUrl()); name != podConfigType {
		return nil, fmt.Errorf("options of type %s are unknown, %s is expected: %w", name, podConfigType, errdefs.ErrInvalidArgument)
	}
	var c podConfig
	if err := wire.Unmarshal(options.GetValue(), &c); err != nil {
		return nil, fmt.Errorf("cannot decode the %s: %w: %w", podConfigType, err, errdefs.ErrInvalidArgument)
	}
	return &c, nil
}

// sharesPID says whether the pod's containers share their PID namespace.
func (c *podConfig) sharesPID() bool { return c != nil && c.Linux.Security.Namespaces.PID == modePod }

func (c *podConfig) userNamespace() *userNamespace {
	if u := c.Linux.Security.Namespaces.User; u != nil && u.Mode == modePod {
		return u
	}
	return nil
}

// spec describes the sandbox as CRI does by itself, for a sandbox that is a
// container (sandboxContainerSpec in containerd's internal/cri/server/podsandbox).
// netns is the path of the network namespace. The user namespace, if the pod has
// one, is that which owns it.
func (c *podConfig) spec(id, netns string) *process.SandboxSpec {
	namespaces := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	add := func(t specs.LinuxNamespaceType, path string) {
		namespaces = append(namespaces, specs.LinuxNamespace{Type: t, Path: path})
	}
	modes := c.Linux.Security.Namespaces
	if modes.PID != modeNode {
		add(specs.PIDNamespace, "")
	}
	if modes.IPC != modeNode {
		add(specs.IPCNamespace, "")
	}
	s := &process.SandboxSpec{
		Version:     "1.0.2", // nothing newer is used
		Annotations: c.annotations(id),
	}
	s.Process.User, s.Process.Cwd, s.Process.Args = c.user(), "/", []string{"/pause"}
	s.Linux.CgroupsPath, s.Linux.Sysctl = c.cgroupsPath(id), c.sysctls()
	s.Linux.Resources.CPU.Shares = sandboxShares
	if modes.Network != modeNode {
		s.Hostname = c.Hostname
		add(specs.NetworkNamespace, netns)
		add(specs.UTSNamespace, "")
	}
	if u := c.userNamespace(); u != nil {
		add(specs.UserNamespace, "")
		s.Linux.UIDMappings, s.Linux.GIDMappings = mappings(u.UIDs), mappings(u.GIDs)
	}
	s.Linux.Namespaces = namespaces
	return s
}

// sandboxShares are a sandbox's CPU shares, the least there are.
const sandboxShares = 2

// sandboxUser is the user and group of the pause image, which the init of a
// shared PID namespace gets.
const sandboxUser = 65535

func (c *podConfig) user() specs.User {
	user := specs.User{UID: sandboxUser, GID: sandboxUser}
	if u := c.Linux.Security.User; u != nil {
		user = specs.User{UID: uint32(u.Value)}
		if g := c.Linux.Security.Group; g != nil {
			user.GID = uint32(g.Value)
		}
	}
	for _, group := range c.Linux.Security.SupplementalGroups {
		user.AdditionalGids = append(user.AdditionalGids, uint32(group))
	}
	return user
}

// cgroupsPath is the path of the sandbox's cgroup, in the form of systemd if the
// parent is a slice (getCgroupsPath in containerd's internal/cri).
func (c *podConfig) cgroupsPath(id string) string {
	parent := c.Linux.CgroupParent
	switch {
	case parent == "":
		return ""
	case strings.HasSuffix(parent, ".slice"):
		return strings.Join([]string{path.Base(parent), "cri-containerd", id}, ":")
	}
	return filepath.Join(parent, id)
}

// sysctls are those of the pod, and those that CRI adds unless it is told not to
// (enable_unprivileged_ports and enable_unprivileged_icmp), of which a shim does
// not learn.
func (c *podConfig) sysctls() map[string]string {
	sysctls := make(map[string]string)
	if c.Linux.Security.Namespaces.Network != modeNode {
		sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
		if c.userNamespace() == nil {
			sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
		}
	}
	for key, value := range c.Linux.Sysctls {
		sysctls[key] = value
	}
	return sysctls
}

// annotations are those by which CRI marks a sandbox.
func (c *podConfig) annotations(id string) map[string]string {
	return map[string]string{
		"io.kubernetes.cri.container-type":        "sandbox",
		"io.kubernetes.cri.sandbox-id":            id,
		"io.kubernetes.cri.sandbox-name":          c.Metadata.Name,
		"io.kubernetes.cri.sandbox-namespace":     c.Metadata.Namespace,
		"io.kubernetes.cri.sandbox-uid":           c.Metadata.UID,
		"io.kubernetes.cri.sandbox-log-directory": c.LogDirectory,
	}
}

// files are the files that CRI mounts into the pod's containers. It looks for
// them below its own directories, which are beside those of whoever made the
// bundle: <state>/<plugin>/<namespace>/<id>, with a link work to
// <root>/<plugin>/<namespace>/<id> (getSandboxRootDir in internal/cri/server).
func (c *podConfig) files(id, bundle string) (*process.PodFiles, error) {
	work, err := os.Readlink(filepath.Join(bundle, "work"))
	if err == nil && !filepath.IsAbs(work) {
		err = fmt.Errorf("%s is not an absolute path", work)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot find containerd's root directory: %w", err)
	}
	f := &process.PodFiles{Dir: criDir(work, id), Hostname: c.Hostname}
	if c.Linux.Security.Namespaces.IPC != modeNode {
		f.ShmDir = filepath.Join(criDir(bundle, id), "shm")
	}
	if d := c.DNS; d != nil {
		f.DNS = &process.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return f, nil
}

func criDir(sibling, id string) string {
	base := filepath.Dir(filepath.Dir(filepath.Dir(filepath.Clean(sibling))))
	return filepath.Join(base, "io.containerd.grpc.v1.cri", "sandboxes", id)
}

func mappings(list []idMapping) []specs.LinuxIDMapping {
	ids := make([]specs.LinuxIDMapping, len(list))
	for i, m := range list {
		ids[i] = specs.LinuxIDMapping{ContainerID: m.ContainerID, HostID: m.HostID, Size: m.Length}
	}
	return ids
}
