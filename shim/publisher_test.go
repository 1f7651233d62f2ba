package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// Each event arrives once, at whatever moment the publisher of another program goes on.
func TestEventsAreHandedOver(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	p := newPublisher(r.path, "k8s.io")
	var want []string
	for i := range 300 {
		if i == 100 {
			r.start() // before that, containerd is away
		}
		topic := fmt.Sprintf("/test/%d", i)
		want = append(want, topic)
		p.PublishOnce(topic, "key", &eventsapi.TaskStart{ContainerID: "c1", Pid: uint32(i)})
		if i%10 != 0 {
			continue
		}
		if err := p.hold(t.Context()); err != nil {
			t.Fatal(err)
		}
		saved, err := p.save()
		if err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			p.release() // there is no other program after all
			continue
		}
		next := newPublisher(r.path, "k8s.io")
		if err := next.restore(saved); err != nil {
			t.Fatal(err)
		}
		p = next
	}
	p.Close(t.Context())
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
	waits := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.queue) > 0
	}
	for waits() { // Until the reply has arrived as well.
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
	send := func() {
		for range 1000 {
			oom("a")
			oom("b")
		}
	}
	send() // perhaps before it is known that containerd is away
	for !isAway(p) {
		time.Sleep(time.Millisecond)
	}
	send()
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

func isAway(p *Publisher) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.away
}

// A containerd that is slow is told of each, up to a bound.
func TestEventsThatAContainerCausesWaitForASlowContainerd(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	answer := make(chan struct{})
	r.answer = func(*receiver, *types.Envelope) error {
		<-answer
		return nil
	}
	r.start()
	p := newPublisher(r.path, "k8s.io")
	publish := func(n int) {
		for range n {
			p.PublishOnce("/tasks/oom", "a", &eventsapi.TaskOOM{ContainerID: "a"})
		}
	}
	publish(1)
	r.await(1) // under way
	publish(5)
	if n := p.waiting(); n != 6 {
		t.Errorf("%d events wait, want 6", n)
	}
	publish(1000)
	if n := p.waiting(); n != 1+maxAlike {
		t.Errorf("%d events wait, want %d", n, 1+maxAlike)
	}
	close(answer)
	p.Close(t.Context())
	if n := len(r.topics()); n != 1+maxAlike {
		t.Errorf("containerd was told %d times, want %d", n, 1+maxAlike)
	}
}

// waiting returns how many events wait, with the one that is being sent.
func (p *Publisher) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue)
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

// idOf returns the container that an event is about.
func idOf(e *types.Envelope) string {
	var event eventsapi.TaskStart // the id has the same number in all events of tasks
	if err := proto.Unmarshal(e.Event.Value, &event); err != nil {
		return err.Error()
	}
	return event.ContainerID
}

// refusals decides which events containerd refuses, and keeps those that it does not.
type refusals struct {
	mu       sync.Mutex
	refuse   func(topic string, times int) bool
	times    map[string]int // how often containerd has been sent a topic
	accepted []string       // containers and topics
}

func newRefusals(r *receiver, refuse func(topic string, times int) bool) *refusals {
	f := &refusals{refuse: refuse, times: make(map[string]int)}
	r.answer = func(_ *receiver, e *types.Envelope) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.times[e.Topic]++
		if f.refuse(e.Topic, f.times[e.Topic]) {
			return status.Error(codes.Unknown, "no more bananas")
		}
		f.accepted = append(f.accepted, idOf(e)+e.Topic)
		return nil
	}
	return f
}

func TestARefusedEventIsOvertakenByOtherContainersOnly(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	f := newRefusals(r, func(topic string, times int) bool { return topic == "/1" && times < maxRefusals })
	p := newPublisher(r.path, "k8s.io")
	for _, event := range []string{"a/1", "a/2", "b/3", "a/4", "c/5", "/6"} {
		id, topic, _ := strings.Cut(event, "/")
		p.Publish("/"+topic, &eventsapi.TaskStart{ContainerID: id})
	}
	r.start()
	p.Close(t.Context())
	if got := strings.Join(f.accepted, " "); got != "b/3 c/5 /6 a/1 a/2 a/4" {
		t.Errorf("containerd has taken %s", got)
	}
}

