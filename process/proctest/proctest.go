// Package proctest has helpers for tests with processes, threads, namespaces and files. It does
// not know tasks.
package proctest

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Deadline is how long a test waits for what must happen; no test depends on its length. The environment variable
// PAUSE_TEST_PATIENCE is a factor for slow machines.
var Deadline = patience() * time.Minute

func patience() time.Duration {
	if factor, err := strconv.Atoi(os.Getenv("PAUSE_TEST_PATIENCE")); err == nil {
		return time.Duration(factor)
	}
	return 1
}

// Context returns a context that ends with the test, or at its deadline.
func Context(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	t.Cleanup(cancel)
	return ctx
}

// Must ends the test if err is not nil.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// WantKind fails the test if err is not of a kind, which what describes.
func WantKind(t *testing.T, err error, is func(error) bool, what string) {
	t.Helper()
	if !is(err) {
		t.Errorf("got error %v, want %s", err, what)
	}
}

// Eventually ends the test if a condition, which what describes, does not become true.
func Eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(Deadline); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not true after %v: %s", Deadline, what)
		}
	}
}

// NoLeakedFDs fails the test if descriptors are open at its end that were not at its start.
func NoLeakedFDs(t *testing.T) {
	t.Helper()
	before := OpenFDs()
	t.Cleanup(func() {
		var leaked []string
		for end := time.Now().Add(Deadline); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			leaked = nil
			for fd, name := range OpenFDs() {
				if before[fd] != name {
					leaked = append(leaked, fd+" "+name)
				}
			}
			if len(leaked) == 0 {
				return
			}
		}
		t.Errorf("leaked descriptors: %v", leaked)
	})
}

// OpenFDs returns the names of this process's open files by their descriptors.
func OpenFDs() map[string]string {
	fds := make(map[string]string)
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		// This fails for the descriptor of ReadDir, which is closed.
		if name, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = name
		}
	}
	return fds
}

// Script writes a shell script for the tests' OCI runtime (process/testdata/runtime.sh).
func Script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "script")
	Must(t, os.WriteFile(path, []byte(text+"\n"), 0o600))
	return path
}

// Mkfifo makes a fifo.
func Mkfifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	Must(t, unix.Mkfifo(path, 0o600))
	return path
}

// Inode returns the inode number of a file, which for a namespace identifies it.
func Inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	Must(t, unix.Stat(path, &st))
	return st.Ino
}

// ThreadNS returns the path of a namespace of a thread of this process.
func ThreadNS(tid int, name string) string {
	return fmt.Sprintf("/proc/%d/task/%d/ns/%s", os.Getpid(), tid, name)
}

// AtHome reports whether a thread of this process is in the calling thread's namespaces.
func AtHome(t *testing.T, tid int) bool {
	t.Helper()
	for _, name := range []string{"net", "ipc", "uts"} {
		if Inode(t, ThreadNS(tid, name)) != Inode(t, ThreadNS(unix.Gettid(), name)) {
			return false
		}
	}
	return true
}

// OthersAtHome fails the test if any thread but one is not in the test's namespaces.
func OthersAtHome(t *testing.T, except int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	Must(t, err)
	for _, task := range tasks {
		if task.Name() == fmt.Sprint(except) {
			continue
		}
		for _, name := range []string{"net", "ipc", "uts"} {
			var st unix.Stat_t
			path := filepath.Join("/proc/self/task", task.Name(), "ns", name)
			if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
				continue // the thread has ended
			}
			if st.Ino != Inode(t, ThreadNS(unix.Gettid(), name)) {
				t.Errorf("thread %s is not in the host's %s namespace", task.Name(), name)
			}
		}
	}
}

// BindNetwork makes a new network namespace, held by a bind mount, and returns the mount's path.
func BindNetwork(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	Must(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	Must(t, <-done)
	t.Cleanup(func() { Must(t, unix.Unmount(path, unix.MNT_DETACH)) })
	return path
}

// Reading is the content of a fifo, which is being read.
type Reading struct {
	t    *testing.T
	Open chan struct{} // closed when there is a writer
	Done chan struct{}
	text []byte
	err  error
}

// ReadFifo starts to open a fifo, which waits for a writer, and to read it to its end.
func ReadFifo(t *testing.T, path string) *Reading {
	t.Helper()
	r := &Reading{t: t, Open: make(chan struct{}), Done: make(chan struct{})}
	go func() {
		defer close(r.Done)
		f, err := os.Open(path)
		if err != nil {
			r.err = err
			return
		}
		close(r.Open)
		defer f.Close()
		r.text, r.err = io.ReadAll(f)
	}()
	return r
}

// All waits for the end of the fifo and returns its content.
func (r *Reading) All() string {
	r.t.Helper()
	select {
	case <-r.Done:
	case <-time.After(Deadline):
		r.t.Fatalf("the fifo has not ended after %v", Deadline)
	}
	Must(r.t, r.err)
	return string(r.text)
}

// UseUpDescriptors leaves this process only so many free descriptors, until release is called or the test ends.
func UseUpDescriptors(t *testing.T, free int) (release func()) {
	t.Helper()
	var before unix.Rlimit
	Must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &before))
	taken := []int{openNull(t)}
	release = sync.OnceFunc(func() {
		Must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &before, nil))
		for _, fd := range taken {
			unix.Close(fd)
		}
	})
	t.Cleanup(release)
	highest := 0
	for fd := range OpenFDs() {
		n, err := strconv.Atoi(fd)
		Must(t, err)
		highest = max(highest, n)
	}
	Must(t, unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(highest + free + 1), Max: before.Max}, nil))
	for {
		fd, err := unix.FcntlInt(uintptr(taken[0]), unix.F_DUPFD_CLOEXEC, 0)
		if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EINVAL) {
			break
		}
		Must(t, err)
		taken = append(taken, fd)
	}
	for range free {
		last := len(taken) - 1
		unix.Close(taken[last])
		taken = taken[:last]
	}
	return release
}

