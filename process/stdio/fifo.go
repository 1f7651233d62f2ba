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

// This file opens the fifos and files that clients name as streams. The client opens the
// other end of a fifo.

// openSource opens a fifo or file to read standard input from. It opens a fifo for reading
// and writing first: that never blocks (fifo(7)), and the open for reading then does not
// block either.
func openSource(path string) (_ *input, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot open standard input: %w", err)
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
		return &input{flow: flow{src: src, file: true}}, nil
	}
	keep, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, errors.Join(err, keep.Close())
	}
	return &input{flow: flow{src: src}, keep: keep}, nil
}

func isFifo(path string) (bool, error) {
	st, err := os.Stat(path)
	return err == nil && st.Mode().Type() == os.ModeNamedPipe, err
}

// openFile opens a file that a client has named. It never waits, whatever kind of file that
// is.
//
// It keeps regular files out of Go's poller, which would ask the file whether it has data,
// and let nothing else run on its thread meanwhile. On a file system that a process serves
// (FUSE), that process may take any time to answer.
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
			err = unix.SetNonblock(fd, false) // os.NewFile adds only non-blocking files to the poller
		}
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// readerTimeout bounds how long a client may take to open the other end of an output fifo.
const readerTimeout = 30 * time.Second

// openSink opens a fifo or file for output. It waits until a client has opened the fifo for
// reading; otherwise the output of a short process would be lost.
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
		return &output{flow: flow{dst: f}}, nil
	}
	fd, err := awaitReader(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the output: %w", err)
	}
	dst := os.NewFile(uintptr(fd), path)
	// This open does not wait, because the fifo has a writer. Without O_NONBLOCK, keep stays
	// out of Go's poller, which would wake up at each write.
	reader, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		dst.Close()
		return nil, fmt.Errorf("cannot open the output %s for reading: %w", path, err)
	}
	return &output{flow: flow{dst: dst}, keep: os.NewFile(uintptr(reader), path)}, nil
}

// awaitReader opens a fifo for writing once somebody has opened it for reading. It tries
// again and again with O_NONBLOCK, which fails with ENXIO until then (fifo(7)), because an
// open that blocks would keep a thread.
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
