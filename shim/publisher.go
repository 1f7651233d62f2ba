package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	dialLimit   = 5 * time.Second        // for one attempt to connect
	patience    = 5 * time.Second        // for an answer, before a warning is logged
	minBackoff  = 100 * time.Millisecond // after the first failure
	maxBackoff  = 2 * time.Second        // limit of the backoff, which doubles after each failure
	maxRefusals = 5                      // of one event, before it is dropped
	linger      = 5 * time.Second        // until an idle connection is closed

	// maxAlike is how many events of PublishOnce with one topic and key wait at most while
	// containerd takes events: it may be slower than they come.
	maxAlike = 64
)

// Publisher sends events to containerd in the order in which they are
// published. If containerd refuses one, events of other containers overtake it. It
// loses none while containerd is away: the events wait in memory, where a shim's few
// small events take little room. An event may arrive twice if
// the connection breaks before containerd replies. While the connection stands,
// the Publisher waits for the reply and does not send the event again: containerd
// may only be slow, and would then get it twice.
//
// The methods may be called by many goroutines. A Publisher has a goroutine and a
// connection only while there is something to send, and for some seconds after.
type Publisher struct {
	address   string // of containerd's ttrpc server; "" if there is none
	namespace string
	patience  time.Duration // see the constant

	// ctx ends when there is no time left to deliver events.
	ctx    context.Context
	cancel context.CancelFunc

	wake    chan struct{} // with a buffer of one: the queue has grown
	closing chan struct{} // closed by Close

	mu    sync.Mutex // guards the fields below
	queue []*queued
	// sending is the event of the queue that is being sent; nil if none is.
	sending *queued
	ended   chan struct{} // closed when the delivering goroutine ends; nil if none runs
	closed  bool
	warned  bool          // that there is no address
	away    bool          // containerd has not been reached since the last attempt
	held    bool          // nothing is sent
	settled chan struct{} // closed when no event is being sent any more; nil if nothing waits
}

// queued is an event that waits for its delivery.
type queued struct {
	*types.Envelope
	key       string // of PublishOnce; "" for Publish
	container string // whose event it is; "" if it is no container's

	refusals  int       // how often containerd has refused it; for the delivering goroutine
	notBefore time.Time // guarded by Publisher.mu: when it may be sent again
}

func newPublisher(address, namespace string) *Publisher {
	ctx, cancel := context.WithCancel(context.Background())
	return &Publisher{
		address:   strings.TrimPrefix(address, unixScheme),
		namespace: namespace,
		patience:  patience,
		ctx:       ctx,
		cancel:    cancel,
		wake:      make(chan struct{}, 1),
		closing:   make(chan struct{}),
	}
}

// Publish queues event under topic, such as "/tasks/exit", with the current
// time. It never blocks. It logs failures, since no caller could do more. After
// Close it drops the event.
func (p *Publisher) Publish(topic string, event proto.Message) { p.publish(topic, "", event) }

// PublishOnce is Publish for events that a container can cause as often as it likes. So that
// such events do not fill the memory, only one with the same topic and key waits while
// containerd is away, and others are dropped. An event that is being sent does not count:
// containerd may have taken it before the cause of event happened. key must not be empty.
func (p *Publisher) PublishOnce(topic, key string, event proto.Message) { p.publish(topic, key, event) }

func (p *Publisher) publish(topic, key string, event proto.Message) {
	value, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		log.L.WithError(err).WithField("topic", topic).Error("an event cannot be encoded and is dropped")
		return
	}
	e := &queued{key: key, container: containerOf(event), Envelope: &types.Envelope{
		Timestamp: timestamppb.Now(),
		Namespace: p.namespace,
		Topic:     topic,
		Event:     value,
	}}

	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		log.L.WithField("topic", topic).Warn("an event came after the shim had stopped publishing and is dropped")
	case p.address == "":
		if !p.warned {
			log.L.Warnf("events are dropped: containerd has not set $%s", ttrpcAddressEnv)
			p.warned = true
		}
	case key != "" && p.alike(topic, key) >= p.mayWait():
	default:
		p.queue = append(p.queue, e)
		p.start()
	}
}

