package process

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process/carry"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The tasks of a supervisor can pass to another program, which the process executes in its
// own place: their processes stay its children, their files stay open, and the rest is
// written down. Save does that, and Restore in the other program is its counterpart.

// Saved is what a supervisor has written down. It has no secrets but those that the streams
// of the tasks hold.
type Saved struct {
	Tasks []*savedTask `json:"tasks"`
}

type savedTask struct {
	ID        string            `json:"id"`
	Bundle    string            `json:"bundle"`
	Resolved  string            `json:"resolved"` // the same without symbolic links
	SandboxID string            `json:"sandbox_id,omitempty"`
	PIDNS     pod.NSID          `json:"pidns"`
	Pod       *Pod              `json:"pod,omitempty"`
	Init      savedProcess      `json:"init"`
	Execs     []savedProcess    `json:"execs,omitempty"`
	Cgroup    *cgroups.Saved    `json:"cgroup,omitempty"`
	OOM       *cgroups.OOMCount `json:"oom,omitempty"` // nil without a watch
	Container *savedContainer   `json:"container,omitempty"`
	Sandbox   *savedSandbox     `json:"sandbox,omitempty"`
}

type savedProcess struct {
	ID          string              `json:"id,omitempty"`
	Stdio       stdio.Config        `json:"stdio"`
	State       State               `json:"state"`
	Pid         int                 `json:"pid"`
	Started     time.Time           `json:"started"`
	Exit        Exit                `json:"exit"`
	Streams     *stdio.SavedStreams `json:"streams,omitempty"`
	InputClosed bool                `json:"input_closed,omitempty"`
	Size        *stdio.Size         `json:"size,omitempty"`
	// Spec is that of an exec that has not been started.
	Spec map[string]json.RawMessage `json:"spec,omitempty"`
}

type savedContainer struct {
	Options     oci.Options         `json:"options"`
	CgroupsPath string              `json:"cgroups_path,omitempty"`
	Rootfs      string              `json:"rootfs,omitempty"`
	Shared      bool                `json:"shared,omitempty"`
	MustStart   bool                `json:"must_start,omitempty"`
	MustDelete  bool                `json:"must_delete,omitempty"`
	Image       oci.CheckpointImage `json:"image"`
	Spec        *specs.Spec         `json:"spec,omitempty"`
}

type savedSandbox struct {
	Options    oci.Options                      `json:"options"`
	Pid        int                              `json:"pid"`
	FormerPIDs []int                            `json:"former_pids,omitempty"`
	InitRoot   string                           `json:"init_root,omitempty"`
	BringsInit bool                             `json:"brings_init,omitempty"`
	InitPID    bool                             `json:"init_pid,omitempty"`
	API        bool                             `json:"api,omitempty"` // one of the Sandbox API
	Own        pod.Own                          `json:"own"`
	Namespaces map[specs.LinuxNamespaceType]int `json:"namespaces,omitempty"` // numbers of open files
	Userns     int                              `json:"userns"`
	Fifos      []int                            `json:"fifos,omitempty"`
	Files      *pod.SavedFiles                  `json:"files,omitempty"`
	Hooks      *pod.SavedHooks                  `json:"hooks,omitempty"`
	// InitChild is the pid of the pod init; 0 if there is none.
	InitChild int `json:"init_child,omitempty"`
	InitPIDNS int `json:"init_pidns"`
}

// Save stops all that the tasks do by themselves, and writes the tasks down. The files that
// they have open are added to files. The caller keeps requests and everything that calls
// Begin from going on meanwhile. After an error, or if no other program goes on with the
// tasks, the caller has to call Continue.
func (h *Supervisor) Save(ctx context.Context, files *carry.Files) (*Saved, error) {
	saved := new(Saved)
	for _, t := range h.Tasks() {
		s, err := t.save(ctx, files)
		if err != nil {
			return nil, fmt.Errorf("cannot hand over task %s: %w", t.ID, err)
		}
		saved.Tasks = append(saved.Tasks, s)
	}
	return saved, nil
}

