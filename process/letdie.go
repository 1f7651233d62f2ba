package process

import (
	"context"
	"fmt"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// On cgroup v1 a frozen process does not die of a SIGKILL, and the init of a PID
// namespace ends only after all others in it (zap_pid_ns_processes in
// kernel/pid_namespace.c). So a kill has to thaw everything that must die with the init.

// letDie thaws the groups in the background, for up to freezeTimeout, so that processes
// that were sent a SIGKILL can die. A group may be nil.
func (h *Supervisor) letDie(id string, groups ...*cgroups.Cgroup) {
	for _, group := range groups {
		if group == nil {
			continue
		}
		h.inBackground(func() {
			ctx, cancel := context.WithTimeout(context.Background(), freezeTimeout)
			defer cancel()
			if err := group.LetDie(ctx); err != nil {
				log.L.WithError(err).WithField("id", id).Warn("killed processes have not ended: their cgroup is frozen, or they wait for I/O")
			}
		})
	}
}

// letDie thaws the container after a kill. If its init is that of a PID namespace, the
// containers that share the namespace die with it, so letDie thaws them too.
func (c *container) letDie() {
	groups := []*cgroups.Cgroup{c.task.group()}
	if !c.shared {
		groups = append(groups, c.supervisor.sharersWith(c.child)...)
	}
	c.supervisor.letDie(c.task.ID, groups...)
}

// killPodInit kills the pod init, and with it all containers that share its PID
// namespace.
func (s *sandbox) killPodInit(i *podInit) error {
	groups := append(s.supervisor.sharersOf(i.ns.ID), s.task.group())
	if err := i.child.Signal(unix.SIGKILL); err != nil {
		return err
	}
	s.supervisor.letDie(s.task.ID, groups...)
	return nil
}

// addSharer registers a container that lives in another's PID namespace.
func (h *Supervisor) addSharer(c *container) {
	id, err := pod.StatNamespace(fmt.Sprintf("/proc/%d/ns/pid", c.child.Pid))
	if err != nil {
		return // it has ended
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[c.task.ID]; e != nil {
		e.pidns = id
	}
}

func (h *Supervisor) removeSharer(c *container) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.entries[c.task.ID]; e != nil {
		e.pidns = pod.NSID{}
	}
}

// sharersOf returns the cgroups of the containers that share a PID namespace, without
// that of its init.
func (h *Supervisor) sharersOf(pidns pod.NSID) (groups []*cgroups.Cgroup) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.entries {
		if e.pidns == pidns && e.task != nil {
			groups = append(groups, e.task.group())
		}
	}
	return groups
}

// sharersWith returns the cgroups of the containers that share an init's PID namespace.
// The init may have been killed. If it has been reaped, the result is nil.
func (h *Supervisor) sharersWith(init *reap.Child) []*cgroups.Cgroup {
	if !h.hasSharers() {
		return nil
	}
	id, err := pod.StatNamespace(fmt.Sprintf("/proc/%d/ns/pid", init.Pid))
	if err != nil || errdefs.IsNotFound(init.Signal(0)) {
		return nil // the init has been reaped, and all others ended before it
	}
	return h.sharersOf(id)
}

func (h *Supervisor) hasSharers() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.entries {
		if e.pidns != (pod.NSID{}) {
			return true
		}
	}
	return false
}
