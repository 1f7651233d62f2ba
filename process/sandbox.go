package process

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"containerd-shim-pause-v2/cgroups"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sandbox is the body of a task without any process: the namespaces of a pod,
// held by a thread of the shim. To a client it looks like a container that runs
// the pause program of Kubernetes as its init. Its pid is the shim's, so that
// /proc/<pid>/ns/{net,ipc,uts} are the pod's.
type sandbox struct {
	task *Task
	host *Supervisor
	// initPID says that the sandbox has a PID namespace, in which the pause
	// program would be the init.
	initPID    bool
	own        ownNamespaces
	ids        map[specs.LinuxNamespaceType]nsID // of net, ipc and uts, own or not
	namespaces *namespaces
	fifos      []*os.File

	// joins is held for reading while a container joins the namespaces, so that
	// the thread does not leave them meanwhile: the paths would lead to the host's.
	joins sync.RWMutex
	ended bool // guarded by joins, like namespaces and ids
	once  sync.Once
}

func (h *Supervisor) newSandbox(r CreateRequest, spec *spec) (*Task, error) {
	own, err := spec.ownNamespaces()
	if err != nil {
		return nil, err
	}
	sysctls, err := checkSandbox(spec, own)
	if err != nil {
		return nil, err
	}
	t := &Task{ID: r.ID, Bundle: r.Bundle}
	s := &sandbox{task: t, host: h, own: own}
	_, s.initPID = spec.namespace(specs.PIDNamespace)
	t.body = s
	t.init = newProcess(r.ID, "", r.Stdio, h.events, s)
	t.init.setPID(os.Getpid())
	if err := h.seat(s); err != nil {
		return nil, err
	}
	err = s.setUp(r, spec, sysctls)
	s.joins.Unlock()
	if err != nil {
		return nil, joinErrors(err, s.discard(context.Background()))
	}
	return t, nil
}

func (s *sandbox) setUp(r CreateRequest, spec *spec, sysctls []sysctl) (err error) {
	record := bundleRecord{Options: r.Options, Sandbox: true, CgroupsPath: spec.Linux.CgroupsPath}
	if err := writeRecord(r.Bundle, record); err != nil {
		return err
	}
	if s.fifos, err = holdFifos(r.Stdio); err != nil {
		return err
	}
	if err := s.makeCgroup(spec, r.Options.SystemdCgroup); err != nil {
		return err
	}
	s.namespaces, err = enterNamespaces(s.host.thread, spec.Linux.Namespaces, func() error {
		if err := setNames(spec); err != nil {
			return err
		}
		if err := writeSysctls(sysctls); err != nil {
			return err
		}
		var err error
		s.ids, err = threadNamespaces()
		return err
	})
	return err
}

// checkSandbox refuses what cannot be done before anything is made, and returns
// the sysctls to write.
func checkSandbox(s *spec, own ownNamespaces) ([]sysctl, error) {
	if (s.Hostname != "" || s.Domainname != "") && !own[specs.UTSNamespace] {
		return nil, fmt.Errorf("a host name or domain name cannot be set, because the sandbox uses the host's UTS namespace: %w", errdefs.ErrInvalidArgument)
	}
	return sandboxSysctls(s.Linux.Sysctl, own)
}

// seat gives the thread to the sandbox, and makes it known with joins locked:
// nobody can join before it is complete.
func (h *Supervisor) seat(s *sandbox) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tenant != nil {
		return fmt.Errorf("this shim holds sandbox %s already: %w", h.tenant.task.ID, errdefs.ErrFailedPrecondition)
	}
	if _, ok := h.sandboxes[s.task.ID]; ok {
		return fmt.Errorf("sandbox %s exists: %w", s.task.ID, errdefs.ErrAlreadyExists)
	}
	s.joins.Lock()
	h.tenant = s
	h.sandboxes[s.task.ID] = s
	return nil
}

// unseat takes the thread from the sandbox.
func (h *Supervisor) unseat(s *sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tenant == s {
		h.tenant = nil
	}
}

// forget lets the id of a deleted sandbox go.
func (h *Supervisor) forget(s *sandbox) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sandboxes[s.task.ID] == s {
		delete(h.sandboxes, s.task.ID)
	}
}

func (s *sandbox) makeCgroup(spec *spec, systemd bool) error {
	path := spec.Linux.CgroupsPath
	if path == "" {
		return nil
	}
	create := cgroups.Create
	if systemd {
		create = cgroups.CreateSystemd
	}
	cgroup, err := create(path, spec.Linux.Resources)
	if err != nil {
		return fmt.Errorf("cannot make the sandbox's cgroup: %w", err)
	}
	s.task.setCgroup(cgroup, nil)
	return nil
}

