package node

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nodeEnv marks the daemon and what it starts. Containers have an environment of
// their own; they are known by their cgroup.
const nodeEnv = "PAUSE_NODE="

// Process is a process as /proc shows it.
type Process struct {
	Pid, Parent int
	State       string // a letter, as in ps
	Args        []string
}

func (p Process) String() string {
	return fmt.Sprintf("%d (parent %d, %s) %s", p.Pid, p.Parent, p.State, strings.Join(p.Args, " "))
}

// Processes returns all processes of the machine.
func Processes() []Process {
	var all []Process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if p, ok := readProcess(dir); ok {
			all = append(all, p)
		}
	}
	return all
}

// readProcess reports false for a process that has gone in the meantime.
func readProcess(dir string) (p Process, ok bool) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, false
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return p, false
	}
	// The name, in parentheses, may hold anything (proc_pid_stat(5)).
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if len(fields) < 2 {
		return p, false
	}
	p.Pid, _ = strconv.Atoi(filepath.Base(dir))
	p.State = fields[0]
	p.Parent, _ = strconv.Atoi(fields[1])
	p.Args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	if len(cmdline) == 0 {
		p.Args = []string{string(stat[bytes.IndexByte(stat, '(') : end+1])}
	}
	return p, true
}

// ShimPid is the pid of the shim process that was started for a container, or for
// the pod that is its group, or that has taken it in.
func (n *Node) ShimPid(namespace, id string) (int, error) {
	for _, p := range Processes() {
		if isShim(p) && flag(p.Args, "-namespace") == namespace && flag(p.Args, "-id") == id &&
			strings.HasPrefix(flag(p.Args, "-address"), n.Dir) {
			return p.Pid, nil
		}
	}
	for _, bundle := range []string{n.Bundle(namespace, id), n.sandboxBundle(namespace, id)} {
		if address, err := os.ReadFile(filepath.Join(bundle, "address")); err == nil {
			return listenerOf(strings.TrimPrefix(string(address), "unix://"))
		}
	}
	return 0, fmt.Errorf("no shim process for %s in namespace %s", id, namespace)
}

// listenerOf returns the pid of the process that listens on a socket.
func listenerOf(path string) (int, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return 0, fmt.Errorf("no shim process: %w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var credentials *unix.Ucred
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		credentials, sysErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, sysErr); err != nil {
		return 0, fmt.Errorf("no shim process: %w", err)
	}
	return int(credentials.Pid), nil
}

// isShim tells a shim that serves from the short-lived calls of the same binary.
func isShim(p Process) bool {
	last := p.Args[len(p.Args)-1]
	return strings.HasPrefix(filepath.Base(p.Args[0]), "containerd-shim-") && p.State != "Z" && last != "start" && last != "delete"
}

func flag(args []string, name string) string {
	for i, a := range args[:len(args)-1] {
		if a == name {
			return args[i+1]
		}
	}
	return ""
}

// nodeProcesses returns the processes of the node in dir: those marked by their
// environment or cgroup, and those whose ancestor is the process ancestor, not
// counting the ones in except and, for ancestry, what is below them. ancestor is
// 0 if ancestry does not matter.
func nodeProcesses(dir string, ancestor int, except ...int) []Process {
	all := Processes()
	parents := map[int]int{}
	for _, p := range all {
		parents[p.Pid] = p.Parent
	}
	excepted := map[int]bool{os.Getpid(): true}
	for _, pid := range except {
		excepted[pid] = true
	}
	descends := func(pid int) bool {
		for pid = parents[pid]; pid > 1; pid = parents[pid] {
			if pid == ancestor {
				return true
			}
			if excepted[pid] {
				return false
			}
		}
		return false
	}
	var found []Process
	for _, p := range all {
		if !excepted[p.Pid] && (ancestor != 0 && descends(p.Pid) || marked(p.Pid, dir)) {
			found = append(found, p)
		}
	}
	return found
}

func marked(pid int, dir string) bool {
	proc := fmt.Sprintf("/proc/%d/", pid)
	environ, _ := os.ReadFile(proc + "environ")
	for _, v := range bytes.Split(environ, []byte{0}) {
		if string(v) == nodeEnv+dir {
			return true
		}
	}
	cgroups, _ := os.ReadFile(proc + "cgroup")
	for line := range strings.Lines(string(cgroups)) {
		if isCgroupOf(filepath.Base(dir), strings.TrimSuffix(line, "\n")) {
			return true
		}
	}
	return false
}

var adopt sync.Once

// adoptOrphans makes this process the parent of all that the node's processes
// leave behind, so that nothing escapes the search for leftovers. As a parent it
// has to reap them.
func adoptOrphans() (err error) {
	adopt.Do(func() {
		if err = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err == nil {
			go reapOrphans()
		}
	})
	return err
}

// reapOrphans reaps children that have been dead for some time. Those that this
// program started itself are waited for, at once, by who did so.
func reapOrphans() {
	dead := map[int]int{} // how often each was seen
	for range time.Tick(250 * time.Millisecond) {
		seen := map[int]int{}
		for _, p := range Processes() {
			if p.Parent != os.Getpid() || p.State != "Z" {
				continue
			}
			seen[p.Pid] = dead[p.Pid] + 1
			if seen[p.Pid] > 4 {
				unix.Wait4(p.Pid, nil, unix.WNOHANG, nil) //nolint:errcheck // another try follows
			}
		}
		dead = seen
	}
}
