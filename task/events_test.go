package task

import (
	"slices"
	"testing"
)

// A pod can have its processes OOM-killed any number of times, also while containerd
// takes no events.
func TestOOMEventsOfEachTaskArePublishedOnce(t *testing.T) {
	r := &recorder{}
	events := NewEvents(r)
	events.OOM("a")
	events.OOM("b")
	if want := []string{"/tasks/oom a", "/tasks/oom b"}; !slices.Equal(r.once, want) || !slices.Equal(r.all(), want) {
		t.Errorf("published %q, once %q, want %q", r.all(), r.once, want)
	}
}
