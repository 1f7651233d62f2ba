package process

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Input, output and size of a terminal need one descriptor of its master, and it is gone
// with the process.
func TestTerminalHasOneDescriptor(t *testing.T) {
	noLeakedFDs(t)
	s := terminalStreams(t)
	if got := countTerminals(t); got != 1 {
		t.Errorf("%d descriptors of the terminal are open", got)
	}
	s.start()
	program := openTerminal(t, s.tty)
	in := openFifo(t, s.in.src.Name())
	_, err := in.WriteString("hello\n")
	must(t, err)
	if got, err := bufio.NewReader(program).ReadString('\n'); err != nil || got != "hello\n" {
		t.Errorf("the program has read %q, error %v", got, err)
	}
	if got := countTerminals(t); got != 1 {
		t.Errorf("%d descriptors of the terminal are open", got)
	}
	// The end of its program leaves it, and the end of the input hangs it up.
	must(t, program.Close())
	s.copies.Wait()
	must(t, s.resize(terminalSize{120, 30}))
	if got, want := sizeOf(t, s.tty), (terminalSize{120, 30}); got != want {
		t.Errorf("the size is %v, want %v", got, want)
	}
	s.closeInput()
	must(t, in.Close())
	eventually(t, "the terminal is closed", func() bool { return countTerminals(t) == 0 })
}

// terminalStreams are the streams of a process with a terminal, with input and output.
func terminalStreams(t *testing.T) *streams {
	t.Helper()
	in, out := mkfifo(t), mkfifo(t)
	readFifo(t, out)
	s, err := openConsole(testContext(t), Stdio{Stdin: in, Stdout: out, Terminal: true}, nil)
	must(t, err)
	t.Cleanup(s.close)
	s.attach(newTerminal(t))
	return s
}

// newTerminal returns the master of a terminal.
func newTerminal(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	must(t, err)
	return os.NewFile(uintptr(fd), "terminal")
}

func sizeOf(t *testing.T, tty *os.File) terminalSize {
	t.Helper()
	conn, err := tty.SyscallConn()
	must(t, err)
	var size *unix.Winsize
	must(t, conn.Control(func(fd uintptr) { size, err = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ) }))
	must(t, err)
	return terminalSize{Width: size.Col, Height: size.Row}
}

// openTerminal opens a terminal as a program would.
func openTerminal(t *testing.T, master *os.File) *os.File {
	t.Helper()
	conn, err := master.SyscallConn()
	must(t, err)
	var fd uintptr
	var errno unix.Errno
	must(t, conn.Control(func(m uintptr) {
		err = unix.IoctlSetPointerInt(int(m), unix.TIOCSPTLCK, 0) // unlock it
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, m, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	}))
	must(t, err)
	if errno != 0 {
		t.Fatal(os.NewSyscallError("TIOCGPTPEER", errno))
	}
	return os.NewFile(fd, "program's terminal")
}

// countTerminals counts the descriptors of masters of terminals.
func countTerminals(t *testing.T) (n int) {
	t.Helper()
	for _, name := range openFDs() {
		if strings.HasSuffix(name, "/ptmx") {
			n++
		}
	}
	return n
}
