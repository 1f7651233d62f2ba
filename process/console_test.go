package process

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

// Input, output and size of a terminal need one descriptor of its master, and it is gone
// with the process.
func TestTerminalHasOneDescriptor(t *testing.T) {
	proctest.NoLeakedFDs(t)
	s := terminalStreams(t)
	if got := countTerminals(t); got != 1 {
		t.Errorf("%d descriptors of the terminal are open", got)
	}
	s.start()
	program := openTerminal(t, s.tty)
	in := openFifo(t, s.in.src.Name())
	_, err := in.WriteString("hello\n")
	proctest.Must(t, err)
	if got, err := bufio.NewReader(program).ReadString('\n'); err != nil || got != "hello\n" {
		t.Errorf("the program has read %q, error %v", got, err)
	}
	if got := countTerminals(t); got != 1 {
		t.Errorf("%d descriptors of the terminal are open", got)
	}
	// The end of its program leaves it, and the end of the input hangs it up.
	proctest.Must(t, program.Close())
	s.copies.Wait()
	proctest.Must(t, s.resize(terminalSize{120, 30}))
	if got, want := sizeOf(t, s.tty), (terminalSize{120, 30}); got != want {
		t.Errorf("the size is %v, want %v", got, want)
	}
	s.closeInput()
	proctest.Must(t, in.Close())
	proctest.Eventually(t, "the terminal is closed", func() bool { return countTerminals(t) == 0 })
}

// terminalStreams are the streams of a process with a terminal, with input and output.
func terminalStreams(t *testing.T) *streams {
	t.Helper()
	in, out := proctest.Mkfifo(t), proctest.Mkfifo(t)
	proctest.ReadFifo(t, out)
	s, err := openConsole(proctest.Context(t), Stdio{Stdin: in, Stdout: out, Terminal: true}, nil)
	proctest.Must(t, err)
	t.Cleanup(s.close)
	s.attach(newTerminal(t))
	return s
}

// newTerminal returns the master of a terminal.
func newTerminal(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	proctest.Must(t, err)
	return os.NewFile(uintptr(fd), "terminal")
}

func sizeOf(t *testing.T, tty *os.File) terminalSize {
	t.Helper()
	conn, err := tty.SyscallConn()
	proctest.Must(t, err)
	var size *unix.Winsize
	proctest.Must(t, conn.Control(func(fd uintptr) { size, err = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ) }))
	proctest.Must(t, err)
	return terminalSize{Width: size.Col, Height: size.Row}
}

// openTerminal opens a terminal as a program would.
func openTerminal(t *testing.T, master *os.File) *os.File {
	t.Helper()
	conn, err := master.SyscallConn()
	proctest.Must(t, err)
	var fd uintptr
	var errno unix.Errno
	proctest.Must(t, conn.Control(func(m uintptr) {
		err = unix.IoctlSetPointerInt(int(m), unix.TIOCSPTLCK, 0) // unlock it
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, m, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	}))
	proctest.Must(t, err)
	if errno != 0 {
		t.Fatal(os.NewSyscallError("TIOCGPTPEER", errno))
	}
	return os.NewFile(fd, "program's terminal")
}

// countTerminals counts the descriptors of masters of terminals.
func countTerminals(t *testing.T) (n int) {
	t.Helper()
	for _, name := range proctest.OpenFDs() {
		if strings.HasSuffix(name, "/ptmx") {
			n++
		}
	}
	return n
}