func openNull(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	Must(t, err)
	return fd
}

// Again runs the calling test once more in another process, which change may prepare. It returns true in that
// process; in the first one it returns false, after failing the test if the other process has failed.
func Again(t *testing.T, change func(*exec.Cmd)) (inside bool) {
	t.Helper()
	const variable = "PAUSE_TEST_AGAIN"
	if os.Getenv(variable) == t.Name() {
		return true
	}
	var names []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+regexp.QuoteMeta(name)+"$")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run="+strings.Join(names, "/"), "-test.count=1", "-test.timeout="+Deadline.String())
	cmd.Env = append(os.Environ(), variable+"="+t.Name())
	if change != nil {
		change(cmd)
	}
	defer HoldReaper()()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the test failed in another process: %v\n%s", err, out)
	}
	if strings.Contains(string(out), "\nno tests to run") || strings.Contains(string(out), "testing: warning") {
		t.Errorf("the test has not run in another process: %s", out)
	}
	return false
}

// RefuseSyscall makes a system call fail in this process from now on, as a seccomp filter around a shim could.
func RefuseSyscall(t *testing.T, number uint32, errno unix.Errno) {
	t.Helper()
	const allow, fail = 0x7fff0000, 0x00050000 // SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 0, Jf: 1, K: number},
		{Code: unix.BPF_RET | unix.BPF_K, K: fail | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_, _, err := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(filter)
	if err != 0 {
		t.Fatalf("cannot set a seccomp filter: %v", err)
	}
}

// ProcessState returns the letter for the state of a process (proc_pid_stat(5)); empty if there is no such process.
func ProcessState(pid int) string {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	after := string(status[strings.LastIndexByte(string(status), ')')+1:])
	return strings.Fields(after)[0]
}

// BecomeSubreaper makes the test program a child subreaper, as a shim is. It is for TestMain.
func BecomeSubreaper() {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	// Go's poller opens descriptors at its first use. With this use, they are no leak of a test.
	r, w, _ := os.Pipe()
	r.Close()
	w.Close()
}

// HoldReaper keeps this process's reaper from reaping the children that a test starts, until
// release is called. Packages that have a reaper set it.
var HoldReaper = func() (release func()) { return func() {} }

// NewTerminal returns the master of a terminal.
func NewTerminal(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	Must(t, err)
	return os.NewFile(uintptr(fd), "terminal")
}

// TerminalSize returns the size of a terminal in characters.
func TerminalSize(t *testing.T, tty *os.File) (width, height uint16) {
	t.Helper()
	conn, err := tty.SyscallConn()
	Must(t, err)
	var size *unix.Winsize
	Must(t, conn.Control(func(fd uintptr) { size, err = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ) }))
	Must(t, err)
	return size.Col, size.Row
}

// GoProgram writes an executable file with the module information that Go's linker writes, see debug/buildinfo.
func GoProgram(t *testing.T, name, module string) (path string) {
	t.Helper()
	str := func(s string) []byte { return append(binary.AppendUvarint(nil, uint64(len(s))), s...) }
	const mark = "0123456789abcdef" // before and after the module information
	info := append([]byte("\xff Go buildinf:\x08\x02"), make([]byte, 16)...)
	info = append(append(info, str("go1.26")...), str(mark+module+mark)...)
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	copy(header.Ident[:], []byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)})
	const start = 0x80
	segment := elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W),
		Off: start, Vaddr: 0x400000, Filesz: uint64(len(info)), Memsz: uint64(len(info)), Align: 16,
	}
	var file bytes.Buffer
	Must(t, binary.Write(&file, binary.LittleEndian, header))
	Must(t, binary.Write(&file, binary.LittleEndian, segment))
	file.Write(make([]byte, start-file.Len()))
	file.Write(info)
	path = filepath.Join(t.TempDir(), name)
	Must(t, os.WriteFile(path, file.Bytes(), 0o700))
	return path
}

// Module information that Go's linker writes into runc.
const (
	// RuncModule is that of a release of runc.
	RuncModule = "path\tgithub.com/opencontainers/runc\nmod\tgithub.com/opencontainers/runc\tv1.5.2\th1:x=\n"
	// RuncPackage is that of a distribution's build, without a version.
	RuncPackage = "path\tgithub.com/opencontainers/runc\nbuild\t-compiler=gc\n"
)

// NamespaceList lists new namespaces of the given types.
func NamespaceList(kinds ...specs.LinuxNamespaceType) []specs.LinuxNamespace {
	var list []specs.LinuxNamespace
	for _, kind := range kinds {
		list = append(list, specs.LinuxNamespace{Type: kind})
	}
	return list
}

// PodKinds are the types of the namespaces that a pod usually has.
var PodKinds = []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}

// Sleeper starts a process that sleeps until the end of the test. It is for packages without a reaper.
func Sleeper(t *testing.T, attr *unix.SysProcAttr) (pid int) {
	t.Helper()
	cmd := exec.Command("sleep", "100000")
	cmd.SysProcAttr = attr
	Must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd.Process.Pid
}

// Mounted reports whether something is mounted at a path.
func Mounted(t *testing.T, path string) bool {
	t.Helper()
	mounted, err := mountinfo.Mounted(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return mounted
}
