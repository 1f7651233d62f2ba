package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
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

// sandbox is the body of a task without a process: the namespaces of a pod, held by a
// thread of the shim. To a client it looks like a container whose init is Kubernetes'
// pause program. Its pid is the thread's, so that /proc/<pid>/ns/{net,ipc,uts} are the
// pod's. An open file holds the pod's user namespace, if there is one. A PID namespace
// needs a process, see [podInit].
type sandbox struct {
	task       *Task
	supervisor *Supervisor
	options    oci.Options
	thread     *pod.Thread
	pid        int // the thread's; that of the shim for its main thread
	// formerPIDs are those of the threads in the programs before this one, see Restore.
	formerPIDs []int
	// initRoot is the path of the pod init's root directory, if there is a pod init.
	initRoot string
	// bringsInit says that the pod init is started with the sandbox.
	bringsInit bool
	// initPID says that the spec lists a PID namespace, whose init the pause program
	// would be.
	initPID bool
	own     pod.Own
	ids     map[specs.LinuxNamespaceType]pod.NSID // the thread's net, ipc and uts, the pod's own or not
	userns  *pod.NSFile                           // nil if the pod uses the host's
	fifos   []*os.File
	// handedOver are the files of the namespaces that Save has opened.
	handedOver []*os.File
	files      *pod.Files // nil if the client makes them
	hooks      *pod.Hooks // nil if there are none

	// life ends when the sandbox begins to end, with an [endedError] as the cause. Containers
	// that are joining must then give up.
	life   context.Context
	giveUp context.CancelCauseFunc
	// made is closed when the sandbox is complete, or has failed to become so. After that
	// the fields above do not change.
	made   chan struct{}
	failed bool // set before made is closed: there is no sandbox
	// freed is closed when the thread has left the pod's namespaces, or has failed to.
	freed chan struct{}

	endOnce, freeOnce sync.Once

	bringUp sync.Mutex // held while the pod init is being started; taken before mu
	mu      sync.Mutex
	init    *podInit // guarded by mu; nil before a container needs it
	// ended is set, under mu, before life ends.
	ended bool
	// joining counts the callers of enter that have not called leave. The thread stays in the
	// pod's namespaces for them: as soon as it has left, paths to these lead to the host's. The
	// count grows only under mu while ended is false.
	joining sync.WaitGroup
	joiners int // guarded by mu: the same number
}

