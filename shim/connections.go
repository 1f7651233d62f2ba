package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

// connections admits peers of the same user only, and knows those that are connected. It is
// the handshaker of the ttrpc server. While it holds, nothing is read from them, so that they
// can be handed over to another program. To their peers they stay the same.
type connections struct {
	mu       sync.Mutex // guards the fields below, and what the peers have read and sent
	peers    map[*peer]struct{}
	none     chan struct{} // closed when there are no peers any more; nil if nothing waits
	held     chan struct{} // closed at the end of a hold; nil if there is none
	listener deadliner     // nil if there is none
	parked   bool          // the listener accepts nothing until the end of the hold
}

type deadliner interface{ SetDeadline(t time.Time) error }

// Handshake implements ttrpc.Handshaker. The mode of the socket already keeps
// other users out; this check does so even if an administrator changes the mode.
func (c *connections) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	p := &peer{connections: c, requests: newUnanswered()}
	if o, ok := conn.(*overtaken); ok {
		conn, p.again = o.Conn, o.again
	}
	approved, credentials, err := ttrpc.UnixSocketRequireSameUser().Handshake(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	p.Conn = approved
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.peers == nil {
		c.peers = make(map[*peer]struct{})
	}
	c.peers[p] = struct{}{}
	if c.held != nil {
		_ = p.SetReadDeadline(past)
	}
	return p, credentials, nil
}

// listen returns a listener whose connections are to be peers. It accepts none during a hold:
// they wait in the backlog.
func (c *connections) listen(l net.Listener) net.Listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.listener, _ = l.(deadliner)
	return &heldListener{l, c}
}

type heldListener struct {
	net.Listener
	connections *connections
}

// Accept implements [net.Listener].
func (l *heldListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return conn, err
		}
		l.connections.park()
	}
}

// park waits for the end of the hold in place of a connection.
func (c *connections) park() {
	c.setParked(true)
	c.awaitRelease()
	c.setParked(false)
}

func (c *connections) setParked(parked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.parked = parked
}

func (c *connections) leave(p *peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.peers, p)
	if len(c.peers) == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// awaitNone returns once all peers have hung up, or after limit. Only a hang-up
// shows that the reply to the last RPC has arrived. ttrpc's own Shutdown would cut
// off the RPC that asked for the end, because ttrpc takes a connection for idle
// until the first reply has been written (serverConn.run in server.go, 1.2.10).
func (c *connections) awaitNone(limit time.Duration) {
	c.mu.Lock()
	if len(c.peers) == 0 {
		c.mu.Unlock()
		return
	}
	if c.none == nil {
		c.none = make(chan struct{})
	}
	none := c.none
	c.mu.Unlock()

	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-none:
	case <-late.C:
	}
}

// past is a deadline that ends every wait for data.
var past = time.Unix(1, 0)

// hold stops the reading from all peers, and waits until all requests that have been read are
// handled, of which there are as many as handled returns, or answered. The caller has to call
// release.
func (c *connections) hold(ctx context.Context, handled func() int) error {
	c.mu.Lock()
	c.held = make(chan struct{})
	c.setDeadlines(past)
	c.mu.Unlock()
	for nap := 50 * time.Microsecond; ; nap = min(2*nap, 10*time.Millisecond) {
		if c.isQuiet(handled()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("a client does not take an answer")
		case <-time.After(nap):
		}
	}
}

// isQuiet says whether all requests are handled, nothing is being read, and no message has been
// sent in part.
func (c *connections) isQuiet(handled int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	read := 0
	for p := range c.peers {
		read += len(p.requests.read)
		if p.reading || !p.requests.out.isBetween() {
			return false
		}
	}
	return (c.listener == nil || c.parked) && read == handled
}

// release ends a hold.
func (c *connections) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.held == nil {
		return
	}
	c.setDeadlines(time.Time{})
	close(c.held)
	c.held = nil
}

// setDeadlines sets until when peers are waited for. The caller holds mu.
func (c *connections) setDeadlines(at time.Time) {
	if c.listener != nil {
		_ = c.listener.SetDeadline(at)
	}
	for p := range c.peers {
		_ = p.SetReadDeadline(at)
	}
}

// awaitRelease waits for the end of the hold, if there is one.
func (c *connections) awaitRelease() {
	c.mu.Lock()
	held := c.held
	c.mu.Unlock()
	if held != nil {
		<-held
	}
}

// savedPeer is a connection that is handed over: the number of its open file, and what the
// next server has to read again.
type savedPeer struct {
	FD    int    `json:"fd"`
	Again []byte `json:"again,omitempty"`
}

// save returns the peers during a hold. add takes their files along, and returns their
// numbers, which are negative for those that are being closed.
func (c *connections) save(add func(net.Conn) int) (saved []savedPeer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.peers {
		if number := add(p.Conn); number >= 0 {
			// What was to be read again, and has not been, comes last.
			saved = append(saved, savedPeer{number, append(p.requests.bytes(), p.again...)})
		}
	}
	return saved
}

// restore returns the connection of a saved peer, for Handshake.
func (s savedPeer) restore() (net.Conn, error) {
	f := takeFile(s.FD, "connection")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot take over a connection: %w", err)
	}
	return &overtaken{conn, s.Again}, nil
}

// overtaken is a connection of the program before this one.
type overtaken struct {
	net.Conn
	again []byte
}

// peer is a connection that knows the requests which it has not answered.
type peer struct {
	net.Conn
	connections *connections
	closed      sync.Once

	// The fields below are guarded by mu of connections.
	requests *unanswered
	again    []byte // to be read before the rest
	reading  bool   // what is read is not among the requests yet
}

// Read implements [net.Conn].
func (p *peer) Read(buf []byte) (n int, err error) {
	if n := p.readAgain(buf); n > 0 {
		return n, nil
	}
	for {
		p.beginRead()
		n, err = p.Conn.Read(buf)
		p.endRead(buf[:n])
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		// Nobody but hold sets deadlines.
	}
}

// beginRead waits for the end of a hold, and notes that the connection is being read.
func (p *peer) beginRead() {
	for {
		p.connections.mu.Lock()
		held := p.connections.held
		p.reading = held == nil
		p.connections.mu.Unlock()
		if held == nil {
			return
		}
		<-held
	}
}

// endRead notes what has been read.
func (p *peer) endRead(data []byte) {
	p.connections.mu.Lock()
	defer p.connections.mu.Unlock()
	p.reading = false
	p.requests.received(data)
}

func (p *peer) readAgain(buf []byte) int {
	p.connections.mu.Lock()
	defer p.connections.mu.Unlock()
	n := copy(buf, p.again)
	p.requests.received(buf[:n])
	if p.again = p.again[n:]; len(p.again) == 0 {
		p.again = nil
	}
	return n
}

// Write implements [net.Conn].
func (p *peer) Write(data []byte) (int, error) {
	n, err := p.Conn.Write(data)
	p.connections.mu.Lock()
	defer p.connections.mu.Unlock()
	p.requests.sent(data[:n])
	return n, err
}

// Close implements [net.Conn].
func (p *peer) Close() error {
	p.closed.Do(func() { p.connections.leave(p) })
	return p.Conn.Close()
}
