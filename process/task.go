package process

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Task is a container or a sandbox, with the processes executed in it. All
// methods may be called in any state, and at the same time.
type Task struct {
	ID     string
	Bundle string

	// Pod is what the Sandbox API asked for the sandbox with; nil for any other task.
	Pod *Pod

	supervisor *Supervisor
	init       *Process
	body       body

	mu      sync.Mutex
	cgroup  *cgroups.Cgroup     // guarded by mu; nil if it has none, or not yet
	stopOOM func()              // guarded by mu: ends the watch for OOM kills; nil without
	execs   map[string]*Process // guarded by mu
	deleted bool                // guarded by mu: no more execs are added
	// ended is closed, under mu, when the init has ended, which its own state shows only
	// after the exits of all execs have been told.
	ended chan struct{}
	// running counts the execs that are started or being started. It grows only
	// under mu while ended is open.
	running sync.WaitGroup
}

// body is what differs between containers and sandboxes.
type body interface {
	runner
	newExec(t *Task, id string, sio stdio.Config, spec []byte) (*Process, error)
	checkpoint(ctx context.Context, o oci.CheckpointOptions) error
	update(ctx context.Context, r *specs.LinuxResources) error
	// signalAll sends sig to all processes.
	signalAll(sig unix.Signal) error
	pids() ([]int, error)
	// watch begins to watch the init that was created.
	watch()
	// restoreFiles makes the files again that the create has made, where they are gone.
	restoreFiles() error
	// discard undoes a create.
	discard(ctx context.Context) error
}

// What requests carry for the rooms below.
type (
	// Options are those of the runtime options that concern the OCI runtime.
	Options = oci.Options
	// CheckpointOptions are those of a checkpoint.
	CheckpointOptions = oci.CheckpointOptions
	// Stdio names where the streams of a process lead.
	Stdio = stdio.Config
	// PodFiles are the files of a pod that its containers get.
	PodFiles = pod.Files
	// DNS is what a pod's resolv.conf says.
	DNS = pod.DNS
)

// HasSELinux says whether the kernel has SELinux and a policy for it.
func HasSELinux() bool { return pod.HasSELinux() }

// WriteSpec writes the spec of a task that is about to be created into its bundle, or
// leaves the one that is there.
func WriteSpec(bundle string, data []byte) error { return oci.WriteSpec(bundle, data) }

// CreateRequest says what task to create.
type CreateRequest struct {
	ID, Bundle string
	Rootfs     []mount.Mount
	Stdio      stdio.Config
	// Checkpoint is the directory of images to restore the container from; empty
	// for a new one. ParentCheckpoint is that of the images it builds upon.
	Checkpoint, ParentCheckpoint string
	Options                      oci.Options
	// Sandbox asks for a sandbox, as the annotations in a spec may do. Such a one
	// is no task to containerd, which is told nothing of it by events.
	Sandbox bool
	// SharesPID says that containers will share the sandbox's PID namespace, so that
	// its init comes up when it starts, and not with the first of them.
	SharesPID bool
	// Spec is what the spec in the bundle says; nil if it is to be read.
	Spec *specs.Spec
	// Files are made for the sandbox; nil if the client makes them.
	Files *pod.Files
	// Pod is what the Sandbox API tells; nil otherwise.
	Pod *Pod
	// Prepare completes the request as soon as the id and the bundle are the task's own;
	// nil if it is complete.
	Prepare func(*CreateRequest) error
}

// Pod is what the Sandbox API tells of a sandbox beyond its spec.
type Pod struct {
	Spec *specs.Spec
	// NetNS is the path of the network namespace; empty for one that the sandbox makes, or the host's.
	NetNS string
	// Cgroup is the path of the pod's, in which the sandbox's is one beside those of the
	// containers; empty if the pod has none.
	Cgroup string
	// Config is CRI's configuration of the pod, in JSON; nil from a client that is not CRI.
	Config []byte
}

// RestoreFiles makes the files of a sandbox again, see [CreateRequest.Files], if
// somebody has removed them while it runs.
func (t *Task) RestoreFiles() error {
	if err := t.body.restoreFiles(); err != nil {
		return fmt.Errorf("cannot restore the files of task %s: %w", t.ID, err)
	}
	return nil
}