// start has the queue delivered. The caller holds mu.
func (p *Publisher) start() {
	if p.ended == nil {
		p.ended = make(chan struct{})
		go p.run(p.ended)
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// containerOf returns the id of the container that an event is about, empty if there is none.
func containerOf(event proto.Message) string {
	if e, ok := event.(interface{ GetContainerID() string }); ok {
		return e.GetContainerID()
	}
	return ""
}

// mayWait returns how many events of PublishOnce with one topic and key may wait. The caller
// holds mu.
func (p *Publisher) mayWait() int {
	if p.away {
		return 1
	}
	return maxAlike
}

// alike returns how many events with the topic and key wait in the queue, apart from the one
// that is being sent. The caller holds mu.
func (p *Publisher) alike(topic, key string) (n int) {
	for _, e := range p.queue {
		if e != p.sending && e.Topic == topic && e.key == key {
			n++
		}
	}
	return n
}

// reached says whether containerd was there at the last attempt. If it was not, only one of
// the events of PublishOnce with one topic and key goes on waiting.
func (p *Publisher) reached(there bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away == !there {
		return
	}
	p.away = !there
	if there {
		return
	}
	type kind struct{ topic, key string }
	waits := make(map[kind]bool)
	p.queue = slices.DeleteFunc(p.queue, func(e *queued) bool {
		if e == p.sending || e.key == "" {
			return false
		}
		again := waits[kind{e.Topic, e.key}]
		waits[kind{e.Topic, e.key}] = true
		return again
	})
}

// Close waits until all events are delivered or ctx ends, and logs how many are
// lost. It stops the Publisher from accepting more events.
func (p *Publisher) Close(ctx context.Context) {
	p.mu.Lock()
	ended := p.ended
	if !p.closed {
		p.closed = true
		close(p.closing)
	}
	p.mu.Unlock()

	if ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
			p.cancel()
			<-ended
		}
	}
	p.cancel()

	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.queue); n > 0 {
		log.L.WithField("events", n).Error("events are lost: containerd did not take them in time")
		p.queue = nil
	}
}

// run delivers the queue until it has been empty for some time.
func (p *Publisher) run(ended chan struct{}) {
	defer close(ended)
	c := daemon{address: p.address, patience: p.patience}
	defer c.close()
	for {
		e, wait := p.next(time.Now())
		if e != nil {
			if !p.deliver(&c, e) {
				return
			}
			continue
		}
		closing := p.closing
		if wait > 0 {
			closing = nil // what has been refused is sent again first
		} else {
			wait = linger
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.wake:
			timer.Stop()
			continue
		case <-timer.C:
		case <-closing:
		case <-p.ctx.Done():
		}
		timer.Stop()
		if p.ctx.Err() != nil || p.retire() {
			return
		}
	}
}

// heldWait is how long a hold is waited for before it is looked for again.
const heldWait = time.Minute

// next returns the first event that may be sent now, and makes it the one that is being
// sent. It returns nil if there is none; wait is then 0 for an empty queue, and otherwise how
// long it takes until an event that was refused may be sent again. Later events of the same
// container wait behind that; others do not.
func (p *Publisher) next(now time.Time) (e *queued, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sending = nil
	if p.held {
		if p.settled != nil {
			close(p.settled)
			p.settled = nil
		}
		return nil, heldWait
	}
	var behind map[string]bool // containers that wait
	for _, e := range p.queue {
		switch delay := e.notBefore.Sub(now); {
		case behind[e.container]:
		case delay > 0:
			if behind == nil {
				behind = make(map[string]bool)
			}
			behind[e.container] = true
			if wait == 0 || delay < wait {
				wait = delay
			}
		default:
			p.sending = e
			return e, 0
		}
	}
	return nil, wait
}

// remove takes an event out of the queue.
func (p *Publisher) remove(e *queued) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.queue, e); i == 0 { // the usual case, without copying the queue
		p.queue[0] = nil
		p.queue = p.queue[1:]
	} else if i > 0 {
		p.queue = slices.Delete(p.queue, i, i+1)
	}
	if len(p.queue) == 0 {
		p.queue = nil
	}
}

// retire says whether the delivering goroutine may end: it may not if an event
// has come in the meantime. The next event starts another goroutine.
func (p *Publisher) retire() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		return false
	}
	p.ended = nil
	return true
}

