package process

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// join lets a container that is being created into the sandbox that it belongs
// to, if any, until leave is called: as long, the namespaces stay. It refuses a
// spec by which the container would get a namespace of the host where the pod
// has its own.
func (h *Supervisor) join(s *spec) (leave func(), err error) {
	id, member := s.Annotations[sandboxIDAnnotation]
	if !member {
		return func() {}, nil
	}
	h.mu.Lock()
	sb := h.sandboxes[id]
	h.mu.Unlock()
	if sb == nil {
		return func() {}, checkStranger(s, id)
	}
	sb.joins.RLock()
	leave = sb.joins.RUnlock
	if sb.ended {
		err = fmt.Errorf("sandbox %s has ended: %w", id, errdefs.ErrFailedPrecondition)
	} else {
		err = checkMember(s, sb)
	}
	if err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// checkStranger is for a container whose sandbox is not in this shim. It may be
// elsewhere, but when it has ended, paths of its former thread are the host's.
func checkStranger(s *spec, sandboxID string) error {
	prefix := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, ns := range s.Linux.Namespaces {
		if strings.HasPrefix(ns.Path, prefix) {
			return fmt.Errorf("sandbox %s is not running: its %s namespace %s is the host's by now: %w", sandboxID, ns.Type, ns.Path, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// checkMember refuses a container whose spec leads by a path, however that is
// spelled, to another network, IPC or UTS namespace than the pod's, or to the
// host's PID, user or other namespace where the pod has one of its own. The PID
// namespace of another container is allowed: CRI's mode TARGET is for debuggers.
func checkMember(s *spec, pod *sandbox) error {
	for _, ns := range s.Linux.Namespaces {
		if ns.Path == "" {
			continue
		}
		id, err := statNamespace(ns.Path)
		if err != nil {
			return fmt.Errorf("cannot find the container's %s namespace: %w", ns.Type, err)
		}
		if want, ok := pod.ids[ns.Type]; ok {
			if id != want {
				return fmt.Errorf("the container's %s namespace %s is not the pod's: %w", ns.Type, ns.Path, errdefs.ErrInvalidArgument)
			}
			continue
		}
		host, err := hostNamespace(ns.Type)
		if err != nil {
			return err
		}
		if id == host && pod.own[ns.Type] {
			return refuseHost(ns)
		}
	}
	return nil
}

// refuseHost says what is wrong. The kind is not ErrNotImplemented: containerd
// takes that for a shim of an older API and tries again.
func refuseHost(ns specs.LinuxNamespace) error {
	switch ns.Type {
	case specs.PIDNamespace, specs.UserNamespace:
		return fmt.Errorf("the %s namespace of the pod cannot be shared with its containers yet, and %s is the host's: %w", ns.Type, ns.Path, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("the container's %s namespace %s is the host's, but its pod has one of its own: %w", ns.Type, ns.Path, errdefs.ErrInvalidArgument)
}
