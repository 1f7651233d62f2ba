package integration

import (
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// eventLog is what containerd has published about one container's task, a word
// or two for each event, in order.
type eventLog struct {
	t    *testing.T
	id   string
	shim string
	mu   sync.Mutex
	all  []string
}

// subscribe records the task events of a container from now on.
func subscribe(t *testing.T, c *container) *eventLog {
	t.Helper()
	l := &eventLog{t: t, id: c.ID(), shim: c.shim}
	theNode.Subscribe(c.ctx, l.add, theNode.TaskEvents())
	return l
}

func (l *eventLog) add(e *coreevents.Envelope) {
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		l.t.Errorf("event %s: %v", e.Topic, err)
		return
	}
	if id, word := describe(l.id, v); id == l.id {
		l.mu.Lock()
		l.all = append(l.all, word)
		l.mu.Unlock()
	}
}

func describe(container string, event any) (id, word string) {
	switch e := event.(type) {
	case *events.TaskCreate:
		return e.ContainerID, "create"
	case *events.TaskStart:
		return e.ContainerID, "start"
	case *events.TaskExecAdded:
		return e.ContainerID, "exec-added " + e.ExecID
	case *events.TaskExecStarted:
		return e.ContainerID, "exec-started " + e.ExecID
	case *events.TaskExit:
		if e.ID == container {
			return e.ContainerID, "exit"
		}
		return e.ContainerID, "exit " + e.ID
	case *events.TaskDelete:
		if e.ID == "" || e.ID == container {
			return e.ContainerID, "delete"
		}
		return e.ContainerID, "delete " + e.ID
	case *events.TaskOOM:
		return e.ContainerID, "oom"
	case *events.TaskPaused:
		return e.ContainerID, "paused"
	case *events.TaskResumed:
		return e.ContainerID, "resumed"
	}
	return "", ""
}

func (l *eventLog) get() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// expect waits for an event.
func (l *eventLog) expect(word string) {
	l.t.Helper()
	defer func() {
		if l.t.Failed() {
			l.t.Logf("events: %s", strings.Join(l.get(), ", "))
		}
	}()
	eventually(l.t, "event "+word, func() bool { return slices.Contains(l.get(), word) })
}

// expectAll waits for the last of some events, and checks that these were all. The
// stock shim may end before it has sent the last one, if that is "delete".
func (l *eventLog) expectAll(words ...string) {
	l.t.Helper()
	if last := len(words) - 1; l.shim == "runc" && words[last] == "delete" {
		words = words[:last]
	}
	l.expect(words[len(words)-1])
	got := l.get()
	if l.shim == "runc" {
		got = slices.DeleteFunc(got, func(e string) bool { return e == "delete" })
	}
	if !slices.Equal(got, words) {
		l.t.Errorf("events: %s\nexpected: %s", strings.Join(got, ", "), strings.Join(words, ", "))
	}
}

func TestEventsOfTask(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("exit 3"))
		events := subscribe(t, c)
		c.run(c.streams(nil))
		c.wait()
		c.remove()
		events.expectAll("create", "start", "exit", "delete")
	})
}

func TestEventsOfPauseAndResume(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("sleep 1000"))
		events := subscribe(t, c)
		c.run(c.streams(nil))
		must(t, c.task.Pause(c.ctx))
		must(t, c.task.Resume(c.ctx))
		if shim == "runc" {
			// The stock shim may forget the exit of a task that is deleted at once.
			must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
			events.expect("exit")
		}
		c.remove()
		events.expectAll("create", "start", "paused", "resumed", "exit", "delete")
	})
}

func TestExecExitsAreReportedBeforeInitExit(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("sleep 1000"))
		events := subscribe(t, c)
		c.run(c.streams(nil))
		done := c.exec("e1", nil, nil, "true")
		done.mustFinish(0)
		events.expect("exit e1")
		killed := c.exec("e2", nil, nil, "sleep", "1000")
		must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
		c.wait()
		killed.mustFinish(137)
		c.remove()
		events.expectAll(
			"create", "start", "exec-added e1", "exec-started e1", "exit e1",
			"exec-added e2", "exec-started e2", "exit e2", "exit", "delete",
		)
	})
}
