package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// container is the body of a task whose processes an OCI runtime creates.
type container struct {
	task       *Task
	supervisor *Supervisor
	runtime    *oci.Runtime
	rootfs     string // mount point of the root file system; empty if we did not mount it
	// shared says that the container uses another's PID namespace, so that its
	// processes may outlive its init.
	shared bool
	// mustStart and mustDelete say that the OCI runtime's own start and delete must run,
	// because only they run the hooks and remove the systemd unit or the resctrl group.
	mustStart, mustDelete bool
	image                 oci.CheckpointImage
	// spec is the client's spec of a container that has yet to be restored; else nil.
	spec  *specs.Spec
	child *reap.Child // the init; nil before there is one
	// patience is how long after the init's end a call of the OCI runtime may delay the
	// report of the init's exit.
	patience time.Duration
}

// runtimePatience is long enough for an OCI runtime to notice that its container has ended.
const runtimePatience = 5 * time.Second

// consoleTimeout limits how long an OCI runtime may take to send the console of a
// process that it has created.
const consoleTimeout = 30 * time.Second

func (h *Supervisor) newContainer(ctx context.Context, r CreateRequest, s *specs.Spec, e *entry) (_ *Task, err error) {
	t := &Task{ID: r.ID, Bundle: r.Bundle, sandboxID: s.Annotations[oci.SandboxIDAnnotation], supervisor: h, execs: make(map[string]*Process), ended: make(chan struct{})}
	c := &container{
		task:       t,
		supervisor: h,
		runtime:    h.ociRuntime(r.Bundle, r.Options),
		shared:     !oci.OwnsPIDNamespace(s),

		patience: runtimePatience,
	}
	if s.Hooks != nil {
		c.mustStart, c.mustDelete = len(s.Hooks.Poststart) > 0, len(s.Hooks.Poststop) > 0
	}
	if r.Options.SystemdCgroup || s.Linux.IntelRdt != nil {
		c.mustDelete = true
	}
	t.body = c
	t.init = newProcess(r.ID, "", r.Stdio, h.events, c)
	if r.Checkpoint != "" {
		c.image = oci.CheckpointImage{Path: r.Checkpoint, Parent: r.ParentCheckpoint, Work: r.Options.CriuWorkPath}
		if c.image.Work == "" {
			c.image.Work = filepath.Join(r.Bundle, "work")
		}
	}
	if c.runtime.Knows(r.ID) {
		return nil, fmt.Errorf("the OCI runtime already has container %s in %s: %w", r.ID, c.runtime.Root(), errdefs.ErrAlreadyExists)
	}
	// A cgroup that already has processes belongs to others: it must be neither killed nor
	// removed with the container.
	c.runtime.CgroupsPath = s.Linux.CgroupsPath
	if c.runtime.SharesCgroup() {
		c.runtime.CgroupsPath = ""
	}
	if err := writeRecord(r.Bundle, bundleRecord{Options: r.Options, CgroupsPath: c.runtime.CgroupsPath}); err != nil {
		return nil, err
	}
	if err := writeStockRecord(r.Bundle, r.Options); err != nil {
		return nil, err
	}
	complete := false
	defer func() { // a defer undoes the create after a panic, too
		if !complete {
			err = errors.Join(err, c.discard(context.WithoutCancel(ctx)))
		}
	}()
	if err := c.make(ctx, r, s, e); err != nil {
		return nil, err
	}
	complete = true
	return t, nil
}

// make joins the container's sandbox, mounts the root file system, and has the OCI
// runtime create the container.
func (c *container) make(ctx context.Context, r CreateRequest, s *specs.Spec, e *entry) (err error) {
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	if err := c.supervisor.mayTakeTime(e, abort); err != nil {
		return err
	}
	ctx, leave, err := c.supervisor.join(ctx, r.Bundle, s)
	if err != nil {
		return err
	}
	defer leave()
	defer func() { err = whyEnded(ctx, err) }()
	if err := c.mountRootfs(r.Rootfs); err != nil {
		return err
	}
	if r.Checkpoint != "" {
		c.spec = s
		return nil // start creates the process
	}
	return c.create(ctx)
}