// setNames runs in the sandbox's thread.
func setNames(s *spec) error {
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("cannot set the host name to %q: %w", s.Hostname, err)
		}
	}
	if s.Domainname != "" {
		if err := unix.Setdomainname([]byte(s.Domainname)); err != nil {
			return fmt.Errorf("cannot set the domain name to %q: %w", s.Domainname, err)
		}
	}
	return nil
}

// holdFifos opens the output fifos that a client has made, as a process that
// never writes would hold them: the client sees their end when the sandbox ends.
func holdFifos(sio Stdio) (held []*os.File, err error) {
	for _, path := range []string{sio.Stdout, sio.Stderr} {
		st, err := os.Stat(path)
		if err != nil || st.Mode()&os.ModeNamedPipe == 0 {
			continue // nothing is written, so nothing is needed
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			closeAll(held...)
			return nil, fmt.Errorf("cannot open the output: %w", err)
		}
		held = append(held, f)
	}
	return held, nil
}

func (s *sandbox) watch() {}

func (s *sandbox) start(context.Context, *Process) error { return nil }

// signal does what the signal would do to the pause program. As init of a PID
// namespace that takes SIGINT and SIGTERM for a wish to end, reaps on SIGCHLD,
// and is not touched by any other signal but SIGKILL (pid_namespaces(7)). In the
// host's PID namespace signals have their default action.
// Source: kubernetes, build/pause/linux/pause.c.
func (s *sandbox) signal(sig unix.Signal) error {
	switch {
	case sig == unix.SIGKILL:
		go s.end(exitSignalBase + int(sig))
	case sig == unix.SIGINT, sig == unix.SIGTERM:
		go s.end(0)
	case !s.initPID && endsByDefault(sig):
		go s.end(exitSignalBase + int(sig))
	}
	return nil
}

// endsByDefault says whether a signal ends a process that has no handler for it
// (signal(7)).
func endsByDefault(sig unix.Signal) bool {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT, // ignored
		unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU: // stops
		return false
	}
	return true
}

// end lets the sandbox die: no container can join any more, the namespaces go
// as soon as those that are just joining have, then the exit is told.
func (s *sandbox) end(status int) {
	s.once.Do(func() {
		exit := Exit{Status: uint32(status), At: time.Now()}
		s.letGo()
		s.task.init.stop(exit, func(st Status) {
			if err := writeExit(s.task.Bundle, st); err != nil {
				log.L.WithError(err).WithField("id", s.task.ID).Error("the exit status is not recorded")
			}
		})
	})
}

// letGo frees the namespaces and fifos. A thread that cannot be brought back
// keeps them, and holds no other sandbox.
func (s *sandbox) letGo() {
	s.joins.Lock()
	s.ended = true
	held := s.namespaces
	s.namespaces = nil
	var err error
	if held != nil {
		err = held.release()
	}
	s.joins.Unlock()
	closeAll(s.fifos...)
	if err != nil {
		log.L.WithError(err).WithField("id", s.task.ID).Error("the namespaces of the pod are not freed before the shim ends")
		return
	}
	s.host.unseat(s)
}

func (s *sandbox) remove(ctx context.Context, _ *Process) error {
	if cgroup := s.task.group(); cgroup != nil {
		ctx, cancel := context.WithTimeout(ctx, removeTimeout)
		defer cancel()
		if err := cgroup.Remove(ctx); err != nil {
			return err
		}
	}
	s.host.forget(s)
	return nil
}

// removeTimeout bounds how long a cgroup may stay busy.
const removeTimeout = 10 * time.Second

func (s *sandbox) discard(ctx context.Context) error {
	s.letGo()
	return s.remove(ctx, nil)
}

func (s *sandbox) signalAll(sig unix.Signal) error { return s.signal(sig) }

func (s *sandbox) pids() ([]int, error) {
	return []int{os.Getpid()}, nil
}

func (s *sandbox) update(_ context.Context, r *specs.LinuxResources) error {
	cgroup, err := s.task.needCgroup(verbUpdate)
	if err != nil {
		return err
	}
	return cgroup.Update(r)
}

func (s *sandbox) newExec(*Task, string, Stdio, *specs.Process) (*Process, error) {
	return nil, fmt.Errorf("task %s is a sandbox without a process or root file system, nothing can be executed in it: %w", s.task.ID, errdefs.ErrNotImplemented)
}

func (s *sandbox) checkpoint(context.Context, CheckpointOptions) error {
	return fmt.Errorf("it is a sandbox without a process: %w", errdefs.ErrNotImplemented)
}
