package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// upgradeLimit is how long the upgrade of one shim may take.
const upgradeLimit = time.Minute

// runningShimProcess is a shim of this program, or of another build of it.
type runningShimProcess struct {
	pid    int
	flags  flags
	socket string
}

// upgradeAll has all shims of this node, or those that the flags name, go on with the program
// that is being executed, one after the other, and prints what each has done.
func (c *call) upgradeAll(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find this program: %w", err)
	}
	shims, err := c.runningShims()
	if err != nil {
		return err
	}
	if len(shims) == 0 {
		return errors.New("there is no such shim, or none that this user may see")
	}
	return c.upgradeEach(ctx, program, shims)
}

// upgradeEach has some shims go on with a program, and prints what each has done.
func (c *call) upgradeEach(ctx context.Context, program string, shims []*runningShimProcess) error {
	table := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "PID\tNAMESPACE\tID\tRESULT")
	failed := 0
	for _, s := range shims {
		result, err := s.upgrade(ctx, program)
		if isAbsent(err) && c.hasEnded(ctx, s.pid) {
			result, err = "has ended with its last pod", nil
		}
		if err != nil {
			failed++
			result = "not upgraded: " + strings.TrimSpace(printable(status.Convert(err).Message()))
		}
		fmt.Fprintf(table, "%d\t%s\t%s\t%s\n", s.pid, s.flags.namespace, s.flags.id, result)
		if err := table.Flush(); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d shims have not been upgraded, and serve on as they were", failed, len(shims))
	}
	return nil
}

// isAbsent says whether a connection was refused since nobody listens.
func isAbsent(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// hasEnded says whether a shim has ended, or is about to, since it was found: the others before it
// may have taken long. Its socket's file goes a moment before the socket.
func (c *call) hasEnded(ctx context.Context, pid int) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for c.shimOf(pid) != nil {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

// upgrade asks the shim to execute the program, and returns what it has become.
func (s *runningShimProcess) upgrade(ctx context.Context, program string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeLimit)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.socket)
	if err != nil {
		return "", err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	token := fmt.Sprintf("%d.%d", os.Getpid(), time.Now().UnixNano())
	var is types.RuntimeVersion
	err = client.Call(ctx, upgradeService, upgradeMethod, &sandboxapi.CreateSandboxRequest{SandboxID: token, BundlePath: program}, &is)
	switch {
	case status.Code(err) == codes.Unimplemented:
		return "", errors.New("its version cannot be upgraded in place: it ends with its last pod")
	case errors.Is(err, ttrpc.ErrClosed):
		return "", fmt.Errorf("the shim has ended during the upgrade: %w", err)
	case err != nil:
		return "", err
	}
	return "upgraded to " + is.Version, nil
}

// runningShims finds the shims that the flags name, in order of their pids.
func (c *call) runningShims() (shims []*runningShimProcess, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("cannot list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		s := c.shimOf(pid)
		if s != nil && c.means(s.flags) {
			shims = append(shims, s)
		}
	}
	slices.SortFunc(shims, func(a, b *runningShimProcess) int { return a.pid - b.pid })
	return shims, nil
}

// means says whether the flags of this call, as far as there are any, are those of a shim.
func (c *call) means(is flags) bool {
	return (c.namespace == "" || c.namespace == is.namespace) && (c.id == "" || c.id == is.id) && (c.address == "" || c.address == is.address)
}

// shimOf returns the shim that a process is; nil if it is none.
func (c *call) shimOf(pid int) *runningShimProcess {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil || len(cmdline) == 0 {
		return nil
	}
	args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if name := filepath.Base(args[0]); name != programOf(c.config.Runtime) && name != programOf(c.config.SharedRuntime) {
		return nil
	}
	s := &runningShimProcess{pid: pid, socket: socketOf(dir)}
	if s.socket == "" || s.flags.parse(args[1:], nil) != nil {
		return nil
	}
	return s
}

// socketOf returns the path of the Unix socket on which a process listens; empty if there is
// none.
func socketOf(process string) string {
	fds, err := os.ReadDir(filepath.Join(process, "fd"))
	if err != nil {
		return ""
	}
	own := make(map[string]bool)
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(process, "fd", fd.Name())); err == nil {
			own[target] = true
		}
	}
	// A socket is listed in the network namespace in which it was made, which is not that of
	// the threads that hold pods.
	tables, _ := filepath.Glob(filepath.Join(process, "task/*/net/unix")) // the pattern is well-formed
	for _, table := range tables {
		if path := listener(table, own); path != "" {
			return path
		}
	}
	return ""
}

// listener returns the path of the first socket in a table (proc_pid_net(5), unix) that is
// listened on, and to which one of the links leads; empty if there is none.
func listener(table string, links map[string]bool) string {
	f, err := os.Open(table)
	if err != nil {
		return ""
	}
	defer f.Close()
	const (
		accepts = "00010000" // __SO_ACCEPTCON among the flags
		columns = 8          // Num RefCount Protocol Flags Type St Inode Path
	)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == columns && fields[3] == accepts && links["socket:["+fields[6]+"]"] {
			return fields[7]
		}
	}
	return ""
}