// An event that containerd has never taken does not hold up those of its container for ever.
func TestEventsOfAContainerGoOnAfterOneThatIsDropped(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	f := newRefusals(r, func(topic string, _ int) bool { return topic == "/1" })
	r.start()
	p := newPublisher(r.path, "k8s.io")
	for _, topic := range []string{"/1", "/2", "/3"} {
		p.Publish(topic, &eventsapi.TaskStart{ContainerID: "a"})
	}
	p.Close(t.Context())
	if got := strings.Join(f.accepted, " "); got != "a/2 a/3" || f.times["/1"] != maxRefusals {
		t.Errorf("containerd has taken %s, and was sent the first %d times", got, f.times["/1"])
	}
}

// The event that is being sent is not always the first of the queue.
func TestAnEventUnderWayBehindARefusedOneIsNotTakenForOneThatWaits(t *testing.T) {
	captureLog(t)
	r := newReceiver(t)
	arrived, answer := make(chan struct{}), make(chan struct{})
	f := newRefusals(r, func(topic string, times int) bool {
		if topic == "/oom" && times == 1 {
			close(arrived)
			<-answer
		}
		return topic == "/1" && times == 1
	})
	p := newPublisher(r.path, "k8s.io")
	p.Publish("/1", &eventsapi.TaskStart{ContainerID: "a"})
	p.PublishOnce("/oom", "b", &eventsapi.TaskOOM{ContainerID: "b"})
	r.start()
	<-arrived
	p.mu.Lock()
	first := p.queue[0].Topic
	p.mu.Unlock()
	if first != "/1" {
		t.Errorf("the first in the queue is %s", first)
	}
	for range maxAlike + 1 { // as many as may wait after the one under way, and one more
		p.PublishOnce("/oom", "b", &eventsapi.TaskOOM{ContainerID: "b"})
	}
	close(answer)
	p.Close(t.Context())
	slices.Sort(f.accepted)
	if got, want := strings.Join(f.accepted, " "), "a/1"+strings.Repeat(" b/oom", 1+maxAlike); got != want {
		t.Errorf("containerd has taken %s", got)
	}
}

func TestCloseDoesNotWaitForRefusedEventsLongerThanItMay(t *testing.T) {
	logged := captureLog(t)
	r := newReceiver(t)
	refused := make(chan struct{}, 100)
	newRefusals(r, func(string, int) bool {
		refused <- struct{}{}
		return true
	})
	r.start()
	p := newPublisher(r.path, "k8s.io")
	p.Publish("/1", &eventsapi.TaskStart{ContainerID: "a"})
	p.Publish("/2", &eventsapi.TaskStart{ContainerID: "a"})
	<-refused
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p.Close(ctx)
	if !strings.Contains(logged.String(), "events=2") {
		t.Errorf("logged %q", logged)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		t.Error("there are still events")
	}
}

// Whatever containerd refuses, and however often it is away, it takes each event once, and
// those of a container in order.
func TestNoEventIsLostOrDoubledByRefusals(t *testing.T) {
	captureLog(t)
	for seed := range uint64(5) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 1))
			const containers, events = 5, 100
			refuse := make(map[string]int) // how often each is refused
			r := newReceiver(t)
			f := newRefusals(r, func(topic string, times int) bool { return times <= refuse[topic] })
			p := newPublisher(r.path, "k8s.io")
			want := make(map[string][]string)
			type event struct{ id, topic string }
			var list []event
			for i := range events {
				e := event{string(rune('a' + random.IntN(containers))), fmt.Sprintf("/%d", i)}
				if random.IntN(10) == 0 {
					refuse[e.topic] = 1 + random.IntN(2) // fewer than maxRefusals
				}
				list = append(list, e)
				want[e.id] = append(want[e.id], e.topic)
			}
			begin := random.IntN(events) // when containerd comes up
			var late sync.WaitGroup
			for i, e := range list {
				if i == begin {
					late.Go(r.start)
				}
				if random.IntN(2) == 0 {
					p.PublishOnce(e.topic, e.id, &eventsapi.TaskOOM{ContainerID: e.id})
				} else {
					p.Publish(e.topic, &eventsapi.TaskOOM{ContainerID: e.id})
				}
				if random.IntN(8) == 0 {
					runtime.Gosched()
				}
			}
			late.Wait()
			p.Close(context.Background())
			got := make(map[string][]string)
			for _, line := range f.accepted {
				id, topic, _ := strings.Cut(line, "/")
				got[id] = append(got[id], "/"+topic)
			}
			for id, topics := range want {
				if !slices.Equal(got[id], topics) {
					t.Errorf("of %s containerd has taken %v, want %v", id, got[id], topics)
				}
			}
			if len(f.accepted) != events {
				t.Errorf("containerd has taken %d events, want %d", len(f.accepted), events)
			}
		})
	}
}
