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
// /proc/<pid>/ns/{net,ipc,uts} are the pod's. The pod's user namespace, if it has
// one, is held by an open file; its PID namespace needs a process, see [podInit].
type sandbox struct {
	task    *Task
	host    *Supervisor
	options Options
	pid     int // of the thread, which is the shim's main one
	// initRoot is where the root directory of the pod's init is, if there is one.
	initRoot string
	// initPID says that the sandbox has a PID namespace, in which the pause
	// program would be the init.
	initPID    bool
	own        ownNamespaces
	ids        map[specs.LinuxNamespaceType]nsID // of net, ipc and uts, own or not
	namespaces *namespaces
	userns     *nsFile // nil if it is the host's
	fifos      []*os.File
	files      *PodFiles // nil if they are the client's
	hooks      *hooks    // nil if there are none

	// joins is held for reading while a container joins the namespaces, so that
	// the thread does not leave them meanwhile: the paths would lead to the host's.
	// It comes before bringUp, and that before mu.
	joins sync.RWMutex
	ended bool // guarded by joins, like the fields above it
	once  sync.Once

	bringUp sync.Mutex // held while the pod's init is being started
	mu      sync.Mutex
	init    *podInit // guarded by mu; nil before a container needs it
}

func (h *Supervisor) newSandbox(ctx context.Context, r CreateRequest, spec *specs.Spec) (*Task, error) {
	if err := checkSandboxPaths(spec.Linux.Namespaces); err != nil {
		return nil, err
	}
	own, err := ownNamespacesOf(spec)
	if err != nil {
		return nil, err
	}
	sysctls, err := checkSandbox(spec, own)
	if err != nil {
		return nil, err
	}
	pid, err := h.thread.id()
	if err != nil {
		return nil, err
	}
	t := &Task{ID: r.ID, Bundle: r.Bundle}
	s := &sandbox{task: t, host: h, options: r.Options, pid: pid, initRoot: podInitRootOf(r), own: own}
	s.hooks = newHooks(spec, r.ID, r.Bundle, pid)
	_, s.initPID = namespaceOf(spec, specs.PIDNamespace)
	t.body = s
	events := h.events
	if r.Sandbox {
		events = silence{}
	}
	t.init = newProcess(r.ID, "", r.Stdio, events, s)
	t.init.setPID(pid)
	if err := h.seat(s); err != nil {
		return nil, err
	}
	err = s.setUp(ctx, r, spec, sysctls)
	s.joins.Unlock()
	if err != nil {
		return nil, joinErrors(err, s.discard(context.WithoutCancel(ctx)))
	}
	return t, nil
}

func (s *sandbox) setUp(ctx context.Context, r CreateRequest, spec *specs.Spec, sysctls []sysctl) (err error) {
	record := bundleRecord{Options: r.Options, Sandbox: true, CgroupsPath: spec.Linux.CgroupsPath, InitRoot: s.initRoot, Files: r.Files}
	if err := writeRecord(r.Bundle, record); err != nil {
		return err
	}
	if err := r.Files.make(); err != nil {
		return fmt.Errorf("cannot make the pod's files: %w", err)
	}
	s.files = r.Files
	if s.fifos, err = holdFifos(r.Stdio); err != nil {
		return err
	}
	if err := s.makeCgroup(spec, r.Options.SystemdCgroup); err != nil {
		return err
	}
	if err := s.makeNamespaces(spec, sysctls); err != nil {
		return err
	}
	s.host.reaper.hold()
	defer s.host.reaper.release()
	return s.hooks.created(ctx, s.host.thread)
}

