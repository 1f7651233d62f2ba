package shim

import (
	"errors"
	"net"
	"slices"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// acceptPause is how long a shim that could not accept a connection waits before it tries again.
const acceptPause = 100 * time.Millisecond

// passing are the errors of accept(2) that pass when others have given memory or files back.
var passing = []error{unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.ENFILE, unix.ECONNABORTED}

// patientListener tries again after an error that passes. ttrpc does so after some of them
// only, and ends its server at ENOMEM (Server.Serve in server.go, 1.2.10): the shim would
// end, and its pod, because the host was short of memory for a moment. Who connects
// meanwhile waits in the backlog.
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
