package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

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
	task       *Task
	supervisor *Supervisor
	options    oci.Options
	pid        int // of the thread, which is the shim's main one
	// initRoot is where the root directory of the pod's init is, if there is one.
	initRoot string
	// bringsInit says that the pod's init comes up with the sandbox.
	bringsInit bool
	// initPID says that the sandbox has a PID namespace, in which the pause
	// program would be the init.
	initPID bool
	own     pod.Own
	ids     map[specs.LinuxNamespaceType]pod.NSID // of net, ipc and uts, own or not
	userns  *pod.NSFile                           // nil if it is the host's
	fifos   []*os.File
	files   *pod.Files // nil if they are the client's
	hooks   *pod.Hooks // nil if there are none

	// life ends when the sandbox begins to end, with an [endedError] as the cause: then
	// whoever joins is to give up.
	life   context.Context
	giveUp context.CancelCauseFunc
	// made is closed when the sandbox is complete, or will never be. The fields
	// above do not change any more then.
	made chan struct{}
	// freed is closed when the thread has left the pod's namespaces, or for ever
	// stays in them.
	freed chan struct{}

	endOnce, freeOnce sync.Once

	bringUp sync.Mutex // held while the pod's init is being started; comes before mu
	mu      sync.Mutex
	init    *podInit // guarded by mu; nil before a container needs it
	// ended is set, under mu, before life ends.
	ended bool
	// joining counts those that need the pod's namespaces to stay: a path to them
	// leads to the host's as soon as the thread has left. It grows only under mu
	// while ended is false.
	joining sync.WaitGroup
	joiners int // guarded by mu: the same number
}

// endedError is why a container cannot join a sandbox.
type endedError struct{ id string }

func (e *endedError) Error() string { return fmt.Sprintf("sandbox %s has ended", e.id) }

// Unwrap returns the kind of the error.
func (e *endedError) Unwrap() error { return errdefs.ErrFailedPrecondition }

func (h *Supervisor) newSandbox(ctx context.Context, r CreateRequest, spec *specs.Spec, e *entry) (_ *Task, err error) {
	set, err := pod.Resolve(spec.Linux.Namespaces)
	if err != nil {
		return nil, err
	}
	defer set.Close()
	own := set.Own()
	sysctls, err := checkSandbox(spec, own)
	if err != nil {
		return nil, err
	}
	pid, err := h.thread.ID()
	if err != nil {
		return nil, err
	}
	t := &Task{ID: r.ID, Bundle: r.Bundle, Pod: r.Pod, supervisor: h}
	s := &sandbox{
		task: t, supervisor: h, options: r.Options, pid: pid, initRoot: pod.InitRootOf(r.Bundle, r.ID, !r.Sandbox), own: own, bringsInit: r.SharesPID,
		made: make(chan struct{}), freed: make(chan struct{}),
	}
	s.life, s.giveUp = context.WithCancelCause(context.Background())
	s.hooks = pod.NewHooks(spec, r.ID, r.Bundle, pid)
	_, s.initPID = oci.NamespaceOf(spec, specs.PIDNamespace)
	t.body = s
	events := h.events
	if r.Sandbox {
		events = silence{}
	}
	t.init = newProcess(r.ID, "", r.Stdio, events, s)
	t.init.setPID(pid)
	if err := h.seat(e, s); err != nil {
		return nil, err
	}
	// By defer, so that a panic leaves neither a sandbox nor somebody who waits for it.
	defer close(s.made)
	complete := false
	defer func() {
		if !complete {
			err = errors.Join(err, s.discard(context.WithoutCancel(ctx)))
		}
	}()
	if err := s.setUp(ctx, r, spec, set, sysctls); err != nil {
		return nil, err
	}
	complete = true
	return t, nil
}

