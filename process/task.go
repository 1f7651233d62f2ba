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
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Task is a container with its execs, or a sandbox. All methods may be called in any state
// and concurrently.
type Task struct {
	ID     string
	Bundle string

	// Pod is what the Sandbox API said about the sandbox; nil for any other task.
	Pod *Pod

	// sandboxID is the id of the sandbox that a container was created to join; empty for
	// any other task.
	sandboxID string

	supervisor *Supervisor
	init       *Process
	body       body

	mu      sync.Mutex
	cgroup  *cgroups.Cgroup         // guarded by mu; nil if there is none (yet)
	stopOOM func() cgroups.OOMCount // guarded by mu: ends the watch for OOM kills; nil if there is none
	execs   map[string]*Process     // guarded by mu
	deleted bool                    // guarded by mu: no more execs can be added
	// ended is closed, under mu, when the init has ended. The init's state shows that only
	// later, after the exits of all execs have been reported.
	ended chan struct{}
	// running counts the execs that run or are being started. It grows only under mu while
	// ended is open.
	running sync.WaitGroup
}

// body is what differs between containers and sandboxes.
type body interface {
	runner
	newExec(t *Task, id string, sio stdio.Config, spec []byte) (*Process, error)
	checkpoint(ctx context.Context, o oci.CheckpointOptions) error
	update(ctx context.Context, r *specs.LinuxResources) error
	// signalAll sends sig to all processes of the task.
	signalAll(sig unix.Signal) error
	pids() ([]int, error)
	// watch begins to wait for the end of the init.
	watch()
	// restoreFiles makes again those files of the create that are gone.
	restoreFiles() error
	// discard undoes a create.
	discard(ctx context.Context) error
}

// Types of the subpackages that requests carry.
type (
	// Options are the runtime options that concern the OCI runtime.
	Options = oci.Options
	// CheckpointOptions are the options of a checkpoint.
	CheckpointOptions = oci.CheckpointOptions
	// Stdio says where the streams of a process lead.
	Stdio = stdio.Config
	// PodFiles are the files that a pod provides to its containers.
	PodFiles = pod.Files
	// DNS is the content of a pod's resolv.conf.
	DNS = pod.DNS
)

// HasSELinux says whether the kernel has SELinux and a loaded policy.
func HasSELinux() bool { return pod.HasSELinux() }

// WriteSpec writes the spec of a task that is about to be created into its bundle. If it
// fails, the bundle is as it was before.
func WriteSpec(bundle string, data []byte) error { return oci.WriteSpec(bundle, data) }

// CreateRequest says what task to create.
type CreateRequest struct {
	ID, Bundle string
	Rootfs     []mount.Mount
	Stdio      stdio.Config
	// Checkpoint is the directory with the images to restore the container from; empty for a
	// new container. ParentCheckpoint is the directory of the images that these build on.
	Checkpoint, ParentCheckpoint string
	Options                      oci.Options
	// Sandbox asks for a sandbox of the Sandbox API. Unlike one that the annotations in a
	// spec ask for, it is no task to containerd, so no events report it.
	Sandbox bool
	// SharesPID says that containers will share the sandbox's PID namespace. The pod init
	// then starts with the sandbox, and not with the first of these containers.
	SharesPID bool
	// Spec is the spec in the bundle; nil if it has yet to be read.
	Spec *specs.Spec
	// Files are the files to make for the sandbox; nil if the client makes them.
	Files *pod.Files
	// Pod is what the Sandbox API says about a sandbox; nil for any other task.
	Pod *Pod
	// Prepare completes the request once the id and the bundle are reserved for the task; nil
	// if the request is complete.
	Prepare func(*CreateRequest) error
}

