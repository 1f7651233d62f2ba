package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"

	"containerd-shim-pause-v2/integration/node"
)

// soakEvents is what containerd has published about tasks.
type soakEvents struct {
	ctx context.Context

	mu     sync.Mutex
	cancel context.CancelFunc     // guarded by mu: of the subscription
	number int                    // guarded by mu: of the subscription; each containerd has another
	of     map[string][]soakEvent // guarded by mu: by container, in order
	bad    []string               // guarded by mu: events that cannot be read
}

// soakEvent is one event, as describe has it.
type soakEvent struct {
	word         string
	subscription int
	status       uint32 // of an exit
}

// subscribe begins, or begins anew when there is another containerd.
func (e *soakEvents) subscribe() {
	ctx, cancel := context.WithCancel(e.ctx)
	e.mu.Lock()
	e.number++
	number := e.number
	e.cancel = cancel
	e.mu.Unlock()
	theNode.Subscribe(ctx, func(envelope *coreevents.Envelope) { e.add(number, envelope) },
		`namespace==`+node.CRINamespace+`,topic~="^/tasks/"`, theNode.TaskEvents())
}

// end ends the subscription, since containerd ends.
func (e *soakEvents) end() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cancel()
}

func (e *soakEvents) add(subscription int, envelope *coreevents.Envelope) {
	event, err := typeurl.UnmarshalAny(envelope.Event)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil {
		e.bad = append(e.bad, fmt.Sprintf("event %s: %v", envelope.Topic, err))
		return
	}
	container, _ := describe("", event)
	_, word := describe(container, event)
	is := soakEvent{word: word, subscription: subscription}
	if exit, ok := event.(*events.TaskExit); ok {
		is.status = exit.ExitStatus
	}
	e.of[container] = append(e.of[container], is)
}

func (e *soakEvents) get(container string) []soakEvent {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.of[container])
}

// take returns all events but those of some containers, and forgets them.
func (e *soakEvents) take(except []string) map[string][]soakEvent {
	e.mu.Lock()
	defer e.mu.Unlock()
	taken := make(map[string][]soakEvent)
	for container, list := range e.of {
		if !slices.Contains(except, container) {
			taken[container] = list
			delete(e.of, container)
		}
	}
	return taken
}

// describeEvents is for a message.
func describeEvents(list []soakEvent) string {
	var words []string
	for _, e := range list {
		words = append(words, fmt.Sprintf("%s (%d, subscription %d)", e.word, e.status, e.subscription))
	}
	return strings.Join(words, ", ")
}

// wrongOrder says what is wrong with the events of a container, whatever has been missed: something that comes twice,
// or after what it has to come before. One containerd tells each event once. The next one may tell again what the one
// before it has told and, killed, not acknowledged.
func wrongOrder(list []soakEvent) (wrong []string) {
	ranks := map[string]int{"create": 0, "start": 1, "exit": 3, "delete": 4}
	seen := make(map[string]bool)
	last, subscription := 0, 0
	for _, e := range list {
		if e.subscription != subscription {
			last, subscription = 0, e.subscription
			clear(seen)
		}
		if seen[e.word] && e.word != "oom" {
			wrong = append(wrong, e.word+" comes twice")
		}
		seen[e.word] = true
		rank, ok := ranks[e.word]
		if !ok {
			rank = 2 // of an exec, or an OOM kill
		}
		if strings.HasPrefix(e.word, "delete ") || e.word == "oom" {
			continue // of an exec, by its client, at any time
		}
		if rank < last {
			wrong = append(wrong, e.word+" comes too late")
		}
		last = max(last, rank)
	}
	return wrong
}

// missing says which events a container has not had that ran and was deleted under one containerd.
func missing(list []soakEvent) (words []string) {
	for _, word := range []string{"create", "start", "exit", "delete"} {
		if !slices.ContainsFunc(list, func(e soakEvent) bool { return e.word == word }) {
			words = append(words, word)
		}
	}
	return words
}

// checkEvents expects of each task of a round one exit, in order, with the code that the container has written down.
func (s *soak) checkEvents(r *soakRound) {
	s.t.Helper()
	pods := make(map[string]*soakPod) // by the ids of containers
	for _, p := range r.pods {
		for _, task := range p.tasks {
			pods[task.id] = p
		}
	}
	var late []string
	for start := time.Now(); time.Since(start) < patience*20*time.Second; time.Sleep(20 * time.Millisecond) {
		late = nil
		for id, p := range pods {
			if p.excuse != "" || r.restarted || p.isStock() {
				continue // the stock shim may end before it has sent the last one, see expectAll
			}
			if words := missing(s.events.get(id)); len(words) > 0 {
				late = append(late, fmt.Sprintf("container %s of %s: no event %v, but %s", id, p, words, describeEvents(s.events.get(id))))
			}
		}
		if len(late) == 0 {
			break
		}
	}
	for _, l := range late {
		s.fail(r, "%s", l)
	}
	var stay []string
	for _, resident := range s.stay {
		stay = append(stay, resident.ID, resident.sleeper)
		if list := s.events.get(resident.sleeper); slices.ContainsFunc(list, func(e soakEvent) bool { return e.word == "exit" }) {
			s.fail(r, "container %s, which lives: %s", resident.sleeper, describeEvents(list))
		}
	}
	for id, list := range s.events.take(stay) {
		p := pods[id]
		for _, wrong := range wrongOrder(list) {
			// containerd tells the exit of all containers of a shim that has died (cleanupAfterDeadShim in
			// core/runtime/v2/shim.go of 2.4.2), whether or not the shim has told it before.
			if r.endsShims() && (p == nil || p.excuse != "") {
				s.count("exit that containerd has told after the shim had")
				continue
			}
			s.fail(r, "task %s of %s: %s: %s", id, p, wrong, describeEvents(list))
		}
		if p == nil {
			continue
		}
		for _, e := range list {
			if e.word == "exit" {
				s.checkCode(r, p, id, int32(e.status))
			}
		}
	}
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	for _, bad := range s.events.bad {
		s.fail(r, "%s", bad)
	}
	s.events.bad = nil
}
