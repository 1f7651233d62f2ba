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

// join has a container that is being created enter its sandbox, if it belongs to one.
// The pod's namespaces stay until the caller calls leave. The returned context ends when
// the sandbox does. join changes the spec in the container's bundle so that its paths
// lead to the pod's namespaces. It refuses a spec that would give the container a
// namespace of the host where the pod has its own.
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

// whyEnded adds to err that the sandbox has ended, if it has and err does not say so: the
// error of an OCI runtime that was killed does not give the reason.
func whyEnded(ctx context.Context, err error) error {
	var ended, told *endedError
	if err != nil && errors.As(context.Cause(ctx), &ended) && !errors.As(err, &told) {
		return fmt.Errorf("%w: %w", ended, err)
	}
	return err
}

// checkStranger checks the spec of a container whose sandbox is not in this shim. The
// sandbox may be held elsewhere, but some paths cannot lead to its namespaces. The sandbox
// of a path through this shim's pid, or through one of its threads, has ended: the path
// leads to the host's namespace, or to that of another pod whose thread has got the same
// number. A PID or user namespace path through the pid of another shim of this kind leads
// to the host's, too: only that shim knows the pod's. And only a shared shim knows which
// of its threads holds which sandbox.
func checkStranger(s *specs.Spec, sandboxID string) error {
	for _, ns := range s.Linux.Namespaces {
		pid, ok := processOfPath(ns.Path)
		switch {
		case !ok:
		case isOwnThread(pid):
			return fmt.Errorf("sandbox %s is not running: the %s namespace %s is no longer the pod's: %w", sandboxID, ns.Type, ns.Path, errdefs.ErrFailedPrecondition)
		case (ns.Type == specs.PIDNamespace || ns.Type == specs.UserNamespace || !isLeader(pid)) && runsThisProgram(pid):
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

// isOwnThread says whether the number is that of a thread of this process.
func isOwnThread(tid int) bool {
	_, err := os.Stat(filepath.Join("/proc/self/task", strconv.Itoa(tid)))
	return err == nil
}

// isLeader says whether the number is that of a process, and not of another thread.
// Both are found under /proc, though only processes are listed (proc(5), /proc/tid).
func isLeader(tid int) bool {
	number := strconv.Itoa(tid)
	status, err := os.ReadFile(filepath.Join("/proc", number, "status"))
	return err != nil || strings.Contains(string(status), "\nTgid:\t"+number+"\n")
}

// runsThisProgram says whether the process runs a program with the name of this one. It
// does not compare the files, because an upgrade may have replaced this one. The name for
// shared shims may be a link, or a copy.
func runsThisProgram(pid int) bool {
	name := func(pid string) string {
		path, err := os.Readlink("/proc/" + pid + "/exe")
		if err != nil {
			return ""
		}
		path = strings.TrimSuffix(filepath.Base(path), " (deleted)") // proc_pid_exe(5)
		return strings.Replace(path, "-shared-", "-", 1)
	}
	own := name("self")
	return own != "" && own == name(strconv.Itoa(pid))
}

// membership finds the namespaces for a container that joins a sandbox.
type membership struct {
	sandbox *sandbox
	opened  []*pod.NSFile // held open until the container has entered them
}

func (m *membership) close() {
	for _, f := range m.opened {
		f.Close()
	}
}

// apply changes the spec in a bundle where its paths do not lead to the pod's namespaces.
// Most specs need no change, because /proc/<pid of the sandbox>/ns leads to three of them.
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
		// The ID mappings belong to the pod's user namespace, so they replace those of the spec.
		pod, err := oci.ReadSpec(m.sandbox.task.Bundle)
		if err != nil {
			return err
		}
		changes["uidMappings"], changes["gidMappings"] = pod.Linux.UIDMappings, pod.Linux.GIDMappings
	}
	return oci.ChangeSpec(bundle, changes)
}

// resolve returns the path of the namespace that an entry of the container's spec asks
// for; empty for a new namespace.
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

// resolveThread resolves the types of namespaces that the sandbox's thread is in. An entry
// without a path means the pod's namespace: clients that make pods by hand omit the path.
func (m *membership) resolveThread(ns specs.LinuxNamespace) (string, error) {
	name := pod.ProcNames[ns.Type]
	pod := m.sandbox.path(name)
	if ns.Path == "" || m.sandbox.isPath(ns.Path, name) {
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

// resolvePID resolves the path where CRI expects the pod's PID namespace to that
// namespace, because the sandbox's thread itself is in the host's. Another path may lead
// to the PID namespace of another container (CRI's mode TARGET), but not to the host's.
func (m *membership) resolvePID(ctx context.Context, ns specs.LinuxNamespace) (string, error) {
	if m.sandbox.isPath(ns.Path, "pid") && m.sandbox.own[ns.Type] {
		init, err := m.sandbox.needPodInit(ctx)
		if err != nil {
			return "", err
		}
		return init.ns.Path(), nil
	}
	return m.resolveOther(ns)
}

// resolveUser resolves the path where CRI expects the pod's user namespace, or an entry
// without a path, to that namespace.
func (m *membership) resolveUser(ns specs.LinuxNamespace) (string, error) {
	userns := m.sandbox.userns
	if userns == nil {
		return m.resolveOther(ns)
	}
	if ns.Path == "" || m.sandbox.isPath(ns.Path, "user") {
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

// resolveOther refuses the host's namespace where the pod has its own. It compares the
// namespaces, as many paths lead to one. It returns a path through the open file, so that
// the OCI runtime enters the namespace that was checked.
func (m *membership) resolveOther(ns specs.LinuxNamespace) (string, error) {
	if ns.Path == "" {
		return "", nil
	}
	if name := pod.ProcNames[ns.Type]; m.sandbox.isPath(ns.Path, name) {
		ns.Path = m.sandbox.path(name) // by a former pid it may lead nowhere, or to another process's
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
		return "", refuse(ns, "is the host's, but the pod has its own")
	}
	return f.Path(), nil
}

// open opens the path of an entry and keeps it open until close.
func (m *membership) open(ns specs.LinuxNamespace) (*pod.NSFile, error) {
	f, err := pod.Open(ns.Path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the container's %s namespace: %w", ns.Type, err)
	}
	m.opened = append(m.opened, f)
	return f, nil
}

// refuse returns the error for a namespace that the container must not get. Its kind is not
// ErrNotImplemented, because containerd would take the shim for one with an older API and
// try again.
func refuse(ns specs.LinuxNamespace, what string) error {
	return fmt.Errorf("the container's %s namespace %s %s: %w", ns.Type, ns.Path, what, errdefs.ErrInvalidArgument)
}
