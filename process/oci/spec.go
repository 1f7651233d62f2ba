package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Annotations through which CRI tells a runtime whether a container is a sandbox, and to
// which sandbox it belongs. Source: containerd, internal/cri/annotations.
const (
	ContainerTypeAnnotation = "io.kubernetes.cri.container-type"
	SandboxIDAnnotation     = "io.kubernetes.cri.sandbox-id"
	ContainerTypeSandbox    = "sandbox"
)

// WriteSpec replaces the config.json of a bundle, or leaves it as it was.
func WriteSpec(bundle string, data []byte) error {
	return ReplaceFile(filepath.Join(bundle, "config.json"), data)
}

// ReadSpec reads the config.json of a bundle.
func ReadSpec(bundle string) (*specs.Spec, error) {
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the OCI spec: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("cannot decode %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	return Complete(s), nil
}

// Complete returns the spec with empty sections "process" and "linux" where it has none.
func Complete(s specs.Spec) *specs.Spec {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	return &s
}

// clientSpec is the name under which a bundle keeps the client's config.json while a
// changed one is in its place.
const clientSpec = "config.client.json"

// RestoreSpec puts the client's spec back in place, so that a task can be created from the
// bundle once more: the changed spec has paths of namespaces that no longer exist.
func RestoreSpec(bundle string) error {
	kept := filepath.Join(bundle, clientSpec)
	err := os.Rename(kept, filepath.Join(bundle, "config.json"))
	if err == nil {
		// If the spec was not changed after all, both names are links to one file, and
		// rename(2) does nothing.
		err = os.Remove(kept)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot restore the OCI spec: %w", err)
	}
	return nil
}

// keepSpec keeps the client's spec as clientSpec, unless it is there already.
func keepSpec(bundle string) error {
	err := os.Link(filepath.Join(bundle, "config.json"), filepath.Join(bundle, clientSpec))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot keep the OCI spec: %w", err)
	}
	return nil
}

// ChangeSpec sets fields of "linux" in the config.json of a bundle. All other fields stay as
// they are, even unknown ones. [RestoreSpec] undoes the change.
func ChangeSpec(bundle string, linux map[string]any) error {
	path := filepath.Join(bundle, "config.json")
	if err := keepSpec(bundle); err != nil {
		return err
	}
	var whole, section map[string]json.RawMessage
	if err := ReadJSON(path, &whole); err != nil {
		return err
	}
	if whole == nil {
		return fmt.Errorf("cannot change %s: it holds no spec: %w", path, errdefs.ErrInvalidArgument)
	}
	if linux := whole["linux"]; linux != nil {
		if err := json.Unmarshal(linux, &section); err != nil {
			return fmt.Errorf("cannot decode %s: %w", path, err)
		}
	}
	if section == nil {
		section = make(map[string]json.RawMessage)
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
	return WriteJSON(path, whole)
}

// IsSandbox reports whether the annotations of a spec ask for a sandbox.
func IsSandbox(s *specs.Spec) bool {
	return s.Annotations[ContainerTypeAnnotation] == ContainerTypeSandbox
}

// NamespaceOf returns the spec's entry for a type of namespace. The second result is false
// if there is none: the container then uses the host's namespace.
func NamespaceOf(s *specs.Spec, t specs.LinuxNamespaceType) (specs.LinuxNamespace, bool) {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == t {
			return ns, true
		}
	}
	return specs.LinuxNamespace{}, false
}

// OwnsPIDNamespace reports whether the container gets a new PID namespace, so that the
// kernel kills all of its processes when its init ends (pid_namespaces(7)).
func OwnsPIDNamespace(s *specs.Spec) bool {
	ns, ok := NamespaceOf(s, specs.PIDNamespace)
	return ok && ns.Path == ""
}
