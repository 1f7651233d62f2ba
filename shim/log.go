package shim

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// logFile is the fifo in the bundle that containerd reads and copies to its own
// log.
const logFile = "log"

// openLog sends the log, and everything written to stderr, to the fifo at path.
// When Go's runtime crashes, it reports that on stderr.
//
// A shim outlives containerd and must never wait for it. So the fifo is opened
//   - for reading too: a fifo that has a reader gives no EPIPE (fifo(7)). What is
//     written while containerd is away waits in the pipe, which holds 64 KiB by
//     default, and the next containerd reads it;
//   - non-blocking: once the pipe is full, messages are lost, but RPCs are not
//     held up.
//
// Without a fifo the log stays on stderr, for a shim started by hand.
func openLog(path string, debug bool) (*logWriter, error) {
	w := &logWriter{fd: unix.Stderr}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("cannot open log %s: %w", path, err)
	default:
		// No O_CLOEXEC: a standard stream stays open on exec.
		err = unix.Dup3(fd, unix.Stderr, 0)
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("cannot use %s as standard error: %w", path, err)
		}
	}
	if err := log.SetFormat(log.TextFormat); err != nil {
		return nil, err
	}
	if debug {
		if err := log.SetLevel(log.DebugLevel); err != nil {
			return nil, err
		}
	}
	log.L.Logger.SetOutput(w)
	return w, nil
}

// logWriter writes to a file descriptor without ever waiting for it. An os.File
// would wait in the poller while the pipe is full.
type logWriter struct {
	fd int

	mu   sync.Mutex // guards lost, and keeps messages whole
	lost int        // messages lost since the last one that was written
}

// Write writes p, or drops it if it does not fit. It returns no error, because
// the logger would report one on stderr, which is the same fifo.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost > 0 {
		note := fmt.Sprintf("level=warning msg=\"%d log messages were lost\"\n", w.lost)
		if !w.write([]byte(note)) {
			w.lost++
			return len(p), nil
		}
		w.lost = 0
	}
	if !w.write(p) {
		w.lost++
	}
	return len(p), nil
}

// write says whether all of p was written. The kernel writes up to PIPE_BUF
// (4096) bytes as a whole or not at all (pipe(7)).
func (w *logWriter) write(p []byte) bool {
	for len(p) > 0 {
		n, err := unix.Write(w.fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		p = p[n:]
	}
	return true
}
