package stdio

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

// Input, output and size of a terminal share one descriptor of its master, which is closed when
// the process has ended.
func TestTerminalHasOneDescriptor(t *testing.T) {
	proctest.NoLeakedFDs(t)
	s := terminalStreams(t)
	if got := countTerminals(t); got != 1 {
		t.Errorf("%d descriptors of the terminal are open", got)
	}
	s.Start()
	program := openTerminal(t, s.tty)
	in, err := os.OpenFile(s.in.src.Name(), os.O_WRONLY, 0)
	proctest.Must(t, err)
	_, err = in.WriteString("hello\n")
	proctest.Must(t, err)
	if got, err := bufio.NewReader(program).ReadString('\n'); err != nil || got != "hello\n" {
		t.Errorf("the program has read %q, error %v", got, err)
	}
	if got := countTerminals(t); got != 1 {
		t.Errorf("%d descriptors of the terminal are open", got)
	}
	// The terminal stays open when its program closes it, until the input ends.
	proctest.Must(t, program.Close())
	s.copies.Wait()
	proctest.Must(t, s.Resize(Size{120, 30}))
	if width, height := proctest.TerminalSize(t, s.tty); width != 120 || height != 30 {
		t.Errorf("the size is %d×%d, want 120×30", width, height)
	}
	s.CloseInput()
	proctest.Must(t, in.Close())
	proctest.Eventually(t, "the terminal is closed", func() bool { return countTerminals(t) == 0 })
}

// terminalStreams are the streams of a process with a terminal, with input and output.
func terminalStreams(t *testing.T) *Streams {
	t.Helper()
	in, out := proctest.Mkfifo(t), proctest.Mkfifo(t)
	proctest.ReadFifo(t, out)
	s, err := OpenConsole(proctest.Context(t), Config{Stdin: in, Stdout: out, Terminal: true}, nil)
	proctest.Must(t, err)
	t.Cleanup(s.Close)
	s.Attach(proctest.NewTerminal(t))
	return s
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

// countTerminals returns the number of open descriptors of terminals' masters.
func countTerminals(t *testing.T) (n int) {
	t.Helper()
	for _, name := range proctest.OpenFDs() {
		if strings.HasSuffix(name, "/ptmx") {
			n++
		}
	}
	return n
}