// endedError says that a container cannot join a sandbox because the sandbox has ended.
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
	thread := h.thread
	if thread == nil {
		thread = pod.StartThread() // which ends with the sandbox, or with discard
	}
	pid, err := thread.ID()
	if err != nil {
		return nil, err
	}
	t := &Task{ID: r.ID, Bundle: r.Bundle, Pod: r.Pod, supervisor: h}
	s := &sandbox{
		task: t, supervisor: h, options: r.Options, thread: thread, pid: pid, initRoot: pod.InitRootOf(r.Bundle, r.ID, !r.Sandbox), own: own, bringsInit: r.SharesPID,
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
	if err := h.admit(e, s); err != nil {
		if h.thread == nil {
			err = errors.Join(err, thread.Leave()) // which ends it
		}
		return nil, err
	}
	// Deferred, so that after a panic there is no sandbox and nobody waits for one.
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

// within returns a context that also ends with the sandbox's life.
func (s *sandbox) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.life, func() { cancel(context.Cause(s.life)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// enter waits until the sandbox is complete, and keeps the thread in the pod's namespaces
// until the caller calls leave. The returned context ends when the sandbox does; then the
// caller has to give up. enter fails once the sandbox has ended.
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

// close lets no more containers join, and has those that are joining give up. It returns
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
	if err := s.hooks.Created(ctx, s.thread); err != nil {
		return err
	}
	return context.Cause(s.life) // set if the shim is about to end
}

// makeNamespaces puts the thread into the pod's namespaces, new or given by path, and sets
// the host name, the domain name and the sysctls there.
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
	return s.thread.Enter(set, func() error {
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

// checkSandbox refuses a spec that cannot be satisfied, before anything is created, and
// returns the sysctls to write.
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

// setNames sets the host name and the domain name. It must run in the sandbox's thread.
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

// holdFifos opens the client's output fifos and never writes to them, as the pause program
// would. So the client sees end of file when the sandbox ends.
func holdFifos(sio stdio.Config) (held []*os.File, err error) {
	for _, path := range []string{sio.Stdout, sio.Stderr} {
		st, err := os.Stat(path)
		if err != nil || st.Mode()&os.ModeNamedPipe == 0 {
			continue // only a fifo has to be open, as nothing is ever written
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

// path returns the path where CRI looks for a namespace of the pod; name is the one under
// /proc/<pid>/ns.
func (s *sandbox) path(name string) string { return namespacePath(s.pid, name) }

// isPath says whether a path is the one where CRI looks for a namespace of the pod. The
// sandbox may have had another pid when CRI asked for it (see restoreSandbox).
func (s *sandbox) isPath(path, name string) bool {
	return path == s.path(name) || slices.ContainsFunc(s.formerPIDs, func(pid int) bool { return path == namespacePath(pid, name) })
}

func namespacePath(pid int, name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, name) }

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
		s.supervisor.inBackground(func() { s.end(reap.ExitSignalBase + int(unix.SIGKILL)) })
	}
	return err
}

// signal does what the signal would do to the pause program. As the init of a PID namespace
// the pause program exits on SIGINT and SIGTERM, reaps on SIGCHLD, and ignores all other
// signals but SIGKILL (pid_namespaces(7)). In the host's PID namespace other signals have
// their default action. A pod init, if there is one, gets the signal itself, and the
// sandbox ends with it.
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
		s.supervisor.inBackground(func() { s.end(reap.ExitSignalBase + int(sig)) })
	case sig == unix.SIGINT, sig == unix.SIGTERM:
		s.supervisor.inBackground(func() { s.end(0) })
	case !s.initPID && endsByDefault(sig):
		s.supervisor.inBackground(func() { s.end(reap.ExitSignalBase + int(sig)) })
	}
	return nil
}

// endsByDefault says whether the default action of a signal ends a process (signal(7)).
func endsByDefault(sig unix.Signal) bool {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGCONT, // ignored
		unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU: // stops
		return false
	}
	return true
}

// end ends the sandbox: no more containers can join, those that are joining have to give
// up, and the exit is reported. Only the namespaces stay until they have given up: a create
// can hang as long as the OCI runtime does, and the end of a pod must not.
func (s *sandbox) end(status int) {
	s.endOnce.Do(func() {
		exit := Exit{Status: uint32(status), At: time.Now()}
		joined := s.close()
		<-s.made
		if s.failed {
			return // discard has done the rest; there is no exit to report
		}
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

// letGo ends the pod init and frees what need not wait for containers that are joining.
func (s *sandbox) letGo() {
	s.endPodInit()
	s.task.unwatchOOM()
	stdio.CloseAll(s.fifos...)
	if err := s.files.Unmount(); err != nil {
		log.L.WithError(err).WithField("id", s.task.ID).Error("cannot unmount the pod's /dev/shm: it is left mounted")
	}
}

// free takes the thread out of the pod's namespaces once no container is joining. A thread
// that cannot leave them stays there, and cannot hold another sandbox.
func (s *sandbox) free() {
	s.freeOnce.Do(func() {
		defer close(s.freed)
		s.joining.Wait()
		s.dropCgroup()
		if s.userns != nil {
			s.userns.Close()
		}
		if err := s.thread.Leave(); err != nil {
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

// dropCgroup removes the cgroup before the thread returns to the host's network namespace.
// As long as the cgroup exists, cAdvisor reads the sandbox's network counters through the
// shim's pid, and would take the host's for the pod's. A cgroup that is busy stays for
// remove.
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
	// The hooks run only once, so they must run even if the client has gone.
	if err := s.hooks.Stopped(context.WithoutCancel(ctx)); err != nil {
		log.G(ctx).WithError(err).WithField("id", s.task.ID).Warn("a poststop hook failed; the sandbox is deleted anyway")
	}
	return removeRecord(s.task.Bundle)
}

// awaitFreed waits until no container is joining the ended sandbox and free is done.
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

// removeTimeout limits how long remove waits for joining containers, and for a busy cgroup.
const removeTimeout = 10 * time.Second

// discard undoes a create that failed. No container can have joined yet.
func (s *sandbox) discard(ctx context.Context) error {
	s.failed = true
	s.close()
	s.letGo()
	s.free()
	return s.remove(ctx, nil)
}

// restoreFiles implements [body].
func (s *sandbox) restoreFiles() error {
	_, leave, err := s.enter(context.Background())
	if err != nil {
		return nil //nolint:nilerr // the sandbox has ended, so nobody needs its files
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
