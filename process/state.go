package process

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// State is the state of a process in its life cycle.
//
//	          start           pause            resume
//	created ────────▶ running ──────▶ pausing ─────────▶ running
//	   │                 │               │
//	   │                 │               ▼
//	   │                 │             paused
//	   │                 │               │
//	   └───── exit ──────┴───── exit ────┘
//	                     ▼
//	                  stopped ── delete ──▶ deleted
//
// Verbs, and the states in which they are allowed. In other states they fail with
// [errdefs.ErrFailedPrecondition], except that a signal to a process that has ended fails
// with [errdefs.ErrNotFound], the counterpart of kill(2)'s ESRCH:
//
//	start       created
//	exec        created, running
//	signal      created, running, pausing, paused
//	pause       running
//	resume      paused
//	update      created, running, pausing, paused
//	checkpoint  running, paused
//	delete      created (it is killed first), stopped
type State int

// The states of a process.
const (
	Created State = iota
	Running
	Pausing
	Paused
	Stopped
	Deleted
)

// String returns the name that containerd's API gives the state.
func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Running:
		return "running"
	case Pausing:
		return "pausing"
	case Paused:
		return "paused"
	case Stopped:
		return "stopped"
	case Deleted:
		return "deleted"
	}
	return fmt.Sprintf("state(%d)", int(s))
}

type verb string

const (
	verbStart      verb = "start"
	verbExec       verb = "exec in"
	verbSignal     verb = "signal"
	verbPause      verb = "pause"
	verbResume     verb = "resume"
	verbUpdate     verb = "update"
	verbCheckpoint verb = "checkpoint"
	verbDelete     verb = "delete"
)

// allows returns an error if a verb is not allowed in state s. It implements the table in
// the comment of [State].
func (s State) allows(v verb) error {
	ok := false
	switch v {
	case verbStart:
		ok = s == Created
	case verbExec:
		ok = s == Created || s == Running
	case verbSignal:
		if s == Stopped || s == Deleted {
			return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
		}
		ok = true
	case verbPause:
		ok = s == Running
	case verbResume:
		ok = s == Paused
	case verbUpdate:
		ok = s <= Paused
	case verbCheckpoint:
		ok = s == Running || s == Paused
	case verbDelete:
		ok = s == Created || s == Stopped
	}
	if !ok {
		return fmt.Errorf("it is %s: %w", s, errdefs.ErrFailedPrecondition)
	}
	return nil
}
