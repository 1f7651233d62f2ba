package shim

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
)

// connections admits peers of the same user only, and counts those that are
// connected. It is the handshaker of the ttrpc server.
type connections struct {
	mu    sync.Mutex // guards the fields below
	count int
	none  chan struct{} // closed when count falls to 0; nil if nothing waits
}

// Handshake implements ttrpc.Handshaker. The mode of the socket already keeps
// other users out; this check does so even if an administrator changes the mode.
func (c *connections) Handshake(ctx context.Context, conn net.Conn) (net.Conn, any, error) {
	conn, credentials, err := ttrpc.UnixSocketRequireSameUser().Handshake(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	c.count++
	c.mu.Unlock()
	return &countedConn{Conn: conn, closed: sync.OnceFunc(c.leave)}, credentials, nil
}

func (c *connections) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count--; c.count == 0 && c.none != nil {
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
	if c.count == 0 {
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

// countedConn is a connection that is counted until it is closed.
type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	defer c.closed()
	return c.Conn.Close()
}