// makeNamespaces puts the thread into the pod's namespaces and sets what the spec
// sets in them.
func (s *sandbox) makeNamespaces(spec *specs.Spec, sysctls []sysctl) (err error) {
	list := spec.Linux.Namespaces
	if s.own[specs.UserNamespace] {
		s.host.reaper.hold()
		defer s.host.reaper.release()
		holder, err := startHolder(spec, newNamespaces(list))
		if err != nil {
			return err
		}
		defer func() { s.userns = holder.take() }()
		list = holder.fill(list)
		if err := holder.translate(sysctls); err != nil {
			return err
		}
	}
	s.namespaces, err = enterNamespaces(s.host.thread, list, func() error {
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
func checkSandbox(s *specs.Spec, own ownNamespaces) ([]sysctl, error) {
	if (s.Hostname != "" || s.Domainname != "") && !own[specs.UTSNamespace] {
		return nil, fmt.Errorf("a host name or domain name cannot be set, because the sandbox uses the host's UTS namespace: %w", errdefs.ErrInvalidArgument)
	}
	if err := checkUserNamespace(s); err != nil {
		return nil, err
	}
	if err := checkHooks(s.Hooks); err != nil {
		return nil, err
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

func (s *sandbox) makeCgroup(spec *specs.Spec, systemd bool) error {
	path := spec.Linux.CgroupsPath
	if path == "" {
		return nil
	}
	cgroup, err := cgroups.Create(path, systemd, spec.Linux.Resources)
	if err != nil {
		return fmt.Errorf("cannot make the sandbox's cgroup: %w", err)
	}
	s.task.setCgroup(cgroup, nil)
	return nil
}

// setNames runs in the sandbox's thread.
func setNames(s *specs.Spec) error {
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

// path is where CRI looks for the pod's namespace, by the name under
// /proc/<pid>/ns.
func (s *sandbox) path(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", s.pid, name) }

func (s *sandbox) watch() {}

func (s *sandbox) start(ctx context.Context, _ *Process) error {
	s.host.reaper.hold()
	defer s.host.reaper.release()
	err := s.hooks.started(ctx)
	if err != nil {
		go s.end(exitSignalBase + int(unix.SIGKILL))
	}
	return err
}

// signal does what the signal would do to the pause program. As init of a PID
// namespace that takes SIGINT and SIGTERM for a wish to end, reaps on SIGCHLD,
// and is not touched by any other signal but SIGKILL (pid_namespaces(7)). In the
// host's PID namespace signals have their default action. If there is an init,
// it gets the signal, and the sandbox ends with it.
// Source: kubernetes, build/pause/linux/pause.c.
func (s *sandbox) signal(sig unix.Signal) error {
	if i := s.podInit(); i != nil {
		if sig == unix.SIGKILL {
			return s.killPodInit(i)
		}
		return i.child.signal(sig)
	}
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

// letGo ends the pod's init and frees the namespaces and fifos. A thread that
// cannot be brought back keeps them, and holds no other sandbox.
func (s *sandbox) letGo() {
	s.joins.Lock() // waits for those that are joining
	s.ended = true
	s.joins.Unlock()
	s.endPodInit()
	s.task.unwatchOOM()
	s.dropCgroup()
	closeAll(s.fifos...)
	if err := s.files.unmount(); err != nil {
		log.L.WithError(err).WithField("id", s.task.ID).Error("the pod's /dev/shm is left")
	}
	if s.userns != nil {
		s.userns.Close()
	}
	if s.namespaces != nil {
		if err := s.namespaces.release(); err != nil {
			log.L.WithError(err).WithField("id", s.task.ID).Error("the namespaces of the pod are not freed before the shim ends")
			return
		}
	}
	s.host.unseat(s)
}

// dropCgroup removes the cgroup before the thread is in the host's network namespace:
// as long as it is there, cAdvisor reads the sandbox's counters by the shim's pid, and
// would take the host's for the pod's. What is busy is left to remove.
func (s *sandbox) dropCgroup() {
	if cgroup := s.task.group(); cgroup != nil {
		once, cancel := context.WithCancel(context.Background())
		cancel()
		_ = cgroup.Remove(once)
	}
}

func (s *sandbox) remove(ctx context.Context, _ *Process) error {
	if err := s.removePodInit(ctx); err != nil {
		return err
	}
	if err := s.files.remove(); err != nil {
		return err
	}
	if cgroup := s.task.group(); cgroup != nil {
		ctx, cancel := context.WithTimeout(ctx, removeTimeout)
		defer cancel()
		if err := cgroup.Remove(ctx); err != nil {
			return err
		}
	}
	s.host.reaper.hold()
	defer s.host.reaper.release()
	// They run once, and so even if the client has gone.
	if err := s.hooks.stopped(context.WithoutCancel(ctx)); err != nil {
		log.G(ctx).WithError(err).WithField("id", s.task.ID).Warn("the sandbox is deleted all the same")
	}
	s.host.forget(s)
	return removeRecord(s.task.Bundle)
}

// removeTimeout bounds how long a cgroup may stay busy.
const removeTimeout = 10 * time.Second

func (s *sandbox) discard(ctx context.Context) error {
	s.letGo()
	return s.remove(ctx, nil)
}

func (s *sandbox) signalAll(sig unix.Signal) error { return s.signal(sig) }

func (s *sandbox) pids() ([]int, error) {
	pids := []int{s.pid}
	if i := s.podInit(); i != nil {
		pids = append(pids, i.child.pid)
	}
	return pids, nil
}

func (s *sandbox) update(_ context.Context, r *specs.LinuxResources) error {
	cgroup, err := s.task.needCgroup(verbUpdate)
	if err != nil {
		return err
	}
	return cgroup.Update(r)
}

func (s *sandbox) newExec(*Task, string, Stdio, []byte) (*Process, error) {
	return nil, fmt.Errorf("task %s is a sandbox without a process or root file system, nothing can be executed in it: %w", s.task.ID, errdefs.ErrNotImplemented)
}

func (s *sandbox) checkpoint(context.Context, CheckpointOptions) error {
	return fmt.Errorf("it is a sandbox without a process: %w", errdefs.ErrNotImplemented)
}