// Watch lets the task tell when its init ends. It is called once, after the
// creation has been announced; an end before that is not lost.
func (t *Task) Watch() { t.body.watch() }

// Process returns the process that was executed under the id, or the init if the
// id is empty. It fails with [errdefs.ErrNotFound].
func (t *Task) Process(id string) (*Process, error) {
	if id == "" {
		return t.init, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.execs[id]
	if !ok || p == nil {
		return nil, fmt.Errorf("task %s has no process %s: %w", t.ID, id, errdefs.ErrNotFound)
	}
	return p, nil
}

// Exec adds a process to be executed in the container. It is started by
// [Process.Start].
func (t *Task) Exec(id string, sio stdio.Config, spec []byte) error {
	if err := checkExecID(id); err != nil {
		return err
	}
	if err := t.init.check(verbExec); err != nil {
		return err
	}
	p, err := t.body.newExec(t, id, sio, spec)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.deleted {
		return fmt.Errorf("cannot add process %s to task %s: the task has been deleted: %w", id, t.ID, errdefs.ErrFailedPrecondition)
	}
	if _, ok := t.execs[id]; ok {
		return fmt.Errorf("task %s already has a process %s: %w", t.ID, id, errdefs.ErrAlreadyExists)
	}
	t.execs[id] = p
	return nil
}

// checkExecID refuses an id that would not be a file's name: logging programs are
// told it, and name files by it.
func checkExecID(id string) error {
	if id == "" || strings.ContainsRune(id, '/') || !filepath.IsLocal(id) {
		return fmt.Errorf("%q cannot be the id of a process: it is not a file name: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Delete deletes a stopped process, with an empty id the whole task.
func (t *Task) Delete(ctx context.Context, id string) (Status, error) {
	p, err := t.Process(id)
	if err != nil {
		return Status{}, err
	}
	st, err := p.Delete(ctx)
	if err != nil {
		return Status{}, err
	}
	if id != "" {
		t.mu.Lock()
		delete(t.execs, id)
		t.mu.Unlock()
		return st, nil
	}
	t.mu.Lock()
	t.deleted = true
	t.mu.Unlock()
	// Clients need not delete the execs of a task that they delete.
	for _, e := range t.snapshot() {
		e.release()
	}
	t.supervisor.forget(t.ID)
	return st, nil
}

// Kill sends a signal to one process, or, if all is set, to all in the task.
func (t *Task) Kill(id string, sig unix.Signal, all bool) error {
	p, err := t.Process(id)
	if err != nil {
		return err
	}
	if id == "" && all {
		return p.signalBy(sig, t.body.signalAll)
	}
	return p.Signal(sig)
}

// Pause stops all processes of the task until Resume, by the cgroup's freezer.
func (t *Task) Pause(ctx context.Context) error {
	p := t.init
	p.verb.Lock()
	defer p.verb.Unlock()
	if err := p.check(verbPause); err != nil {
		return err
	}
	cgroup, err := t.needCgroup(verbPause)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if t.hasEnded() {
		return fmt.Errorf("cannot pause task %s: its init has ended: %w", t.ID, errdefs.ErrFailedPrecondition)
	}
	p.enter(Pausing)
	next := Running
	defer func() { p.enter(next) }()
	if err := cgroup.Freeze(ctx); err != nil {
		return fmt.Errorf("cannot pause task %s: %w", t.ID, err)
	}
	next = Paused
	return nil
}

// Resume lets the processes of a paused task go on.
func (t *Task) Resume(ctx context.Context) error {
	p := t.init
	p.verb.Lock()
	defer p.verb.Unlock()
	if err := p.check(verbResume); err != nil {
		return err
	}
	cgroup, err := t.needCgroup(verbResume)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if err := cgroup.Thaw(ctx); err != nil {
		return fmt.Errorf("cannot resume task %s: %w", t.ID, err)
	}
	p.enter(Running)
	return nil
}

// Update changes the resources of the task.
func (t *Task) Update(ctx context.Context, r *specs.LinuxResources) error {
	t.init.verb.Lock()
	defer t.init.verb.Unlock()
	if err := t.init.check(verbUpdate); err != nil {
		return err
	}
	if err := t.body.update(ctx, r); err != nil {
		return fmt.Errorf("cannot update task %s: %w", t.ID, err)
	}
	return nil
}

// Checkpoint writes the state of the container's processes to disk, by criu.
func (t *Task) Checkpoint(ctx context.Context, o oci.CheckpointOptions) error {
	t.init.verb.Lock()
	defer t.init.verb.Unlock()
	if err := t.init.check(verbCheckpoint); err != nil {
		return err
	}
	if err := t.body.checkpoint(ctx, o); err != nil {
		return fmt.Errorf("cannot checkpoint task %s: %w", t.ID, err)
	}
	return nil
}

// Info is a process in a task.
type Info struct {
	Pid    int
	ExecID string // empty unless it was executed through [Task.Exec]
}

// Pids lists the task's processes. The init of a task that has stopped is listed
// until the task is deleted, as a zombie is until it is waited for: a containerd
// that starts takes a task without processes for a leaked one and removes it,
// and with it the exit status that nobody has asked for yet (loadShim in
// core/runtime/v2/shim_load.go).
func (t *Task) Pids() ([]Info, error) {
	pids, err := t.body.pids()
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes of task %s: %w", t.ID, err)
	}
	if st := t.init.Status(); len(pids) == 0 && st.State == Stopped {
		return []Info{{Pid: st.Pid}}, nil
	}
	ids := make(map[int]string)
	for _, e := range t.snapshot() {
		if st := e.Status(); st.Pid != 0 && st.State != Stopped {
			ids[st.Pid] = e.ID()
		}
	}
	infos := make([]Info, len(pids))
	for i, pid := range pids {
		infos[i] = Info{pid, ids[pid]}
	}
	return infos, nil
}

func (t *Task) snapshot() []*Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Values(t.execs))
}

// Stats returns the metrics of the task's cgroup.
func (t *Task) Stats() (cgroups.Metrics, error) {
	cgroup := t.group()
	if cgroup == nil {
		return nil, fmt.Errorf("task %s has no cgroup: %w", t.ID, errdefs.ErrNotFound)
	}
	m, err := cgroup.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read the metrics of task %s: %w", t.ID, err)
	}
	return m, nil
}

