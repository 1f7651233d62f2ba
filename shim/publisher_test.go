package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	forwardapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// receiver is the event service of a containerd that can be started and stopped. It
// keeps the events that it has taken across restarts.
type receiver struct {
	t       *testing.T
	path    string
	answer  func(r *receiver, e *types.Envelope) error // nil: takes everything
	arrived chan struct{}                              // has room for one: something was taken

	mu     sync.Mutex // guards what follows
	taken  []*types.Envelope
	server *ttrpc.Server
}

func newReceiver(t *testing.T) *receiver {
	return &receiver{t: t, path: filepath.Join(shortDir(t), "containerd.ttrpc"), arrived: make(chan struct{}, 1)}
}

func (r *receiver) start() {
	r.t.Helper()
	l, err := net.Listen("unix", r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		r.t.Fatal(err)
	}
	forwardapi.RegisterTTRPCEventsService(server, r)
	r.mu.Lock()
	r.server = server
	r.mu.Unlock()
	go server.Serve(context.Background(), l)
	r.t.Cleanup(func() { server.Close() })
}

func (r *receiver) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.server.Close()
}

func (r *receiver) Forward(_ context.Context, req *forwardapi.ForwardRequest) (*emptypb.Empty, error) {
	r.mu.Lock()
	r.taken = append(r.taken, req.Envelope)
	r.mu.Unlock()
	select {
	case r.arrived <- struct{}{}:
	default:
	}
	if r.answer != nil {
		if err := r.answer(r, req.Envelope); err != nil {
			return nil, err
		}
	}
	return &emptypb.Empty{}, nil
}

// topics returns the topics of the events taken. A repeated event counts once.
func (r *receiver) topics() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var topics []string
	for i, e := range r.taken {
		if i == 0 || !proto.Equal(e, r.taken[i-1]) {
			topics = append(topics, e.Topic)
		}
	}
	return topics
}

// await returns once n events have been taken.
func (r *receiver) await(n int) {
	for len(r.topics()) < n {
		<-r.arrived
	}
}

// captureLog returns what is logged until the test ends.
func captureLog(t *testing.T) *bytes.Buffer {
	var b bytes.Buffer
	before := log.L.Logger.Out
	log.L.Logger.SetOutput(&b)
	t.Cleanup(func() { log.L.Logger.SetOutput(before) })
	return &b
}

func TestEventsSurviveRestartsOfContainerdInOrder(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	p := newPublisher(unixScheme+r.path, "k8s.io")
	var want []string
	publish := func(n int) {
		for range n {
			topic := fmt.Sprintf("/test/%d", len(want))
			want = append(want, topic)
			p.Publish(topic, &eventsapi.TaskStart{ContainerID: "c1", Pid: uint32(len(want))})
		}
	}

	publish(10) // Before containerd is there.
	r.start()
	r.await(10)
	r.kill()
	publish(10) // While it is away; the connection is stale.
	r.start()
	r.await(20)
	publish(10)
	r.await(25) // In the midst of delivering, perhaps.
	r.kill()
	publish(10)
	r.start()
	p.Close(context.Background())

	if got := r.topics(); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestARestartBetweenEventsIsNotNoticed(t *testing.T) {
	logged := captureLog(t)
	r := newReceiver(t)
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.Publish("/a", &eventsapi.TaskStart{})
	for p.first() != nil { // Until the reply has arrived as well.
		runtime.Gosched()
	}
	r.kill()
	r.start()
	p.Publish("/b", &eventsapi.TaskStart{})
	p.Close(context.Background())
	if got := strings.Join(r.topics(), " "); got != "/a /b" || logged.Len() > 0 {
		t.Errorf("containerd was sent %s, logged %q", got, logged)
	}
}

func TestAnEventIsSentAgainIfContainerdDiesOverIt(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	died := make(chan struct{})
	once := sync.OnceFunc(func() { close(died) })
	r.answer = func(r *receiver, _ *types.Envelope) error {
		select {
		case <-died:
			return nil
		default:
			r.kill() // The reply does not get out.
			once()
			return errors.New("dead")
		}
	}
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.Publish("/test/a", &eventsapi.TaskStart{})
	p.Publish("/test/b", &eventsapi.TaskStart{})
	<-died
	r.start()
	p.Close(context.Background())

	r.mu.Lock()
	defer r.mu.Unlock()
	var got []string
	for _, e := range r.taken {
		got = append(got, e.Topic)
	}
	if strings.Join(got, " ") != "/test/a /test/a /test/b" {
		t.Errorf("containerd was sent %v", got)
	}
}

// logSignal signals when a message is logged that contains a text.
type logSignal struct {
	text   string
	logged chan struct{} // has room for one
}

func newLogSignal(t *testing.T, text string) *logSignal {
	s := &logSignal{text: text, logged: make(chan struct{}, 1)}
	before := log.L.Logger.Out
	log.L.Logger.SetOutput(s)
	t.Cleanup(func() { log.L.Logger.SetOutput(before) })
	return s
}

func (s *logSignal) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte(s.text)) {
		select {
		case s.logged <- struct{}{}:
		default:
		}
	}
	return len(line), nil
}

