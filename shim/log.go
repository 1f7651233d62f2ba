package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

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
// Without a fifo, or a path, the log stays on stderr: for a shim started by hand, and one
// whose stderr is that fifo already.
func openLog(path string, debug bool) (*logWriter, error) {
	w := &logWriter{fd: unix.Stderr}
	if path != "" {
		if err := w.follow(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
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

// follow makes the fifo at path the log and standard error, in place of what they were.
func (w *logWriter) follow(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot open log %s: %w", path, err)
	}
	defer unix.Close(fd)
	// No O_CLOEXEC: a standard stream stays open on exec.
	if err := unix.Dup3(fd, unix.Stderr, 0); err != nil {
		return fmt.Errorf("cannot use %s as standard error: %w", path, err)
	}
	return nil
}

// logWriter writes to a file descriptor without ever waiting for it. An os.File
// would wait in the poller while the pipe is full.
type logWriter struct {
	fd int

	mu   sync.Mutex // guards lost, and keeps messages whole
	lost int        // messages lost since the last one that was written
	torn bool       // the last of them was written in part; guarded by mu
}

// Write writes p, or drops it if it does not fit. It returns no error, because
// the logger would report one on stderr, which is the same fifo.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost > 0 {
		note := fmt.Sprintf("level=warning msg=\"%d log messages were lost\"\n", w.lost)
		if w.torn {
			note = "\n" + note
		}
		if !w.write([]byte(note)) {
			w.lost++
			return len(p), nil
		}
		w.lost, w.torn = 0, false
	}
	if !w.write(p) {
		w.lost++
	}
	return len(p), nil
}

// write says whether all of p was written. The kernel writes up to PIPE_BUF
// (4096) bytes as a whole or not at all (pipe(7)); of more, what there is room for. The
// caller holds mu.
func (w *logWriter) write(p []byte) bool {
	for begun := false; len(p) > 0; begun = true {
		n, err := unix.Write(w.fd, p)
		for err == unix.EINTR {
			n, err = unix.Write(w.fd, p)
		}
		if err != nil {
			w.torn = w.torn || begun
			return false
		}
		p = p[n:]
	}
	return true
}

const (
	// dumpLimit is how long a dump of all stacks may take: a shared shim's is longer than a
	// pipe holds.
	dumpLimit = 10 * time.Second

	// dumpPause is how long a dump leaves containerd to read what is in the full pipe.
	dumpPause = 5 * time.Millisecond
)

// writeAll writes a long text of many lines, and waits for the reader as long as limit. What
// others log comes between the lines, and never has to wait.
func (w *logWriter) writeAll(text []byte, limit time.Duration) {
	const pipeBuf = 4096 // PIPE_BUF
	for end := time.Now().Add(limit); len(text) > 0; {
		part := text[:min(len(text), pipeBuf)]
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			part = part[:i+1]
		}
		w.mu.Lock()
		written := w.write(part)
		w.mu.Unlock()
		switch {
		case written:
			text = text[len(part):]
		case time.Now().After(end):
			return
		default:
			time.Sleep(dumpPause)
		}
	}
}