func (c *container) mountRootfs(mounts []mount.Mount) error {
	if len(mounts) == 0 {
		return nil
	}
	rootfs := filepath.Join(c.task.Bundle, "rootfs")
	if err := os.Mkdir(rootfs, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("cannot create the root directory: %w", err)
	}
	c.rootfs = rootfs
	// A mount may start helper processes, which must not be reaped as orphans.
	defer c.supervisor.reaper.Hold()()
	if err := mount.All(mounts, rootfs); err != nil {
		return fmt.Errorf("cannot mount the root file system of %s: %w", c.task.ID, err)
	}
	return nil
}

func (c *container) unmountRootfs() error {
	if c.rootfs == "" {
		return nil
	}
	if err := mount.UnmountRecursive(c.rootfs, 0); err != nil {
		return fmt.Errorf("cannot unmount the root file system of %s: %w", c.task.ID, err)
	}
	return nil
}

// create has the OCI runtime create the container, whose init then waits for start.
func (c *container) create(ctx context.Context) error {
	p := c.task.init
	pidFile := filepath.Join(c.task.Bundle, "init.pid")
	child, err := c.supervisor.spawn(ctx, p, c.runtime.Options, pidFile, func(s *stdio.Streams, console *stdio.ConsoleSocket) error {
		return c.runtime.Create(ctx, c.task.ID, pidFile, s, console)
	})
	if err != nil {
		return err
	}
	c.adopt(child)
	return nil
}

// adopt makes the child the container's init. It sets the pid last, because a pid
// tells other goroutines that everything else is set.
func (c *container) adopt(child *reap.Child) {
	c.child = child
	defer c.task.init.setPID(child.Pid)
	if c.shared {
		c.supervisor.addSharer(c)
	}
	cg, err := cgroups.OfProcess(child.Pid)
	if err != nil {
		log.L.WithError(err).WithField("id", c.task.ID).Error("cannot find the container's cgroup: no metrics, pause or OOM events for it")
		return
	}
	c.task.setCgroup(cg, nil)
	c.task.watchOOM(nil)
}

func (c *container) watch() {
	if c.child != nil {
		go c.awaitEnd()
	}
}

// awaitEnd waits until the init has ended, and reports its exit after all other
// processes of the container have ended and all execs' exits have been reported.
func (c *container) awaitEnd() {
	c.child.Await()
	defer c.supervisor.begin()()
	status, err := c.child.Reap()
	exit := Exit{Status: uint32(status), At: time.Now()}
	if err != nil {
		log.L.WithError(err).WithField("id", c.task.ID).Error("cannot get the exit status of the container: reporting 255")
	}
	c.task.endExecs()
	c.letPausedDie()
	if c.shared {
		c.killLeftovers()
		c.supervisor.removeSharer(c)
	}
	c.task.running.Wait()
	c.task.unwatchOOM()
	c.task.init.stop(exit, func(st Status) {
		if err := writeExit(c.task.Bundle, st); err != nil {
			log.L.WithError(err).WithField("id", c.task.ID).Error("cannot record the exit status: it will be lost if the shim is killed")
		}
	})
}

// letPausedDie thaws a container whose init ended while it was paused, so that the
// processes killed with the init can die. No new pause can begin (see [Task.endExecs]).
func (c *container) letPausedDie() {
	cgroup := c.task.group()
	if cgroup == nil {
		return
	}
	if frozen, err := cgroup.Frozen(); err == nil && frozen {
		c.supervisor.letDie(c.task.ID, cgroup)
	}
}

// killLeftovers kills the processes that the init has left in the container.
func (c *container) killLeftovers() {
	cgroup := c.task.group()
	if cgroup == nil {
		return
	}
	// The cgroup may be gone: systemd removes a scope when its last process ends.
	if err := cgroup.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		log.L.WithError(err).WithField("id", c.task.ID).Error("cannot kill the processes left behind by the container's init")
	}
	c.supervisor.letDie(c.task.ID, cgroup)
}

// killLate kills what an exec has brought into the container after killLeftovers ran. The
// container's exit is reported only after this exec's.
func (c *container) killLate() {
	if c.shared && c.task.hasEnded() {
		c.killLeftovers()
	}
}

func (c *container) start(ctx context.Context, p *Process) error {
	if c.image.Path != "" && c.child == nil {
		return c.restore(ctx, p)
	}
	if fifo := c.runtime.ExecFifo(c.task.ID); fifo != "" && !c.mustStart {
		if err := oci.OpenExecFifo(ctx, fifo, c.child); err != nil {
			return fmt.Errorf("OCI runtime start failed: %w", err)
		}
		return nil
	}
	return c.runtime.Start(ctx, c.task.ID)
}