// PodStats returns the metrics of the cgroup of the pod whose sandbox the task is: CRI
// shows them as the pod's. Without one they are the task's own.
func (t *Task) PodStats() (cgroups.Metrics, error) {
	if t.Pod == nil || t.Pod.Cgroup == "" {
		return t.Stats()
	}
	pod, err := cgroups.Load(t.Pod.Cgroup, false)
	if err != nil {
		return nil, err
	}
	return pod.Stat()
}

// freezeTimeout bounds how long it may take until all processes have stopped: one
// in an uninterruptible system call does not.
const freezeTimeout = 10 * time.Second

// group returns the task's cgroup, nil if there is none.
func (t *Task) group() *cgroups.Cgroup {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cgroup
}

func (t *Task) needCgroup(v verb) (*cgroups.Cgroup, error) {
	if g := t.group(); g != nil {
		return g, nil
	}
	return nil, fmt.Errorf("cannot %s task %s: it has no cgroup: %w", v, t.ID, errdefs.ErrFailedPrecondition)
}

func (t *Task) setCgroup(g *cgroups.Cgroup, stopOOM func()) {
	t.mu.Lock()
	t.cgroup, t.stopOOM = g, stopOOM
	t.mu.Unlock()
}

// beginExec counts an exec that is being started, unless the init has ended.
func (t *Task) beginExec() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hasEnded() {
		return fmt.Errorf("the container's init has ended: %w", errdefs.ErrFailedPrecondition)
	}
	t.running.Add(1)
	return nil
}

// endExecs lets no more execs start, and nobody pause the task any more. It returns
// when a pause that had begun before is through: processes that are frozen after
// they were killed do not die on cgroup v1. It is called once.
func (t *Task) endExecs() {
	t.mu.Lock()
	close(t.ended)
	t.mu.Unlock()
	t.init.verb.Lock()
	defer t.init.verb.Unlock()
}

func (t *Task) hasEnded() bool {
	select {
	case <-t.ended:
		return true
	default:
		return false
	}
}

// unwatchOOM ends the watch for OOM kills.
func (t *Task) unwatchOOM() {
	t.mu.Lock()
	stop := t.stopOOM
	t.mu.Unlock()
	if stop != nil {
		stop()
	}
}
