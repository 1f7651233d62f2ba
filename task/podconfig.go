package task

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"containerd-shim-pause-v2/process"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// podConfigType is the name of the message that CRI sends with CreateSandbox.
const podConfigType = "runtime.v1.PodSandboxConfig"

// podConfig has the fields of CRI's PodSandboxConfig that a sandbox needs. The names in
// JSON are CRI's. Source: kubernetes,
// staging/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto.
type podConfig struct {
	Metadata     podMetadata       `json:"metadata"`
	Hostname     string            `json:"hostname,omitempty"`
	LogDirectory string            `json:"log_directory,omitempty"`
	DNS          *dnsConfig        `json:"dns_config,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	Linux        linuxConfig       `json:"linux"`
}

func (c *podConfig) fields() fields {
	return fields{
		1: message(c.Metadata.fields()), 2: text(&c.Hostname), 3: text(&c.LogDirectory),
		4: optional(&c.DNS, (*dnsConfig).fields), 6: textMap(&c.Labels), 7: textMap(&c.Annotations),
		8: message(c.Linux.fields()),
	}
}

type podMetadata struct {
	Name      string `json:"name,omitempty"`
	UID       string `json:"uid,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Attempt   uint32 `json:"attempt,omitempty"`
}

func (m *podMetadata) fields() fields {
	return fields{1: text(&m.Name), 2: text(&m.UID), 3: text(&m.Namespace), 4: number(&m.Attempt)}
}

type dnsConfig struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

func (d *dnsConfig) fields() fields {
	return fields{1: texts(&d.Servers), 2: texts(&d.Searches), 3: texts(&d.Options)}
}

type linuxConfig struct {
	CgroupParent string            `json:"cgroup_parent,omitempty"`
	Security     securityContext   `json:"security_context"`
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Resources    *podResources     `json:"resources,omitempty"`
}

func (l *linuxConfig) fields() fields {
	return fields{
		1: text(&l.CgroupParent), 2: message(l.Security.fields()), 3: textMap(&l.Sysctls),
		5: optional(&l.Resources, (*podResources).fields),
	}
}

// podResources is the sum of the resources of the pod's containers.
type podResources struct {
	CPUPeriod int64 `json:"cpu_period,omitempty"`
	CPUQuota  int64 `json:"cpu_quota,omitempty"`
	CPUShares int64 `json:"cpu_shares,omitempty"`
	Memory    int64 `json:"memory_limit_in_bytes,omitempty"`
}

func (r *podResources) fields() fields {
	return fields{1: number(&r.CPUPeriod), 2: number(&r.CPUQuota), 3: number(&r.CPUShares), 4: number(&r.Memory)}
}

type securityContext struct {
	Namespaces         namespaceOptions `json:"namespace_options"`
	SELinux            *selinuxOptions  `json:"selinux_options,omitempty"`
	User               *int64Value      `json:"run_as_user,omitempty"`
	Group              *int64Value      `json:"run_as_group,omitempty"`
	SupplementalGroups []int64          `json:"supplemental_groups,omitempty"`
	Privileged         bool             `json:"privileged,omitempty"`
	SeccompPath        string           `json:"seccomp_profile_path,omitempty"`
	Seccomp            *securityProfile `json:"seccomp,omitempty"`
}

func (s *securityContext) fields() fields {
	return fields{
		1: message(s.Namespaces.fields()), 2: optional(&s.SELinux, (*selinuxOptions).fields),
		3: optional(&s.User, (*int64Value).fields), 5: numbers(&s.SupplementalGroups), 6: flag(&s.Privileged),
		7: text(&s.SeccompPath), 8: optional(&s.Group, (*int64Value).fields), 9: optional(&s.Seccomp, (*securityProfile).fields),
	}
}

type selinuxOptions struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

func (o *selinuxOptions) fields() fields {
	return fields{1: text(&o.User), 2: text(&o.Role), 3: text(&o.Type), 4: text(&o.Level)}
}

// securityProfile is CRI's SecurityProfile.
type securityProfile struct {
	Type profileType `json:"profile_type,omitempty"`
	File string      `json:"localhost_ref,omitempty"` // only with profileLocalhost
}

func (p *securityProfile) fields() fields {
	return fields{1: number(&p.Type), 2: text(&p.File)}
}

// profileType is CRI's SecurityProfile.ProfileType.
type profileType int32

const (
	profileDefault    profileType = 0
	profileUnconfined profileType = 1
	profileLocalhost  profileType = 2
)

type int64Value struct {
	Value int64 `json:"value,omitempty"`
}

func (v *int64Value) fields() fields { return fields{1: number(&v.Value)} }

type namespaceOptions struct {
	Network namespaceMode  `json:"network,omitempty"`
	PID     namespaceMode  `json:"pid,omitempty"`
	IPC     namespaceMode  `json:"ipc,omitempty"`
	User    *userNamespace `json:"userns_options,omitempty"`
}

func (o *namespaceOptions) fields() fields {
	return fields{1: number(&o.Network), 2: number(&o.PID), 3: number(&o.IPC), 5: optional(&o.User, (*userNamespace).fields)}
}

