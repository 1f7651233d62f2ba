package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations with which CRI tells a runtime what a container is to its pod.
// Source: containerd, internal/cri/annotations.
const (
	containerTypeAnnotation = "io.kubernetes.cri.container-type"
	sandboxIDAnnotation     = "io.kubernetes.cri.sandbox-id"
	containerTypeSandbox    = "sandbox"
)

// spec is the part of an OCI runtime specification's config.json that the shim
// acts upon itself. Decoding only this part keeps the garbage of a create small:
// seccomp rules and mounts are most of the file, and none of our business.
type spec struct {
	Version     string            `json:"ociVersion"`
	Hostname    string            `json:"hostname"`
	Domainname  string            `json:"domainname"`
	Annotations map[string]string `json:"annotations"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Process     struct {
		User            specs.User `json:"user"`
		OOMScoreAdj     *int       `json:"oomScoreAdj"`
		SelinuxLabel    string     `json:"selinuxLabel"`
		ApparmorProfile string     `json:"apparmorProfile"`
	} `json:"process"`
	Linux struct {
		Namespaces  []specs.LinuxNamespace `json:"namespaces"`
		UIDMappings []specs.LinuxIDMapping `json:"uidMappings"`
		GIDMappings []specs.LinuxIDMapping `json:"gidMappings"`
		Sysctl      map[string]string      `json:"sysctl"`
		CgroupsPath string                 `json:"cgroupsPath"`
		Resources   json.RawMessage        `json:"resources"` // see resources
		MountLabel  string                 `json:"mountLabel"`
		IntelRdt    json.RawMessage        `json:"intelRdt"`
	} `json:"linux"`

	sandboxShares *uint64 // instead of resources; nil for a spec from a file
}

// SandboxSpec is the part of an OCI spec that a sandbox of the Sandbox API needs. To encode
// or decode a whole [specs.Spec] would cost 0.3 MB that stay: package encoding/json keeps
// tables of all types below it.
type SandboxSpec struct {
	Version     string            `json:"ociVersion"`
	Hostname    string            `json:"hostname,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Process     struct {
		User specs.User `json:"user"`
		Args []string   `json:"args"`
		Cwd  string     `json:"cwd"`
	} `json:"process"`
	Linux struct {
		Namespaces  []specs.LinuxNamespace `json:"namespaces,omitempty"`
		UIDMappings []specs.LinuxIDMapping `json:"uidMappings,omitempty"`
		GIDMappings []specs.LinuxIDMapping `json:"gidMappings,omitempty"`
		Sysctl      map[string]string      `json:"sysctl,omitempty"`
		CgroupsPath string                 `json:"cgroupsPath,omitempty"`
		Resources   struct {
			CPU struct {
				Shares uint64 `json:"shares,omitempty"`
			} `json:"cpu"`
		} `json:"resources"`
	} `json:"linux"`
}

// spec returns what readSpec would, had the spec been written to a bundle.
func (s *SandboxSpec) spec() *spec {
	out := &spec{Version: s.Version, Hostname: s.Hostname, Annotations: s.Annotations}
	out.Process.User = s.Process.User
	out.Linux.Namespaces = s.Linux.Namespaces
	out.Linux.UIDMappings, out.Linux.GIDMappings = s.Linux.UIDMappings, s.Linux.GIDMappings
	out.Linux.Sysctl, out.Linux.CgroupsPath = s.Linux.Sysctl, s.Linux.CgroupsPath
	if shares := s.Linux.Resources.CPU.Shares; shares != 0 {
		out.sandboxShares = &shares
	}
	return out
}

// readSpec reads the config.json of a bundle.
func readSpec(bundle string) (*spec, error) {
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the OCI spec: %w", err)
	}
	var s spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("cannot decode %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return &s, nil
}

// resources decodes the limits of the container's cgroup, nil if there are none.
func (s *spec) resources() (*specs.LinuxResources, error) {
	if len(s.Linux.Resources) == 0 {
		return nil, nil
	}
	r := new(specs.LinuxResources)
	if err := json.Unmarshal(s.Linux.Resources, r); err != nil {
		return nil, fmt.Errorf("cannot decode linux.resources of the OCI spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// sandboxResources are the resources that mean something to a cgroup without
// processes, which devices do not. The type with all of them costs 60 kB of tables when
// it is first decoded (encoding/json.typeFields), and what containerd gives to sandboxes
// is nearly always the same and little.
func (s *spec) sandboxResources() (*specs.LinuxResources, error) {
	if s.sandboxShares != nil {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: s.sandboxShares}}, nil
	}
	var usual struct {
		Devices json.RawMessage `json:"devices"`
		CPU     struct {
			Shares *uint64 `json:"shares"`
		} `json:"cpu"`
	}
	d := json.NewDecoder(bytes.NewReader(s.Linux.Resources))
	d.DisallowUnknownFields()
	if d.Decode(&usual) != nil {
		return s.resources()
	}
	return &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: usual.CPU.Shares}}, nil
}

// changeSpec sets fields of "linux" in the config.json of a bundle. All else stays
// as it is, known or not.
func changeSpec(bundle string, linux map[string]any) error {
	path := filepath.Join(bundle, "config.json")
	var whole, section map[string]json.RawMessage
	if err := readJSON(path, &whole); err != nil {
		return err
	}
	if err := json.Unmarshal(whole["linux"], &section); err != nil {
		return fmt.Errorf("cannot decode %s: %w", path, err)
	}
	for name, value := range linux {
		data, err := json.Marshal(value)
		if err != nil {
			return err
		}
		section[name] = data
	}
	data, err := json.Marshal(section)
	if err != nil {
		return err
	}
	whole["linux"] = data
	return writeJSON(path, whole)
}

func (s *spec) isSandbox() bool {
	return s.Annotations[containerTypeAnnotation] == containerTypeSandbox
}

// namespace returns the spec's entry for a type of namespace. The second result
// is false if there is none: then it is the host's.
func (s *spec) namespace(t specs.LinuxNamespaceType) (specs.LinuxNamespace, bool) {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == t {
			return ns, true
		}
	}
	return specs.LinuxNamespace{}, false
}

// ownsPIDNamespace says whether the container gets a PID namespace of its own,
// so that the kernel kills all of its processes when its init ends
// (pid_namespaces(7)).
func (s *spec) ownsPIDNamespace() bool {
	ns, ok := s.namespace(specs.PIDNamespace)
	return ok && ns.Path == ""
}
