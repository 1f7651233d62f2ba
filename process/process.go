package process

import (
	"context"
	"fmt"
	"sync"
	"time"

	"containerd-shim-pause-v2/process/stdio"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// Exit is how a process ended.
type Exit struct {
	Status uint32    `json:"status"` // exit code, or 128 plus the signal
	At     time.Time `json:"at"`
}

// Events receives reports of what happens to processes. Calls for one process come in the
// order of what happened: Started before Exited, and within a task the Exited of all execs
// before that of the init. Implementations must return quickly and must not call back into
// the process.
type Events interface {
	// Started reports that a process has been started; execID is empty for the init.
	Started(taskID, execID string, pid int)
	// Exited reports that a process has ended; execID is empty for the init.
	Exited(taskID, execID string, pid int, exit Exit)
	// OOM reports that the kernel's OOM killer has killed a process in the task's cgroup.
	OOM(taskID string)
}

// silence drops all events.
type silence struct{}

func (silence) Started(string, string, int)      {}
func (silence) Exited(string, string, int, Exit) {}
func (silence) OOM(string)                       {}

// Process is the init of a container, an exec in it, or a sandbox. Its states are those
// of [State]. All methods may be called in any state and concurrently.
//
// It has two locks, taken in this order: verb is held during one whole change of state,
// including its calls of the OCI runtime and of Events, which puts the events in order; mu
// guards the fields below it and is held only briefly, so that Status, Signal and Wait
// never wait for an OCI runtime.
type Process struct {
	taskID, id string
	stdio      stdio.Config
	runner     runner
	events     Events

	verb sync.Mutex

	mu      sync.Mutex
	state   State
	pid     int
	started time.Time // zero before the start
	exit    Exit
	streams *stdio.Streams // nil if there are none (yet)
	// inputClosed and size are what clients have asked for so far. They may ask before the
	// streams exist: an exec gets its streams when it is started.
	inputClosed bool
	size        *stdio.Size // nil if nobody has asked for one
	// exited is closed when the process has stopped and its exit has been reported.
	exited chan struct{}
}

// runner is what differs between the kinds of processes. Its methods are called only in
// states that allow them.
type runner interface {
	// start takes the process from created to running. If the process gets its pid only
	// now, start sets it with setPID.
	start(ctx context.Context, p *Process) error
	// signal sends sig. It fails with [errdefs.ErrNotFound] if the process has ended.
	signal(sig unix.Signal) error
	// remove frees what a stopped process holds. It may be called again after an error.
	remove(ctx context.Context, p *Process) error
}

func newProcess(taskID, id string, sio stdio.Config, events Events, r runner) *Process {
	return &Process{taskID: taskID, id: id, stdio: sio, events: events, runner: r, exited: make(chan struct{})}
}

// Status is the state of a process at one moment.
type Status struct {
	State State
	Pid   int  // 0 before there is one
	Exit  Exit // zero before it has stopped
}

// ID returns the ID of an exec; it is empty for an init or sandbox.
func (p *Process) ID() string { return p.id }

// Stdio returns where the process's streams lead.
func (p *Process) Stdio() stdio.Config { return p.stdio }

// Status returns the current state.
func (p *Process) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	return Status{p.state, p.pid, p.exit}
}

// StartedAt returns when the process was started; zero if it has not been.
func (p *Process) StartedAt() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.started
}

// Start starts a created process and returns its pid. It fails with
// [errdefs.ErrFailedPrecondition] in any other state.
func (p *Process) Start(ctx context.Context) (int, error) {
	p.verb.Lock()
	defer p.verb.Unlock()
	if err := p.check(verbStart); err != nil {
		return 0, err
	}
	if err := p.runner.start(ctx, p); err != nil {
		return 0, fmt.Errorf("cannot start %s: %w", p, err)
	}
	p.mu.Lock()
	p.started = time.Now()
	p.mu.Unlock()
	pid := p.enter(Running)
	p.events.Started(p.taskID, p.id, pid)
	return pid, nil
}

// Signal sends a signal to the process. It fails with [errdefs.ErrNotFound] if the process
// has ended, with [errdefs.ErrFailedPrecondition] if it does not exist yet, and with
// [errdefs.ErrInvalidArgument] if there is no such signal.
func (p *Process) Signal(sig unix.Signal) error {
	return p.signalBy(sig, p.runner.signal)
}