// Continue has the tasks go on after Save.
func (h *Supervisor) Continue() {
	for _, t := range h.Tasks() {
		for _, p := range append(t.snapshot(), t.init) {
			if s := p.openStreams(); s != nil {
				s.Continue()
			}
		}
		t.rewatchOOM()
		if s, ok := t.body.(*sandbox); ok {
			stdio.CloseAll(s.handedOver...)
			s.handedOver = nil
		}
	}
}

func (t *Task) save(ctx context.Context, files *carry.Files) (_ *savedTask, err error) {
	h := t.supervisor
	h.mu.Lock()
	e := h.entries[t.ID]
	s := &savedTask{ID: t.ID, Bundle: t.Bundle, Resolved: e.bundle, PIDNS: e.pidns, SandboxID: t.sandboxID, Pod: t.Pod}
	h.mu.Unlock()
	if s.Init, err = t.init.save(ctx, files); err != nil {
		return nil, err
	}
	for _, p := range t.snapshot() {
		exec, err := p.save(ctx, files)
		if err != nil {
			return nil, err
		}
		s.Execs = append(s.Execs, exec)
	}
	if cgroup := t.group(); cgroup != nil {
		s.Cgroup = cgroup.Save()
	}
	s.OOM = t.stopWatchingOOM()
	switch body := t.body.(type) {
	case *container:
		s.Container = body.save()
	case *sandbox:
		s.Sandbox, err = body.save(files)
	}
	return s, err
}

func (p *Process) save(ctx context.Context, files *carry.Files) (savedProcess, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := savedProcess{
		ID: p.id, Stdio: p.stdio, State: p.state, Pid: p.pid, Started: p.started, Exit: p.exit,
		InputClosed: p.inputClosed, Size: p.size,
	}
	if e, ok := p.runner.(*execution); ok {
		s.Spec = e.spec
	}
	if p.streams != nil {
		if err := p.streams.Suspend(ctx); err != nil {
			return s, err
		}
		s.Streams = p.streams.Save(files)
	}
	return s, nil
}

func (c *container) save() *savedContainer {
	return &savedContainer{
		Options: c.runtime.Options, CgroupsPath: c.runtime.CgroupsPath, Rootfs: c.rootfs, Shared: c.shared,
		MustStart: c.mustStart, MustDelete: c.mustDelete, Image: c.image, Spec: c.spec,
	}
}

func (s *sandbox) save(files *carry.Files) (*savedSandbox, error) {
	saved := &savedSandbox{
		Options: s.options, Pid: s.pid, FormerPIDs: s.formerPIDs, InitRoot: s.initRoot, BringsInit: s.bringsInit, InitPID: s.initPID,
		API: s.task.init.events == Events(silence{}), Own: s.own, Userns: carry.None, InitPIDNS: carry.None,
		Files: s.files.Save(files), Hooks: s.hooks.Save(),
	}
	if s.isFreed() {
		return saved, nil
	}
	if s.userns != nil {
		saved.Userns = files.Add(s.userns.File)
	}
	for _, f := range s.fifos {
		saved.Fifos = append(saved.Fifos, files.Add(f))
	}
	if i := s.podInit(); i != nil {
		saved.InitChild, saved.InitPIDNS = i.child.Pid, files.Add(i.ns.File)
	}
	namespaces, err := s.thread.Files()
	if err != nil {
		return nil, err
	}
	saved.Namespaces = make(map[specs.LinuxNamespaceType]int)
	for kind, f := range namespaces {
		s.handedOver = append(s.handedOver, f)
		saved.Namespaces[kind] = files.Add(f)
	}
	return saved, nil
}

// stopWatchingOOM ends the watch for OOM kills, and returns what it has counted; nil if there
// is none.
func (t *Task) stopWatchingOOM() *cgroups.OOMCount {
	t.mu.Lock()
	stop := t.stopOOM
	t.mu.Unlock()
	if stop == nil || t.init.Status().State == Stopped {
		return nil
	}
	count := stop()
	return &count
}

// rewatchOOM watches for OOM kills again, and reports those since stopWatchingOOM.
func (t *Task) rewatchOOM() {
	if count := t.stopWatchingOOM(); count != nil {
		t.watchOOM(count)
	}
}
