package shim

import (
	"errors"
	"net"
	"slices"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// acceptPause is how long a shim waits after it could not accept a connection.
const acceptPause = 100 * time.Millisecond

// passing are the errors of accept(2) that pass once other processes have released memory
// or files, or after a connection was aborted.
var passing = []error{unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE, unix.ECONNABORTED}

// patientListener tries again after an error that passes. ttrpc does so only for some of
// them, and ends its server on ENOMEM (Server.Serve in server.go, 1.2.10). The shim and its
// pod would then end because the host was short of memory for a moment. Clients that
// connect during the pause wait in the backlog.
type patientListener struct {
	net.Listener
	pause time.Duration
}

// Accept implements [net.Listener]. After Close it returns an error, but not before the
// pause is over.
func (l patientListener) Accept() (net.Conn, error) {
	for logged := false; ; logged = true {
		conn, err := l.Listener.Accept()
		if err == nil || !slices.ContainsFunc(passing, func(p error) bool { return errors.Is(err, p) }) {
			return conn, err
		}
		if !logged {
			log.L.WithError(err).Warn("cannot accept a connection; trying again")
		}
		time.Sleep(l.pause)
	}
}

// resumingListener has the connections of the program before this one come first.
type resumingListener struct {
	net.Listener
	before []savedPeer // for the goroutine that calls Accept
}

// Accept implements [net.Listener].
func (l *resumingListener) Accept() (net.Conn, error) {
	for len(l.before) > 0 {
		next := l.before[0]
		l.before = l.before[1:]
		conn, err := next.restore()
		if err == nil {
			return conn, nil
		}
		log.L.WithError(err).Error("a client has lost its connection")
	}
	return l.Listener.Accept()
}