func (p *Process) signalBy(sig unix.Signal, send func(unix.Signal) error) error {
	if sig < 1 || sig > maxSignal {
		return fmt.Errorf("cannot signal %s: there is no signal %d: %w", p, int(sig), errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	err, pid := p.state.allows(verbSignal), p.pid
	p.mu.Unlock()
	if err == nil && pid == 0 {
		err = fmt.Errorf("it has not been started: %w", errdefs.ErrFailedPrecondition)
	}
	if err == nil {
		err = send(sig)
	}
	if err != nil {
		return fmt.Errorf("cannot signal %s: %w", p, err)
	}
	return nil
}

// maxSignal is the kernel's SIGRTMAX.
const maxSignal = 64

// Wait returns the exit when the process has stopped and its exit has been reported, or
// ctx's error when ctx ends first.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.exited:
		return p.Status().Exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Delete frees everything that a stopped process holds, and returns its last status. It
// first kills a process that was created but not started. It fails with
// [errdefs.ErrFailedPrecondition] if the process runs or has been deleted.
func (p *Process) Delete(ctx context.Context) (Status, error) {
	if err := p.endCreated(ctx); err != nil {
		return Status{}, err
	}
	p.verb.Lock()
	defer p.verb.Unlock()
	if err := p.check(verbDelete); err != nil {
		return Status{}, err
	}
	if err := p.runner.remove(ctx, p); err != nil {
		return Status{}, fmt.Errorf("cannot delete %s: %w", p, err)
	}
	if p.Status().State == Created {
		close(p.exited) // it never ran, so nothing else ends the calls of Wait
	}
	p.enter(Deleted)
	return p.Status(), nil
}

// release frees what an exec holds after its task has been deleted. For an exec that was
// never started it ends the calls of Wait, because nothing else would.
func (p *Process) release() {
	p.verb.Lock()
	defer p.verb.Unlock()
	if p.Status().State == Created {
		p.enter(Deleted)
		close(p.exited)
	}
	if s := p.openStreams(); s != nil {
		s.Close()
	}
}

// endCreated kills a process that exists but was never started.
func (p *Process) endCreated(ctx context.Context) error {
	if s := p.Status(); s.State != Created || s.Pid == 0 {
		return nil
	}
	err := p.runner.signal(unix.SIGKILL)
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("cannot delete %s: %w", p, err)
	}
	if _, err := p.Wait(ctx); err != nil {
		return fmt.Errorf("cannot delete %s: it was killed but has not ended: %w", p, err)
	}
	return nil
}

// Resize sets the size of the process's terminal, in characters. A process that has yet to
// be started begins with that size.
func (p *Process) Resize(width, height uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = &stdio.Size{Width: width, Height: height}
	if err := p.streams.Resize(*p.size); err != nil {
		return fmt.Errorf("%s: %w", p, err)
	}
	return nil
}

// wantedSize returns the terminal size that a client has asked for; nil if none has.
func (p *Process) wantedSize() *stdio.Size {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

// CloseStdin ends the standard input once everything written to it has been read. It also
// applies to a process that has yet to be started.
func (p *Process) CloseStdin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inputClosed = true
	if p.streams != nil {
		p.streams.CloseInput()
	}
}

// String returns the name of the process for messages.
func (p *Process) String() string {
	if p.id == "" {
		return "task " + p.taskID
	}
	return "process " + p.id + " in task " + p.taskID
}

// loggerID returns the id that is passed to a logging program.
func (p *Process) loggerID() string {
	if p.id == "" {
		return p.taskID
	}
	return p.id
}

// check returns an error if the state does not allow the verb.
func (p *Process) check(v verb) error {
	if err := p.Status().State.allows(v); err != nil {
		return fmt.Errorf("cannot %s %s: %w", v, p, err)
	}
	return nil
}

// enter changes the state and returns the pid. The caller holds verb. A process that has
// stopped meanwhile can only become deleted.
func (p *Process) enter(s State) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != Stopped || s == Deleted {
		p.state = s
	}
	return p.pid
}

// stop waits a moment for clients to read the output, then records and reports how the
// process ended. It is called once.
func (p *Process) stop(exit Exit, record func(Status)) {
	if s := p.openStreams(); s != nil {
		s.Settle()
	}
	p.verb.Lock()
	defer p.verb.Unlock()
	p.mu.Lock()
	p.state, p.exit = Stopped, exit
	pid := p.pid
	p.mu.Unlock()
	if record != nil {
		record(Status{Stopped, pid, exit})
	}
	p.events.Exited(p.taskID, p.id, pid, exit)
	close(p.exited)
}

func (p *Process) setPID(pid int) {
	p.mu.Lock()
	p.pid = pid
	p.mu.Unlock()
}

// setStreams gives the process its streams, and applies to them what clients have asked
// for before.
func (p *Process) setStreams(s *stdio.Streams) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size != nil {
		if err := s.Resize(*p.size); err != nil {
			log.L.WithError(err).WithField("id", p.taskID).WithField("exec", p.id).Warn("cannot set the size of the terminal")
		}
	}
	if p.inputClosed {
		s.CloseInput()
	}
	p.streams = s
}

func (p *Process) openStreams() *stdio.Streams {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.streams
}

// closeStreams copies the remaining output to its reader, then closes the streams.
func (p *Process) closeStreams(ctx context.Context) error {
	s := p.openStreams()
	if s == nil {
		return nil
	}
	defer s.Close()
	if err := s.Drain(ctx); err != nil {
		return fmt.Errorf("cannot copy all output of %s: %w", p, err)
	}
	return nil
}