// deliver tries until containerd takes or refuses e. An event that was refused is sent again
// after those of other containers, at most maxRefusals times; one that cannot be encoded is
// dropped. deliver returns false if p.ctx has ended.
func (p *Publisher) deliver(c *daemon, e *queued) bool {
	backoff := minBackoff
	for {
		stale := c.client != nil // The connection may be older than a restart of containerd.
		err := c.forward(p.ctx, e.Envelope)
		if err == nil {
			p.reached(true)
			p.remove(e)
			return true
		}
		if p.ctx.Err() != nil {
			return false
		}
		entry := log.L.WithError(err).WithField("topic", e.Topic)
		switch {
		case errors.Is(err, proto.Error):
			entry.Error("an event cannot be encoded and is dropped")
			p.remove(e)
			return true
		case isRefusal(err):
			p.reached(true)
			p.refused(e, entry)
			return true
		}
		c.close()
		if stale {
			continue
		}
		p.reached(false)
		if backoff == minBackoff {
			entry.Warn("cannot publish event; trying again")
		}
		if !p.pause(backoff) {
			return p.ctx.Err() == nil
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// refused puts off an event, with those of the same container, or drops it if that has been
// of no use.
func (p *Publisher) refused(e *queued, entry *log.Entry) {
	e.refusals++
	if e.refusals == maxRefusals {
		entry.Error("an event is refused by containerd and is dropped")
		p.remove(e)
		return
	}
	if e.refusals == 1 {
		entry.Warn("cannot publish event; trying again")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e.notBefore = time.Now().Add(min(minBackoff<<(e.refusals-1), maxBackoff))
}

// sleep returns false if ctx ends before d is over.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause returns false if p.ctx ends before d is over, or if there is a hold.
func (p *Publisher) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		p.mu.Lock()
		held := p.held
		p.mu.Unlock()
		if held {
			return false
		}
		select {
		case <-t.C:
			return true
		case <-p.ctx.Done():
			return false
		case <-p.wake: // of a hold, or a new event
		}
	}
}

// hold stops the delivery of events, and waits until the one that is being sent has been
// taken or refused. The caller has to call release.
func (p *Publisher) hold(ctx context.Context) error {
	p.mu.Lock()
	p.held = true
	if p.sending == nil {
		p.mu.Unlock()
		return nil
	}
	settled := make(chan struct{})
	p.settled = settled
	p.start()
	p.mu.Unlock()
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return errors.New("containerd does not acknowledge an event")
	}
}

// release ends a hold.
func (p *Publisher) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held, p.settled = false, nil
	if len(p.queue) > 0 {
		p.start()
	}
}

// savedEvent is an event that waits for its delivery.
type savedEvent struct {
	Envelope  []byte `json:"envelope"` // types.Envelope
	Key       string `json:"key,omitempty"`
	Container string `json:"container,omitempty"`
	Refusals  int    `json:"refusals,omitempty"`
}

// save returns the events that wait, during a hold.
func (p *Publisher) save() (saved []savedEvent, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.queue {
		envelope, err := proto.Marshal(e.Envelope)
		if err != nil {
			return nil, fmt.Errorf("cannot hand over an event: %w", err)
		}
		saved = append(saved, savedEvent{envelope, e.key, e.container, e.refusals})
	}
	return saved, nil
}

// restore delivers the events that the program before this one has saved.
func (p *Publisher) restore(saved []savedEvent) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range saved {
		e := &queued{Envelope: new(types.Envelope), key: s.Key, container: s.Container, refusals: s.Refusals}
		if err := proto.Unmarshal(s.Envelope, e.Envelope); err != nil {
			return fmt.Errorf("cannot take over an event: %w", err)
		}
		p.queue = append(p.queue, e)
	}
	if len(p.queue) > 0 {
		p.start()
	}
	return nil
}

// isRefusal says whether err is containerd's own answer to an event, so that
// another connection would not help.
func isRefusal(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return false
	}
	return true
}

// daemon is the connection to containerd's event service.
type daemon struct {
	address  string
	patience time.Duration // see the constant
	client   *ttrpc.Client // nil if not connected
}

// forward sends e, and returns when containerd answers, the connection breaks, or ctx ends.
func (d *daemon) forward(ctx context.Context, e *types.Envelope) error {
	if d.client == nil {
		dialer := net.Dialer{Timeout: dialLimit}
		conn, err := dialer.DialContext(ctx, "unix", d.address)
		if err != nil {
			return fmt.Errorf("cannot connect to containerd: %w", err)
		}
		d.client = ttrpc.NewClient(conn)
	}
	slow := time.AfterFunc(d.patience, func() {
		log.L.WithField("topic", e.Topic).Warnf("containerd has not acknowledged an event within %s; still waiting", d.patience)
	})
	defer slow.Stop()
	_, err := eventsapi.NewTTRPCEventsClient(d.client).Forward(ctx, &eventsapi.ForwardRequest{Envelope: e})
	return err
}

func (d *daemon) close() {
	if d.client != nil {
		d.client.Close()
		d.client = nil
	}
}
