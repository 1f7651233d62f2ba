package stdio

import (
	"context"
	"fmt"
	"os"

	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// ConsoleSocket is a socket through which the OCI runtime hands over the master of a process's
// terminal (runc, docs/terminals.md, "Detached with a new terminal").
type ConsoleSocket struct{ *runc.Socket }

// NewConsoleSocket makes a socket to receive a console through.
func NewConsoleSocket() (*ConsoleSocket, error) {
	s, err := runc.NewTempConsoleSocket()
	if err != nil {
		return nil, fmt.Errorf("cannot make the console socket: %w", err)
	}
	return &ConsoleSocket{s}, nil
}

// Receive waits until the OCI runtime has sent the master, or until ctx ends.
func (s *ConsoleSocket) Receive(ctx context.Context) (*os.File, error) {
	defer context.AfterFunc(ctx, func() { s.Close() })()
	console, err := s.ReceiveMaster()
	if err != nil {
		return nil, fmt.Errorf("cannot receive the console from the OCI runtime: %w", err)
	}
	// go-runc's file is not in Go's poller, so each copy would keep a thread waiting.
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

// OpenConsole opens the client's ends of the streams of a process with a terminal.
// [Streams.Attach] adds the terminal.
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
			CloseAll(stderr) // a terminal has only one output
		}
	case "file":
		out.dst, err = openLogFile(target.Path)
	default:
		if sio.Stdout == "" { // a terminal that nobody reads would block the process
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

// Attach connects the master of a terminal to the streams, which close it from then on. The
// copies in both directions and Resize share this one file.
func (s *Streams) Attach(master *os.File) {
	s.tty = master
	for _, o := range s.outputs {
		o.src = master
	}
	if s.in != nil {
		s.in.dst = master
	}
}

// hangUp closes the terminal, so that its session gets SIGHUP, as when a user closes a
// terminal window. The stock shim does the same when the input has ended.
func (s *Streams) hangUp() { s.tty.Close() }

// Size is the size of a terminal in characters. In JSON, it is the Box of the runtime
// specification.
type Size struct {
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// Resize sets the size of the terminal. It does nothing if there is no terminal, or if that
// is closed: a client that passes on the size of its own terminal expects no error then.
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