type userNamespace struct {
	Mode namespaceMode `json:"mode,omitempty"`
	UIDs []idMapping   `json:"uids,omitempty"`
	GIDs []idMapping   `json:"gids,omitempty"`
}

func (u *userNamespace) fields() fields {
	return fields{1: number(&u.Mode), 2: repeated(&u.UIDs, (*idMapping).fields), 3: repeated(&u.GIDs, (*idMapping).fields)}
}

type idMapping struct {
	HostID      uint32 `json:"host_id,omitempty"`
	ContainerID uint32 `json:"container_id,omitempty"`
	Length      uint32 `json:"length,omitempty"`
}

func (m *idMapping) fields() fields {
	return fields{1: number(&m.HostID), 2: number(&m.ContainerID), 3: number(&m.Length)}
}

// namespaceMode is CRI's NamespaceMode.
type namespaceMode int32

const (
	modePod       namespaceMode = 0
	modeContainer namespaceMode = 1
	modeNode      namespaceMode = 2
	modeTarget    namespaceMode = 3
)

// String returns CRI's name of the mode.
func (m namespaceMode) String() string {
	switch m {
	case modePod:
		return "POD"
	case modeContainer:
		return "CONTAINER"
	case modeNode:
		return "NODE"
	case modeTarget:
		return "TARGET"
	}
	return strconv.Itoa(int(m))
}

// decodePodConfig returns nil if there are no options, as from a client that is not CRI.
func decodePodConfig(options *anypb.Any) (*podConfig, error) {
	if options.GetTypeUrl() == "" {
		return nil, nil
	}
	if name := path.Base(options.GetTypeUrl()); name != podConfigType {
		return nil, fmt.Errorf("cannot decode options of type %s: want %s: %w", name, podConfigType, errdefs.ErrInvalidArgument)
	}
	var c podConfig
	if err := c.fields().decode(options.GetValue()); err != nil {
		return nil, fmt.Errorf("cannot decode the %s: %w: %w", podConfigType, err, errdefs.ErrInvalidArgument)
	}
	return &c, nil
}

// sharesPID reports whether the pod's containers share one PID namespace.
func (c *podConfig) sharesPID() bool { return c != nil && c.Linux.Security.Namespaces.PID == modePod }

func (c *podConfig) userNamespace() *userNamespace {
	if u := c.Linux.Security.Namespaces.User; u != nil && u.Mode == modePod {
		return u
	}
	return nil
}

// spec returns the spec that CRI itself makes for a sandbox that is a container
// (sandboxContainerSpec in containerd's internal/cri/server/podsandbox). netns is the
// path of the network namespace. If the pod has a user namespace, it is the owner of that
// network namespace.
func (c *podConfig) spec(id, netns string, o *HandlerOptions, h host) *specs.Spec {
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
	shares, score := uint64(sandboxShares), oomScoreAdj(o, h)
	s := &specs.Spec{
		Version:     "1.0.2", // no newer field is used
		Annotations: c.annotations(id),
		Process:     &specs.Process{User: c.user(), Cwd: "/", Args: []string{"/pause"}, OOMScoreAdj: &score},
		Linux: &specs.Linux{
			CgroupsPath: c.cgroupsPath(id),
			Sysctl:      c.sysctls(o, h),
			Resources:   &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: &shares}},
		},
	}
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

// sandboxShares is a sandbox's CPU shares: the minimum.
const sandboxShares = 2

// sandboxUser is the user and the group of the pause image. The init of a shared PID
// namespace gets them.
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

// cgroupsPath returns the path of the sandbox's cgroup, in systemd's form if the parent
// is a slice (getCgroupsPath in containerd's internal/cri).
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

// annotations returns the annotations by which CRI marks a sandbox.
func (c *podConfig) annotations(id string) map[string]string {
	annotations := map[string]string{
		"io.kubernetes.cri.container-type":        "sandbox",
		"io.kubernetes.cri.sandbox-id":            id,
		"io.kubernetes.cri.sandbox-name":          c.Metadata.Name,
		"io.kubernetes.cri.sandbox-namespace":     c.Metadata.Namespace,
		"io.kubernetes.cri.sandbox-uid":           c.Metadata.UID,
		"io.kubernetes.cri.sandbox-log-directory": c.LogDirectory,
	}
	if r := c.Linux.Resources; r != nil {
		for name, value := range map[string]int64{"cpu-period": r.CPUPeriod, "cpu-quota": r.CPUQuota, "cpu-shares": r.CPUShares, "memory": r.Memory} {
			annotations["io.kubernetes.cri.sandbox-"+name] = strconv.FormatInt(value, 10)
		}
	}
	return annotations
}

// files returns the files that CRI mounts into the pod's containers. CRI looks for them
// below its own directories, which are beside those of the plugin that made the bundle:
// the bundle is <state>/<plugin>/<namespace>/<id>, with a link "work" to
// <root>/<plugin>/<namespace>/<id> (getSandboxRootDir in containerd's
// internal/cri/server).
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
