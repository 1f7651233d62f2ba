package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// What clients name as streams: fifos, whose other end is theirs to open, and files.

// openSource opens a fifo or file to read standard input from. Opening a fifo for both
// directions first never blocks, and makes opening it for reading not block.
func openSource(path string) (_ *input, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot open the standard input: %w", err)
		}
	}()
	isFifo, err := isFifo(path)
	if err != nil {
		return nil, err
	}
	if !isFifo {
		src, err := openFile(path, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		return &input{src: src}, nil
	}
	keep, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, keep.Close())
	}
	return &input{src: src, keep: keep}, nil
}

func isFifo(path string) (bool, error) {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == os.ModeNamedPipe, err
}

// openFile opens a file that a client has named. It waits for nobody, whatever the file is.
//
// A regular file stays out of Go's poller. The poller asks it whether it has data, and
// lets nothing else run meanwhile on its thread; on a file system that a process serves
// (FUSE), the answer takes as long as that process likes.
func openFile(path string, flags int) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = &os.PathError{Op: "open", Path: path, Err: err}
		}
	}()
	var fd int
	err = reap.IgnoringEINTR(func() error {
		fd, err = unix.Open(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o644)
		return err
	})
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = unix.EISDIR
		case unix.S_IFREG:
			err = unix.SetNonblock(fd, false) // os.NewFile has only others polled
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readerTimeout bounds how long a client may take to open the other end of a
// fifo that it asked output to be written to.
const readerTimeout = 30 * time.Second

// openSink opens a fifo or file for output. With a fifo it waits for a client to
// read, lest output is lost which comes and goes before one has opened it.
func openSink(ctx context.Context, path string) (*output, error) {
	isFifo, err := isFifo(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the output: %w", err)
	}
	if !isFifo {
		f, err := openFile(path, os.O_WRONLY|os.O_APPEND)
		if err != nil {
			return nil, fmt.Errorf("cannot open the output: %w", err)
		}
		return &output{dst: f}, nil
	}
	fd, err := awaitReader(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the output: %w", err)
	}
	dst := os.NewFile(uintptr(fd), path)
	// It has a writer, so opening it does not wait. In blocking mode, Go's poller is not
	// told of each write that others will read.
	reader, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		dst.Close()
		return nil, fmt.Errorf("cannot open the output %s to read: %w", path, err)
	}
	return &output{dst: dst, keep: os.NewFile(uintptr(reader), path)}, nil
}

// awaitReader opens the fifo for writing when somebody has opened it for reading.
// A blocking open would keep a thread; with O_NONBLOCK it fails with ENXIO until
// then (fifo(7)).
func awaitReader(ctx context.Context, path string) (fd int, err error) {
	ctx, cancel := context.WithTimeout(ctx, readerTimeout)
	defer cancel()
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.ENXIO) {
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return -1, fmt.Errorf("nobody reads %s: %w", path, context.Cause(ctx))
		}
	}
}

func openLogFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the directory of the log file: %w", err)
	}
	f, err := openFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY)
	if err != nil {
		return nil, fmt.Errorf("cannot open the log file: %w", err)
	}
	return f, nil
}
