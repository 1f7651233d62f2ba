package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// join lets a container that is being created into the sandbox that it belongs
// to, if any, until leave is called: as long, the namespaces stay. The context that
// it returns ends when the sandbox does. The spec in the container's bundle is
// changed to lead to the pod's namespaces. A spec by which the container would get a
// namespace of the host where the pod has its own is refused.
func (h *Supervisor) join(ctx context.Context, bundle string, s *specs.Spec) (_ context.Context, leave func(), err error) {
	id, member := s.Annotations[oci.SandboxIDAnnotation]
	if !member {
		return ctx, func() {}, nil
	}
	sb := h.pod(id)
	if sb == nil {
		return ctx, func() {}, checkStranger(s, id)
	}
	ctx, left, err := sb.enter(ctx)
	if err != nil {
		return nil, nil, err
	}
	m := &membership{sandbox: sb}
	part := func() {
		m.close()
		left()
	}
	applied := false
	defer func() {
		if !applied {
			part()
		}
	}()
	if err := m.apply(ctx, bundle, s); err != nil {
		return nil, nil, whyEnded(ctx, err)
	}
	applied = true
	return ctx, part, nil
}

// whyEnded adds to an error that the sandbox has ended meanwhile, if it has: then
// an OCI runtime that was killed says nothing of it.
func whyEnded(ctx context.Context, err error) error {
	var ended, told *endedError
	if err != nil && errors.As(context.Cause(ctx), &ended) && !errors.As(err, &told) {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// checkStranger is for a container whose sandbox is not in this shim. It may be
// elsewhere, but when it has ended, paths of its former thread are the host's. If
// another shim of this kind holds it, only that knows the pod's PID and user
// namespace: by the paths under its pid are the host's.
func checkStranger(s *specs.Spec, sandboxID string) error {
	for _, ns := range s.Linux.Namespaces {
		pid, ok := processOfPath(ns.Path)
		switch {
		case !ok:
		case pid == os.Getpid():
			return fmt.Errorf("sandbox %s is not running: the %s namespace %s is the host's: %w", sandboxID, ns.Type, ns.Path, errdefs.ErrFailedPrecondition)
		case (ns.Type == specs.PIDNamespace || ns.Type == specs.UserNamespace) && runsThisProgram(pid):
			return fmt.Errorf("sandbox %s is in another shim: the %s namespace %s is not the pod's: %w", sandboxID, ns.Type, ns.Path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// processOfPath returns the pid in a path "/proc/<pid>/...".
func processOfPath(path string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(path, "/proc/")
	if !ok {
		return 0, false
	}
	name, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(name)
	return pid, err == nil
}

// runsThisProgram compares by name: the file may have been replaced meanwhile.
func runsThisProgram(pid int) bool {
	name := func(pid string) string {
		path, err := os.Readlink("/proc/" + pid + "/exe")
		if err != nil {
			return ""
		}
		return strings.TrimSuffix(filepath.Base(path), " (deleted)") // proc_pid_exe(5)
	}
	own := name("self")
	return own != "" && own == name(strconv.Itoa(pid))
}

// membership finds the namespaces of a container in a sandbox.
type membership struct {
	sandbox *sandbox
	opened  []*pod.NSFile // held open until the container has entered them
}

func (m *membership) close() {
	for _, f := range m.opened {
		f.Close()
	}
}

// apply changes the spec in a bundle where it must be. Most are right as they
// are, since /proc/<pid of the sandbox>/ns has three of the pod's namespaces.
func (m *membership) apply(ctx context.Context, bundle string, s *specs.Spec) error {
	list := slices.Clone(s.Linux.Namespaces)
	for i := range list {
		path, err := m.resolve(ctx, list[i])
		if err != nil {
			return err
		}
		list[i].Path = path
	}
	if slices.Equal(list, s.Linux.Namespaces) {
		return nil
	}
	changes := map[string]any{"namespaces": list}
	if ns, ok := oci.NamespaceOf(s, specs.UserNamespace); ok && ns.Path == "" && m.sandbox.userns != nil {
		// The mappings are the pod's as well, whatever they were to be.
		pod, err := oci.ReadSpec(m.sandbox.task.Bundle)
		if err != nil {
			return err
		}
		changes["uidMappings"], changes["gidMappings"] = pod.Linux.UIDMappings, pod.Linux.GIDMappings
	}
	return oci.ChangeSpec(bundle, changes)
}

// resolve returns the path by which the container gets the namespace that an
// entry of its spec asks for; empty for a new one.
func (m *membership) resolve(ctx context.Context, ns specs.LinuxNamespace) (string, error) {
	switch ns.Type {
	case specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace:
		return m.resolveThread(ns)
	case specs.PIDNamespace:
		return m.resolvePID(ctx, ns)
	case specs.UserNamespace:
		return m.resolveUser(ns)
	}
	return m.resolveOther(ns)
}

// resolveThread is for the types of namespaces that the sandbox's thread is in.
// Without a path the pod's is meant: a container of a pod made by hand.
func (m *membership) resolveThread(ns specs.LinuxNamespace) (string, error) {
	pod := m.sandbox.path(pod.ProcNames[ns.Type])
	if ns.Path == "" {
		return pod, nil
	}
	f, err := m.open(ns)
	if err != nil {
		return "", err
	}
	if f.ID != m.sandbox.ids[ns.Type] {
		return "", refuse(ns, "is not the pod's")
	}
	return pod, nil
}

// resolvePID finds the pod's PID namespace for the path under which CRI expects
// it, though the sandbox's thread is in the host's. Another path may lead to that
// of another container (CRI's mode TARGET), but not to the host's.
func (m *membership) resolvePID(ctx context.Context, ns specs.LinuxNamespace) (string, error) {
	if ns.Path == m.sandbox.path("pid") && m.sandbox.own[ns.Type] {
		init, err := m.sandbox.needPodInit(ctx)
		if err != nil {
			return "", err
		}
		return init.ns.Path(), nil
	}
	return m.resolveOther(ns)
}

// resolveUser finds the pod's user namespace for the path under which CRI expects
// it, or for none.
func (m *membership) resolveUser(ns specs.LinuxNamespace) (string, error) {
	userns := m.sandbox.userns
	if userns == nil {
		return m.resolveOther(ns)
	}
	if ns.Path == "" || ns.Path == m.sandbox.path("user") {
		return userns.Path(), nil
	}
	f, err := m.open(ns)
	if err != nil {
		return "", err
	}
	if f.ID != userns.ID {
		return "", refuse(ns, "is not the pod's")
	}
	return userns.Path(), nil
}

// resolveOther refuses the host's namespace where the pod has its own, however
// the path is spelled. What it leads to is held open: so it is still the same
// when the OCI runtime gets there.
func (m *membership) resolveOther(ns specs.LinuxNamespace) (string, error) {
	if ns.Path == "" {
		return "", nil
	}
	f, err := m.open(ns)
	if err != nil {
		return "", err
	}
	host, err := pod.HostNamespace(ns.Type)
	if err != nil {
		return "", err
	}
	if f.ID == host && m.sandbox.own[ns.Type] {
		return "", refuse(ns, "is the host's, but the pod has one of its own")
	}
	return f.Path(), nil
}

// open opens the path of an entry, and holds it open until the container has joined.
func (m *membership) open(ns specs.LinuxNamespace) (*pod.NSFile, error) {
	f, err := pod.Open(ns.Path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the container's %s namespace: %w", ns.Type, err)
	}
	m.opened = append(m.opened, f)
	return f, nil
}

// refuse says what is wrong. The kind is not ErrNotImplemented: containerd takes
// that for a shim of an older API and tries again.
func refuse(ns specs.LinuxNamespace, what string) error {
	return fmt.Errorf("the container's %s namespace %s %s: %w", ns.Type, ns.Path, what, errdefs.ErrInvalidArgument)
}
