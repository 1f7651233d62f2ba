package process

import (
	"testing"

	"github.com/containerd/errdefs"
)

// The table in the comment of State, one letter per state: y is allowed, - is a
// failed precondition, x is not found.
func TestVerbsAreAllowedAsDocumented(t *testing.T) {
	states := []State{Created, Running, Pausing, Paused, Stopped, Deleted}
	for verb, allowed := range map[verb]string{
		verbStart:      "y-----",
		verbExec:       "yy----",
		verbSignal:     "yyyyxx",
		verbPause:      "-y----",
		verbResume:     "---y--",
		verbUpdate:     "yyyy--",
		verbCheckpoint: "-y-y--",
		verbDelete:     "y---y-",
	} {
		if len(allowed) != len(states) {
			t.Fatalf("%s: %d letters for %d states", verb, len(allowed), len(states))
		}
		for i, state := range states {
			err := state.allows(verb)
			ok := false
			switch allowed[i] {
			case 'y':
				ok = err == nil
			case '-':
				ok = errdefs.IsFailedPrecondition(err)
			case 'x':
				ok = errdefs.IsNotFound(err)
			}
			if !ok {
				t.Errorf("%s when %s: got %v, want %c", verb, state, err, allowed[i])
			}
		}
	}
}

func TestUnknownVerbIsRefused(t *testing.T) {
	if err := Running.allows("dance"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("got %v", err)
	}
}

func TestStatesHaveTheNamesOfTheAPI(t *testing.T) {
	for state, want := range map[State]string{
		Created: "created", Running: "running", Pausing: "pausing", Paused: "paused", Stopped: "stopped",
		Deleted: "deleted", 42: "state(42)",
	} {
		if got := state.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
