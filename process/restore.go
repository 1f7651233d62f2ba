package process

import (
	"context"
	"fmt"

	"containerd-shim-pause-v2/process/carry"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Children returns the pids of the children of this process that belong to the tasks. The
// reaper has to know them from its beginning.
func (s *Saved) Children() (pids []int) {
	if s == nil {
		return nil
	}
	for _, t := range s.Tasks {
		if t.Container != nil {
			pids = append(pids, t.Init.children()...)
		} else if t.Sandbox.InitChild != 0 {
			pids = append(pids, t.Sandbox.InitChild)
		}
		for _, e := range t.Execs {
			pids = append(pids, e.children()...)
		}
	}
	return pids
}

func (p *savedProcess) children() []int {
	pids := p.Streams.Children()
	if p.lives() {
		pids = append(pids, p.Pid)
	}
	return pids
}

// lives says whether the process had not been reaped.
func (p *savedProcess) lives() bool { return p.Pid != 0 && p.State != Stopped }

// Restore goes on with the tasks that the program before this one has saved. It reports all
// that happens to them from now on, and what has happened to them since.
func (h *Supervisor) Restore(s *Saved) error {
	for _, saved := range s.Tasks {
		t, err := h.restore(saved)
		if err != nil {
			return fmt.Errorf("cannot take over task %s: %w", saved.ID, err)
		}
		t.watchRestored(saved)
	}
	return nil
}

func (h *Supervisor) restore(saved *savedTask) (*Task, error) {
	t := &Task{ID: saved.ID, Bundle: saved.Bundle, Pod: saved.Pod, sandboxID: saved.SandboxID, supervisor: h}
	e := &entry{bundle: saved.Resolved, given: saved.Bundle, created: make(chan struct{}), task: t, pidns: saved.PIDNS}
	close(e.created)
	if saved.Cgroup != nil {
		t.cgroup = saved.Cgroup.Restore()
	}
	switch {
	case saved.Container != nil:
		h.restoreContainer(t, saved)
	case saved.Sandbox != nil:
		s, err := h.restoreSandbox(t, saved)
		if err != nil {
			return nil, err
		}
		e.pod = s
	default:
		return nil, fmt.Errorf("it is neither a container nor a sandbox")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.entries[t.ID] = e
	return t, nil
}

// restoreProcess makes a process as it was saved. Its streams are still suspended.
func (h *Supervisor) restoreProcess(taskID string, saved *savedProcess, events Events, r runner) *Process {
	p := newProcess(taskID, saved.ID, saved.Stdio, events, r)
	p.state, p.pid, p.started, p.exit = saved.State, saved.Pid, saved.Started, saved.Exit
	p.inputClosed, p.size = saved.InputClosed, saved.Size
	if saved.Streams != nil {
		p.streams = stdio.Restore(saved.Streams, saved.Stdio, h.reaper)
	}
	if p.state == Stopped {
		close(p.exited)
	}
	return p
}

// restoreChild returns the child of a process; nil before there is one.
func (h *Supervisor) restoreChild(saved *savedProcess) *reap.Child {
	switch {
	case saved.lives():
		return h.reaper.Claim(saved.Pid)
	case saved.Pid != 0:
		return h.reaper.Reaped(saved.Pid)
	}
	return nil
}

func (h *Supervisor) restoreContainer(t *Task, saved *savedTask) {
	is := saved.Container
	c := &container{
		task: t, supervisor: h, runtime: h.ociRuntime(t.Bundle, is.Options), rootfs: is.Rootfs, shared: is.Shared,
		mustStart: is.MustStart, mustDelete: is.MustDelete, image: is.Image, spec: is.Spec, patience: runtimePatience,
		child: h.restoreChild(&saved.Init),
	}
	c.runtime.CgroupsPath = is.CgroupsPath
	t.body = c
	t.ended = make(chan struct{})
	if saved.Init.State == Stopped {
		close(t.ended)
	}
	t.init = h.restoreProcess(t.ID, &saved.Init, h.events, c)
	t.execs = make(map[string]*Process)
	for i := range saved.Execs {
		exec := &saved.Execs[i]
		e := &execution{container: c, spec: exec.Spec, child: h.restoreChild(exec)}
		t.execs[exec.ID] = h.restoreProcess(t.ID, exec, h.events, e)
	}
}

// restoreSandbox puts a thread into the namespaces of a sandbox. Its number is the sandbox's
// pid from now on; it is the same for the main thread only.
func (h *Supervisor) restoreSandbox(t *Task, saved *savedTask) (*sandbox, error) {
	is := saved.Sandbox
	s := &sandbox{
		task: t, supervisor: h, options: is.Options, pid: is.Pid, formerPIDs: is.FormerPIDs, initRoot: is.InitRoot,
		bringsInit: is.BringsInit, initPID: is.InitPID, own: is.Own, files: is.Files.Restore(),
		made: make(chan struct{}), freed: make(chan struct{}),
	}
	close(s.made)
	s.life, s.giveUp = context.WithCancelCause(context.Background())
	t.body = s
	events := h.events
	if is.API {
		events = silence{}
	}
	t.init = h.restoreProcess(t.ID, &saved.Init, events, s)
	if is.Namespaces == nil {
		s.endOnce.Do(func() {})
		s.freeOnce.Do(func() { close(s.freed) })
		s.close()
	} else if err := s.enterAgain(is); err != nil {
		return nil, err
	}
	s.hooks = is.Hooks.Restore(s.pid)
	return s, nil
}

// enterAgain takes over what a sandbox holds.
func (s *sandbox) enterAgain(is *savedSandbox) (err error) {
	for _, fd := range is.Fifos {
		s.fifos = append(s.fifos, carry.Take(fd, "output"))
	}
	if s.userns, err = pod.TakeNamespace(is.Userns, specs.UserNamespace); err != nil {
		return err
	}
	if is.InitChild != 0 {
		ns, err := pod.TakeNamespace(is.InitPIDNS, specs.PIDNamespace)
		if err != nil {
			return err
		}
		s.init = &podInit{child: s.supervisor.reaper.Claim(is.InitChild), ns: ns, ended: make(chan struct{})}
	}
	if s.thread = s.supervisor.thread; s.thread == nil {
		s.thread = pod.StartThread()
	}
	if s.pid, err = s.thread.ID(); err != nil {
		return err
	}
	if s.pid != is.Pid {
		s.formerPIDs = append(s.formerPIDs, is.Pid)
	}
	s.task.init.setPID(s.pid)
	s.ids, err = s.thread.Return(is.Namespaces)
	return err
}

// watchRestored has everything go on that the task does by itself.
func (t *Task) watchRestored(saved *savedTask) {
	if saved.OOM != nil {
		t.watchOOM(saved.OOM)
	}
	for _, p := range append(t.snapshot(), t.init) {
		if s := p.openStreams(); s != nil {
			s.Continue()
		}
	}
	switch body := t.body.(type) {
	case *container:
		for i := range saved.Execs {
			if exec := &saved.Execs[i]; exec.lives() {
				p := t.execs[exec.ID]
				t.running.Add(1)
				go p.runner.(*execution).awaitEnd(p)
			}
		}
		if saved.Init.lives() {
			body.watch()
		}
	case *sandbox:
		if i := body.podInit(); i != nil {
			go body.awaitPodInit(i)
		}
	}
}