// Pod is what the Sandbox API says about a sandbox.
type Pod struct {
	Spec *specs.Spec
	// NetNS is the path of the network namespace; empty for one that the sandbox creates, or for
	// the host's.
	NetNS string
	// Cgroup is the path of the pod's cgroup, the parent of those of the sandbox and the
	// containers; empty if the pod has none.
	Cgroup string
	// Config is CRI's configuration of the pod, in JSON; nil from a client that is not CRI.
	Config []byte
}

// RestoreFiles makes again those files of a running sandbox (see [CreateRequest.Files]) that
// somebody has removed. For any other task it does nothing.
func (t *Task) RestoreFiles() error {
	if err := t.body.restoreFiles(); err != nil {
		return fmt.Errorf("cannot restore the files of task %s: %w", t.ID, err)
	}
	return nil
}

// Watch lets the task report the end of its init. It is called once, after the creation has
// been published; an earlier end is reported then.
func (t *Task) Watch() { t.body.watch() }

// Process returns the exec with the id, or the init if the id is empty. It fails with
// [errdefs.ErrNotFound] if there is no such exec.
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

// Exec adds an exec to the container; spec is a specs.Process in JSON. [Process.Start]
// starts it.
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

// checkExecID refuses an id that is not a file name: logging programs get the id, and name
// files after it.
func checkExecID(id string) error {
	if id == "" || strings.ContainsRune(id, '/') || !filepath.IsLocal(id) {
		return fmt.Errorf("%q cannot be the id of a process: it is not a file name: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Delete deletes the exec with the id, or the whole task if the id is empty; see
// [Process.Delete].
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

// Kill sends a signal to the exec with the id, or to the init if the id is empty. If the id
// is empty and all is set, it sends the signal to all processes of the task.
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

// Pause freezes the task's cgroup, which stops all its processes until Resume.
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

// Resume thaws the cgroup of a paused task.
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

// Update changes the resource limits of the task.
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

// Checkpoint has the OCI runtime write the state of the container's processes to disk, with
// criu.
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

// Info describes a process in a task.
type Info struct {
	Pid    int
	ExecID string // empty unless it was executed through [Task.Exec]
}

// Pids lists the task's processes. It lists the init of a stopped task until the task is
// deleted, as the kernel keeps a zombie until it is waited for. Otherwise a containerd that
// starts would take the task for a leaked one and remove it, with an exit status that
// nobody has asked for yet (loadShim in core/runtime/v2/shim_load.go).
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

// PodStats returns the metrics of the cgroup of the sandbox's pod, which CRI shows as the
// pod's. If the pod has no cgroup, they are the task's own.
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

// freezeTimeout limits how long a freeze or thaw may take: a process in an uninterruptible
// system call does not freeze.
const freezeTimeout = 10 * time.Second

// group returns the task's cgroup; nil if there is none.
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

func (t *Task) setCgroup(g *cgroups.Cgroup, stopOOM func() cgroups.OOMCount) {
	t.mu.Lock()
	t.cgroup, t.stopOOM = g, stopOOM
	t.mu.Unlock()
}

// watchOOM reports OOM kills in the task's cgroup, if there is one, from now on or since a
// count.
func (t *Task) watchOOM(since *cgroups.OOMCount) {
	cgroup := t.group()
	if cgroup == nil {
		return
	}
	stop, err := cgroup.WatchOOM(since, func() { t.init.events.OOM(t.ID) })
	if err != nil {
		log.L.WithError(err).WithField("id", t.ID).Error("cannot watch the task for OOM kills: none will be reported")
	}
	t.setCgroup(cgroup, stop)
}

// beginExec counts an exec that is being started. It fails if the init has ended.
func (t *Task) beginExec() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hasEnded() {
		return fmt.Errorf("the container's init has ended: %w", errdefs.ErrFailedPrecondition)
	}
	t.running.Add(1)
	return nil
}

// endExecs lets no more execs start and no more pauses begin. It returns when a pause that
// had begun before is done, so that the caller can thaw the task: on cgroup v1, processes
// that are frozen after they were killed do not die. It is called once.
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
