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

// Annotations with which CRI tells a runtime what a container is to its pod.
// Source: containerd, internal/cri/annotations.
const (
	ContainerTypeAnnotation = "io.kubernetes.cri.container-type"
	SandboxIDAnnotation     = "io.kubernetes.cri.sandbox-id"
	ContainerTypeSandbox    = "sandbox"
)

// WriteSpec writes the config.json of a bundle, or leaves it as it was.
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

// Complete returns the spec with the sections that are missing in it as empty ones.
func Complete(s specs.Spec) *specs.Spec {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	return &s
}

// clientSpec is where a bundle keeps the config.json that its client has made, while
// a changed one is in its place.
const clientSpec = "config.client.json"

// RestoreSpec gives the bundle the spec of its client back, so that a task can be
// created of it once more: the changed one leads to namespaces that will have gone.
func RestoreSpec(bundle string) error {
	kept := filepath.Join(bundle, clientSpec)
	err := os.Rename(kept, filepath.Join(bundle, "config.json"))
	if err == nil {
		// Where the spec has not been changed after all, both are the same file, and
		// rename(2) leaves them as they are.
		err = os.Remove(kept)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot restore the OCI spec: %w", err)
	}
	return nil
}

// keepSpec keeps the spec of the client, unless that has been done.
func keepSpec(bundle string) error {
	err := os.Link(filepath.Join(bundle, "config.json"), filepath.Join(bundle, clientSpec))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot keep the OCI spec: %w", err)
	}
	return nil
}

// ChangeSpec sets fields of "linux" in the config.json of a bundle. All else stays
// as it is, known or not. [RestoreSpec] undoes it.
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

// IsSandbox says whether the annotations of a spec ask for a sandbox.
func IsSandbox(s *specs.Spec) bool {
	return s.Annotations[ContainerTypeAnnotation] == ContainerTypeSandbox
}

// NamespaceOf returns the spec's entry for a type of namespace. The second result
// is false if there is none: then it is the host's.
func NamespaceOf(s *specs.Spec, t specs.LinuxNamespaceType) (specs.LinuxNamespace, bool) {
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == t {
			return ns, true
		}
	}
	return specs.LinuxNamespace{}, false
}

// OwnsPIDNamespace says whether the container gets a PID namespace of its own,
// so that the kernel kills all of its processes when its init ends
// (pid_namespaces(7)).
func OwnsPIDNamespace(s *specs.Spec) bool {
	ns, ok := NamespaceOf(s, specs.PIDNamespace)
	return ok && ns.Path == ""
}
