package stdio

import (
	"context"
	"fmt"
	"os"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// ConsoleSocket receives the master of a process's terminal from the OCI runtime
// (runc, docs/terminals.md, "Detached with a new terminal").
type ConsoleSocket struct{ *runc.Socket }

// NewConsoleSocket makes a socket to receive a console by.
func NewConsoleSocket() (*ConsoleSocket, error) {
	s, err := runc.NewTempConsoleSocket()
	if err != nil {
		return nil, fmt.Errorf("cannot make the console socket: %w", err)
	}
	return &ConsoleSocket{s}, nil
}

// Receive waits for the master until ctx ends.
func (s *ConsoleSocket) Receive(ctx context.Context) (*os.File, error) {
	defer context.AfterFunc(ctx, func() { s.Close() })()
	console, err := s.ReceiveMaster()
	if err != nil {
		return nil, fmt.Errorf("cannot receive the console from the OCI runtime: %w", err)
	}
	// The console's own file is not in the poller: every copy would keep a thread.
	fd, err := unix.FcntlInt(console.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	console.Close()
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "console"), nil
}

// OpenConsole opens what the streams of a process with a terminal need, but for
// the terminal itself, which attach adds.
func OpenConsole(ctx context.Context, sio Config, l *LoggerConfig) (_ *Streams, err error) {
	s := &Streams{Patience: settleTimeout}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if sio.Stdin != "" {
		if s.in, err = openSource(sio.Stdin); err != nil {
			return nil, err
		}
	}
	target, err := parseTarget(sio.Stdout)
	if err != nil {
		return nil, err
	}
	out := &output{}
	switch target.Scheme {
	case "binary", "binary-v2":
		if s.logger, err = startLogger(ctx, target, l); err == nil {
			var stderr *os.File
			out.dst, stderr = s.logger.take()
			CloseAll(stderr) // a terminal has one output
		}
	case "file":
		out.dst, err = openLogFile(target.Path)
	default:
		if sio.Stdout == "" { // nobody listens, but the terminal must be read
			out.dst, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		} else {
			out, err = openSink(ctx, sio.Stdout)
		}
	}
	if err != nil {
		return nil, err
	}
	s.outputs = []*output{out}
	return s, nil
}

// Attach connects a terminal's master with the streams, and owns it from then on. Reading,
// writing and resizing share the one file, which goes with the process.
func (s *Streams) Attach(master *os.File) {
	s.tty = master
	for _, o := range s.outputs {
		o.src = master
	}
	if s.in != nil {
		s.in.dst = master
	}
}

// hangUp closes the terminal, whose input has ended: its session gets SIGHUP, as
// when a user closes a terminal's window. The stock shim does the same.
func (s *Streams) hangUp() { s.tty.Close() }

// Size is in characters. It is encoded as the specification's Box.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Resize sets the size of the terminal. Without one, or when it is closed, it does
// nothing, as a client that follows its own terminal's size would expect.
func (s *Streams) Resize(size Size) error {
	if s == nil || s.tty == nil {
		return nil
	}
	conn, err := s.tty.SyscallConn()
	if err != nil {
		return err
	}
	closed := conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	if closed == nil && err != nil {
		return fmt.Errorf("cannot resize the terminal to %d×%d: %w", size.Width, size.Height, err)
	}
	return nil
}
