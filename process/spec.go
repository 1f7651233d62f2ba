package process

import (
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
		Resources   *specs.LinuxResources  `json:"resources"`
		MountLabel  string                 `json:"mountLabel"`
	} `json:"linux"`
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