// A time-out is not a broken connection: containerd may have been stopped for a while.
func TestASlowContainerdGetsAnEventOnce(t *testing.T) {
	slow := newLogSignal(t, "not answered")
	r := newReceiver(t)
	var calls atomic.Int32
	r.answer = func(*receiver, *types.Envelope) error {
		calls.Add(1)
		select {
		case <-slow.logged: // containerd has not answered within the patience.
		case <-time.After(time.Second):
		}
		return nil
	}
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.patience = time.Millisecond
	p.Publish("/a", &eventsapi.TaskExit{})
	p.Publish("/b", &eventsapi.TaskDelete{})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	p.Close(ctx)
	if n := calls.Load(); n != 2 {
		t.Errorf("containerd was sent %d events, want 2", n)
	}
	if got := strings.Join(r.topics(), " "); got != "/a /b" {
		t.Errorf("containerd was sent %s", got)
	}
}

// A pod can cause OOM kills as often as it likes.
func TestEventsThatAContainerCausesDoNotPileUp(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	p := newPublisher(r.path, "k8s.io")
	oom := func(id string) { p.PublishOnce("/tasks/oom", id, &eventsapi.TaskOOM{ContainerID: id}) }
	p.Publish("/tasks/start", &eventsapi.TaskStart{ContainerID: "a"}) // under way
	for range 1000 {
		oom("a")
		oom("b")
	}
	p.PublishOnce("/other", "a", &eventsapi.TaskOOM{ContainerID: "a"})
	p.Publish("/tasks/oom", &eventsapi.TaskOOM{ContainerID: "c"})
	p.Publish("/tasks/oom", &eventsapi.TaskOOM{ContainerID: "c"})
	r.start()
	r.await(5)
	oom("a") // The earlier events no longer wait.
	p.Close(context.Background())

	r.mu.Lock()
	defer r.mu.Unlock()
	var got []string
	for _, e := range r.taken {
		id := "a"
		var event eventsapi.TaskOOM
		if e.Topic == "/tasks/oom" {
			if err := proto.Unmarshal(e.Event.Value, &event); err != nil {
				t.Fatal(err)
			}
			id = event.ContainerID
		}
		got = append(got, e.Topic+" "+id)
	}
	want := []string{"/tasks/start a", "/tasks/oom a", "/tasks/oom b", "/other a", "/tasks/oom c", "/tasks/oom c", "/tasks/oom a"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// containerd may already have taken the event that is being sent.
func TestAnEventUnderWayIsNotTakenForOneThatWaits(t *testing.T) {
	r := newReceiver(t)
	arrived, answer := make(chan struct{}, 3), make(chan struct{})
	r.answer = func(*receiver, *types.Envelope) error {
		arrived <- struct{}{}
		<-answer
		return nil
	}
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.PublishOnce("/tasks/oom", "a", &eventsapi.TaskOOM{ContainerID: "a"})
	<-arrived
	p.PublishOnce("/tasks/oom", "a", &eventsapi.TaskOOM{ContainerID: "a"})
	close(answer)
	p.Close(context.Background())
	if n := len(r.taken); n != 2 {
		t.Errorf("%d events arrived, want 2", n)
	}
}

func TestAnEventThatCannotBeEncodedDoesNotHoldUpOthers(t *testing.T) {
	logged := captureLog(t)
	r := newReceiver(t)
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.Publish("/field", &eventsapi.TaskExit{ContainerID: "a\xff"})
	p.Publish("/topic\xff", &eventsapi.TaskExit{ContainerID: "a"})
	p.Publish("/next", &eventsapi.TaskExit{ContainerID: "a"})
	p.Close(context.Background())
	if got := strings.Join(r.topics(), " "); got != "/next" {
		t.Errorf("containerd was sent %s", got)
	}
	if n := strings.Count(logged.String(), "cannot be encoded and is dropped"); n != 2 {
		t.Errorf("logged %d times that an event was dropped: %s", n, logged)
	}
}

func TestEnvelope(t *testing.T) {
	r := newReceiver(t)
	p := newPublisher(r.path, "k8s.io")
	before := time.Now()
	exit := &eventsapi.TaskExit{ContainerID: "c1", ID: "e1", Pid: 5, ExitStatus: 137}
	p.Publish("/tasks/exit", exit)
	published := time.Now()
	r.start()
	p.Close(context.Background())

	if len(r.taken) != 1 {
		t.Fatalf("%d events arrived, want 1", len(r.taken))
	}
	e := r.taken[0]
	if e.Topic != "/tasks/exit" || e.Namespace != "k8s.io" || e.Event.TypeUrl != "containerd.events.TaskExit" {
		t.Errorf("got %v", e)
	}
	if at := e.Timestamp.AsTime(); at.Before(before) || at.After(published) {
		t.Errorf("the time is %v, not that of Publish (%v)", at, before)
	}
	var got eventsapi.TaskExit
	want := &eventsapi.TaskExit{ContainerID: "c1", ID: "e1", Pid: 5, ExitStatus: 137}
	if err := proto.Unmarshal(e.Event.Value, &got); err != nil || !proto.Equal(&got, want) {
		t.Errorf("the event is %v, error %v", &got, err)
	}
}

func TestARefusedEventDoesNotHoldUpOthers(t *testing.T) {
	logged := captureLog(t)
	r := newReceiver(t)
	refused := 0
	r.answer = func(_ *receiver, e *types.Envelope) error {
		if e.Topic == "/bad" {
			refused++
			return status.Error(codes.InvalidArgument, "no such topic")
		}
		return nil
	}
	r.start()
	p := newPublisher(r.path, "k8s.io")
	for _, topic := range []string{"/a", "/bad", "/b"} {
		p.Publish(topic, &eventsapi.TaskStart{})
	}
	p.Close(context.Background())
	if got := strings.Join(r.topics(), " "); got != "/a /bad /b" {
		t.Errorf("containerd was sent %s", got)
	}
	if refused != maxRefusals {
		t.Errorf("sent the refused event %d times, want %d", refused, maxRefusals)
	}
	if !strings.Contains(logged.String(), "/bad") {
		t.Errorf("the loss was not logged: %s", logged)
	}
}

func TestRefusals(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{status.Error(codes.InvalidArgument, ""), true},
		{status.Error(codes.Unknown, ""), true},
		{status.Error(codes.Unavailable, ""), false},
		{status.Error(codes.DeadlineExceeded, ""), false},
		{context.DeadlineExceeded, false},
		{ttrpc.ErrClosed, false},
		{fmt.Errorf("cannot connect: %w", os.ErrNotExist), false},
	} {
		if got := isRefusal(tc.err); got != tc.want {
			t.Errorf("%v: got %t, want %t", tc.err, got, tc.want)
		}
	}
}

func TestCloseTellsHowManyEventsAreLost(t *testing.T) {
	logged := captureLog(t)
	p := newPublisher(filepath.Join(shortDir(t), "nobody"), "k8s.io")
	for range 3 {
		p.Publish("/test", &eventsapi.TaskStart{})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.Close(ctx)
	if !strings.Contains(logged.String(), "events=3") {
		t.Errorf("logged %q", logged)
	}

	logged.Reset()
	p.Publish("/late", &eventsapi.TaskStart{})
	p.Close(ctx)
	if !strings.Contains(logged.String(), "/late") || strings.Contains(logged.String(), "events=") {
		t.Errorf("logged %q for an event after Close", logged)
	}
}

func TestEventsWithoutAnAddressAreDropped(t *testing.T) {
	logged := captureLog(t)
	p := newPublisher("", "k8s.io")
	p.Publish("/test", &eventsapi.TaskStart{})
	p.Publish("/test", &eventsapi.TaskStart{})
	p.Close(context.Background())
	if n := strings.Count(logged.String(), "TTRPC_ADDRESS"); n != 1 {
		t.Errorf("warned %d times, want once: %s", n, logged)
	}
}

func TestPublisherAtRestHasNoGoroutine(t *testing.T) {
	t.Parallel()
	r := newReceiver(t)
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.Publish("/a", &eventsapi.TaskStart{})
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	<-ended
	p.Publish("/b", &eventsapi.TaskStart{})
	p.Close(context.Background())
	if got := strings.Join(r.topics(), " "); got != "/a /b" {
		t.Errorf("containerd was sent %s", got)
	}
}