// untilEnd returns a context that ends c.patience after the init. Calls that may run
// hooks must not use it: hooks may take longer, and must still be run.
func (c *container) untilEnd(ctx context.Context) (_ context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-c.task.ended:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(c.patience):
			end(fmt.Errorf("the container ended %v ago: %w", c.patience, errdefs.ErrFailedPrecondition))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { end(nil) }
}

// restore has the OCI runtime start the container from a checkpoint. It joins the
// sandbox again, because the runtime enters the namespaces only now, and the paths
// found at create may meanwhile lead to the host's.
func (c *container) restore(ctx context.Context, p *Process) (err error) {
	ctx, leave, err := c.supervisor.join(ctx, c.task.Bundle, c.spec)
	if err != nil {
		return err
	}
	defer leave()
	defer func() { err = whyEnded(ctx, err) }()
	pidFile := filepath.Join(c.task.Bundle, "init.pid")
	child, err := c.supervisor.spawn(ctx, p, c.runtime.Options, pidFile, func(s *stdio.Streams, console *stdio.ConsoleSocket) error {
		return c.runtime.Restore(ctx, c.task.ID, c.image, pidFile, s, console)
	})
	if err != nil {
		// Unlike a container that was created but cannot be started, this one did not exist before.
		return errors.Join(err, c.runtime.Delete(context.WithoutCancel(ctx), c.task.ID, true))
	}
	c.spec = nil
	c.adopt(child)
	c.watch()
	return nil
}

func (c *container) signal(sig unix.Signal) error {
	if err := c.child.Signal(sig); err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		c.letDie()
	}
	return nil
}

// restoreFiles implements [body]. It does nothing: the client makes a container's files.
func (c *container) restoreFiles() error { return nil }

func (c *container) signalAll(sig unix.Signal) error {
	cgroup := c.task.group()
	if cgroup == nil {
		return c.signal(sig)
	}
	if err := cgroup.Signal(sig); err != nil {
		return err
	}
	if sig == unix.SIGKILL {
		c.letDie()
	}
	return nil
}

func (c *container) remove(ctx context.Context, p *Process) error {
	if err := p.closeStreams(ctx); err != nil {
		log.G(ctx).Warn(err)
	}
	if c.mustDelete || !c.runtime.RemoveContainer(ctx, c.task.ID) {
		if err := c.runtime.Delete(ctx, c.task.ID, false); err != nil {
			return err
		}
	}
	if err := c.unmountRootfs(); err != nil {
		return err
	}
	if err := oci.RestoreSpec(c.task.Bundle); err != nil {
		return err
	}
	return removeRecord(c.task.Bundle)
}

func (c *container) discard(ctx context.Context) error {
	c.task.unwatchOOM()
	err := c.runtime.Delete(ctx, c.task.ID, true)
	if s := c.task.init.openStreams(); s != nil {
		s.Close()
	}
	return errors.Join(err, c.unmountRootfs(), oci.RestoreSpec(c.task.Bundle))
}

func (c *container) update(ctx context.Context, r *specs.LinuxResources) error {
	ctx, cancel := c.untilEnd(ctx)
	defer cancel()
	return c.runtime.Update(ctx, c.task.ID, r)
}

func (c *container) pids() ([]int, error) {
	cgroup := c.task.group()
	if cgroup == nil {
		return nil, nil
	}
	pids, err := cgroup.Pids()
	if errdefs.IsNotFound(err) {
		return nil, nil // the OCI runtime removes a cgroup only when it is empty
	}
	return pids, err
}

func (c *container) checkpoint(ctx context.Context, o oci.CheckpointOptions) error {
	if o.WorkPath == "" {
		o.WorkPath = filepath.Join(c.task.Bundle, "work", "criu-work")
		defer os.RemoveAll(o.WorkPath)
	}
	// runc creates these directories, crun does not.
	for _, dir := range []string{o.Path, o.WorkPath} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot create a directory for the checkpoint: %w", err)
		}
	}
	err := c.runtime.Checkpoint(ctx, c.task.ID, o)
	if err == nil {
		return nil
	}
	// Keep criu's log, which says why it failed, when the work directory is removed.
	dump := filepath.Join(c.task.Bundle, "criu-dump.log")
	if rerr := os.Rename(filepath.Join(o.WorkPath, "dump.log"), dump); rerr != nil {
		return err
	}
	return fmt.Errorf("%w (see %s)", err, dump)
}