// within returns a context that ends with the sandbox's life, too.
func (s *sandbox) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// enter keeps the pod's namespaces where they are until leave is called. The
// context that it returns ends when the sandbox does: then the caller has to give
// up. It fails once the sandbox has ended.
func (s *sandbox) enter(ctx context.Context) (_ context.Context, leave func(), err error) {
	select {
	case <-s.made:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	ctx, cancel := s.within(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		cancel()
		return nil, nil, &endedError{s.task.ID}
	}
	s.joining.Add(1)
	s.joiners++
	return ctx, func() {
		defer cancel()
		s.mu.Lock()
		s.joiners--
		s.mu.Unlock()
		s.joining.Done()
	}, nil
}

// close lets nobody join any more, and tells those who do to give up. It says
// whether there are any.
func (s *sandbox) close() (joined bool) {
	s.mu.Lock()
	s.ended = true
	joined = s.joiners > 0
	s.mu.Unlock()
	s.giveUp(&endedError{s.task.ID})
	return joined
}

func (s *sandbox) setUp(ctx context.Context, r CreateRequest, spec *specs.Spec, set pod.Namespaces, sysctls []pod.Sysctl) (err error) {
	ctx, cancel := s.within(ctx)
	defer cancel()
	record := bundleRecord{Options: r.Options, Sandbox: true, CgroupsPath: spec.Linux.CgroupsPath, InitRoot: s.initRoot, Files: r.Files}
	if err := writeRecord(r.Bundle, record); err != nil {
		return err
	}
	if err := r.Files.Make(); err != nil {
		return fmt.Errorf("cannot create the pod's files: %w", err)
	}
	s.files = r.Files
	if s.fifos, err = holdFifos(r.Stdio); err != nil {
		return err
	}
	if err := s.makeCgroup(spec, r.Options.SystemdCgroup); err != nil {
		return err
	}
	if err := s.makeNamespaces(spec, set, sysctls); err != nil {
		return err
	}
	defer s.supervisor.reaper.Hold()()
	if err := s.hooks.Created(ctx, s.supervisor.thread); err != nil {
		return err
	}
	return context.Cause(s.life) // the shim may be about to end
}

// makeNamespaces puts the thread into the pod's namespaces and sets what the spec
// sets in them.
func (s *sandbox) makeNamespaces(spec *specs.Spec, set pod.Namespaces, sysctls []pod.Sysctl) (err error) {
	if s.own[specs.UserNamespace] {
		defer s.supervisor.reaper.Hold()()
		holder, err := pod.StartHolder(spec, set)
		if err != nil {
			return err
		}
		defer func() { s.userns = holder.Take() }()
		if err := holder.Fill(set); err != nil {
			return err
		}
		if err := holder.Translate(sysctls); err != nil {
			return err
		}
	}
	return s.supervisor.thread.Enter(set, func() error {
		if err := setNames(spec); err != nil {
			return err
		}
		if err := pod.WriteSysctls(sysctls); err != nil {
			return err
		}
		var err error
		s.ids, err = pod.ThreadNamespaces()
		return err
	})
}

// checkSandbox refuses what cannot be done before anything is made, and returns
// the sysctls to write.
func checkSandbox(s *specs.Spec, own pod.Own) ([]pod.Sysctl, error) {
	if (s.Hostname != "" || s.Domainname != "") && !own[specs.UTSNamespace] {
		return nil, fmt.Errorf("cannot set a host name or domain name: the sandbox uses the host's UTS namespace: %w", errdefs.ErrInvalidArgument)
	}
	if err := pod.CheckUserNamespace(s); err != nil {
		return nil, err
	}
	if err := pod.CheckHooks(s.Hooks); err != nil {
		return nil, err
	}
	return pod.Sysctls(s.Linux.Sysctl, own)
}

func (s *sandbox) makeCgroup(spec *specs.Spec, systemd bool) error {
	path := spec.Linux.CgroupsPath
	if path == "" {
		return nil
	}
	cgroup, err := cgroups.Create(path, systemd, spec.Linux.Resources)
	if err != nil {
		return err
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
func holdFifos(sio stdio.Config) (held []*os.File, err error) {
	for _, path := range []string{sio.Stdout, sio.Stderr} {
		st, err := os.Stat(path)
		if err != nil || st.Mode()&os.ModeNamedPipe == 0 {
			continue // nothing is written, so nothing is needed
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			stdio.CloseAll(held...)
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
	if s.bringsInit {
		if err := s.startInit(ctx); err != nil {
			return err
		}
	}
	defer s.supervisor.reaper.Hold()()
	err := s.hooks.Started(ctx)
	if err != nil {
		go s.end(reap.ExitSignalBase + int(unix.SIGKILL))
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
		return i.child.Signal(sig)
	}
	switch {
	case sig == unix.SIGKILL:
		go s.end(reap.ExitSignalBase + int(sig))
	case sig == unix.SIGINT, sig == unix.SIGTERM:
		go s.end(0)
	case !s.initPID && endsByDefault(sig):
		go s.end(reap.ExitSignalBase + int(sig))
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

// end lets the sandbox die: no container can join any more, those that are just
// joining are told to give up, and the exit is told. Only the namespaces wait for
// them: a create can hang for as long as the OCI runtime does, and the end of a pod
// must not.
func (s *sandbox) end(status int) {
	s.endOnce.Do(func() {
		exit := Exit{Status: uint32(status), At: time.Now()}
		joined := s.close()
		<-s.made
		s.letGo()
		if !joined {
			s.free()
		}
		s.task.init.stop(exit, func(st Status) {
			if err := writeExit(s.task.Bundle, st); err != nil {
				log.L.WithError(err).WithField("id", s.task.ID).Error("cannot record the exit status: it is lost if the shim is killed")
			}
		})
		s.free()
	})
}

// letGo ends the pod's init and gives back all but the namespaces.
func (s *sandbox) letGo() {
	s.endPodInit()
	s.task.unwatchOOM()
	stdio.CloseAll(s.fifos...)
	if err := s.files.Unmount(); err != nil {
		log.L.WithError(err).WithField("id", s.task.ID).Error("cannot unmount the pod's /dev/shm: it is left mounted")
	}
}

// free takes the thread out of the pod's namespaces when nobody joins any more. A
// thread that cannot be brought back keeps them, and holds no other sandbox.
func (s *sandbox) free() {
	s.freeOnce.Do(func() {
		defer close(s.freed)
		s.joining.Wait()
		s.dropCgroup()
		if s.userns != nil {
			s.userns.Close()
		}
		if err := s.supervisor.thread.Leave(); err != nil {
			log.L.WithError(err).WithField("id", s.task.ID).Error("cannot leave the pod's namespaces: they stay until this shim ends")
		}
	})
}

// isFreed says whether the thread has left the sandbox.
func (s *sandbox) isFreed() bool {
	select {
	case <-s.freed:
		return true
	default:
		return false
	}
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
	if err := s.awaitFreed(ctx); err != nil {
		return err
	}
	if err := s.removePodInit(ctx); err != nil {
		return err
	}
	if err := s.files.Remove(); err != nil {
		return err
	}
	if cgroup := s.task.group(); cgroup != nil {
		ctx, cancel := context.WithTimeout(ctx, removeTimeout)
		defer cancel()
		if err := cgroup.Remove(ctx); err != nil {
			return err
		}
	}
	defer s.supervisor.reaper.Hold()()
	// They run once, and so even if the client has gone.
	if err := s.hooks.Stopped(context.WithoutCancel(ctx)); err != nil {
		log.G(ctx).WithError(err).WithField("id", s.task.ID).Warn("a poststop hook failed; the sandbox is deleted anyway")
	}
	return removeRecord(s.task.Bundle)
}

// awaitFreed waits until nobody joins a sandbox that has ended any more.
func (s *sandbox) awaitFreed(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	select {
	case <-s.freed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a container is still joining the sandbox: %w", ctx.Err())
	}
}

// removeTimeout bounds how long a cgroup may stay busy.
const removeTimeout = 10 * time.Second

// discard undoes a create, at the end of which nobody has joined yet.
func (s *sandbox) discard(ctx context.Context) error {
	s.endOnce.Do(func() {}) // there is no end to tell
	s.close()
	s.letGo()
	s.free()
	return s.remove(ctx, nil)
}

// restoreFiles implements [body].
func (s *sandbox) restoreFiles() error {
	_, leave, err := s.enter(context.Background())
	if err != nil {
		return nil //nolint:nilerr // the sandbox has ended: nobody needs them any more
	}
	defer leave()
	return s.files.Restore()
}

func (s *sandbox) signalAll(sig unix.Signal) error { return s.signal(sig) }

func (s *sandbox) pids() ([]int, error) {
	pids := []int{s.pid}
	if i := s.podInit(); i != nil {
		pids = append(pids, i.child.Pid)
	}
	return pids, nil
}

func (s *sandbox) update(_ context.Context, r *specs.LinuxResources) error {
	cgroup := s.task.group()
	if cgroup == nil {
		return fmt.Errorf("it has no cgroup: %w", errdefs.ErrFailedPrecondition)
	}
	return cgroup.Update(r)
}

func (s *sandbox) newExec(*Task, string, stdio.Config, []byte) (*Process, error) {
	return nil, fmt.Errorf("cannot execute a process in task %s: it is a sandbox without a process or root file system: %w", s.task.ID, errdefs.ErrNotImplemented)
}

func (s *sandbox) checkpoint(context.Context, oci.CheckpointOptions) error {
	return fmt.Errorf("it is a sandbox without a process: %w", errdefs.ErrNotImplemented)
}
