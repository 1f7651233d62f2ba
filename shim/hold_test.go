package shim

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// slowConn is a connection whose Read returns some time after it has taken the bytes, as that of a
// goroutine does that is not scheduled.
type slowConn struct {
	net.Conn
	taken chan struct{} // gets one value for each Read that has taken something
	goOn  chan struct{} // lets such a Read return
}

func (c *slowConn) Read(buf []byte) (int, error) {
	n, err := c.Conn.Read(buf)
	if n > 0 {
		c.taken <- struct{}{}
		<-c.goOn
	}
	return n, err
}

// What has been taken from a socket when a hold begins belongs to the state.
func TestHoldWaitsForWhatIsBeingRead(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	slow := &slowConn{server, make(chan struct{}), make(chan struct{})}
	c := &connections{}
	p := &peer{Conn: slow, connections: c, requests: newUnanswered()}
	c.peers = map[*peer]struct{}{p: {}}

	const message = "\x00\x00\x00\x02\x00\x00\x00\x01\x01\x00ab"
	got := make(chan string, 1)
	go func() {
		buf := make([]byte, 100)
		n, _ := p.Read(buf)
		got <- string(buf[:n])
	}()
	if _, err := client.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	<-slow.taken
	none := func() int { return 0 }
	late, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.hold(late, none); err == nil {
		t.Error("the connections are quiet while a message is being read")
	}
	c.release()
	close(slow.goOn)
	if text := <-got; text != message {
		t.Errorf("read %q, want %q", text, message)
	}
	one := func() int { return 1 }
	if err := c.hold(context.Background(), one); err != nil {
		t.Fatal(err)
	}
	defer c.release()
	saved := c.save(func(net.Conn) int { return 7 })
	if len(saved) != 1 || string(saved[0].Again) != message {
		t.Errorf("saved %v", saved)
	}
}
