package pod

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"containerd-shim-pause-v2/process/program"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Holder is a process that is for a moment in a pod's user namespace, to make other
// namespaces there. Those belong to the user namespace; in any others, containers could
// neither mount an mqueue file system nor set the host name (user_namespaces(7)). A thread of
// the shim cannot make them, because it cannot enter a user namespace (setns(2)).
type Holder struct {
	cmd    *exec.Cmd
	stdin  *os.File
	userns *NSFile
}

// holderTimeout bounds how long a holder may take for its system calls.
const holderTimeout = 10 * time.Second

// StartHolder starts a process in the pod's user namespace, which makes the new namespaces of
// the set there. It makes the user namespace, too, if there is none yet. The reaper must be
// on hold until the process has ended, see Take.
func StartHolder(s *specs.Spec, set Namespaces) (_ *Holder, err error) {
	code, err := program.Holder()
	if err != nil {
		return nil, err
	}
	file, err := programFile("holder", code)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare the holder of the pod's user namespace: %w", err)
	}
	defer file.Close()
	userns, err := set.userNamespace()
	if err != nil {
		return nil, fmt.Errorf("cannot open the pod's user namespace: %w", err)
	}
	h := &Holder{cmd: exec.Command("/proc/self/fd/3"), userns: userns} // the first of ExtraFiles
	h.cmd.ExtraFiles = []*os.File{file}
	h.cmd.Env = []string{}
	order := program.Order{UserNamespace: -1, Flags: set.newFlags()}
	if userns != nil {
		h.cmd.ExtraFiles = append(h.cmd.ExtraFiles, h.userns.File)
		order.UserNamespace = 4
	} else {
		h.cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:                 unix.CLONE_NEWUSER,
			UidMappings:                idMap(s.Linux.UIDMappings),
			GidMappings:                idMap(s.Linux.GIDMappings),
			GidMappingsEnableSetgroups: true,
			// Over execve(2), only root keeps its capabilities in a user namespace (capabilities(7)).
			Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		}
	}
	if err := h.run(order); err != nil {
		h.end()
		return nil, err
	}
	if h.userns == nil {
		if h.userns, err = Open(h.path("user")); err != nil {
			h.end()
			return nil, err
		}
	}
	return h, nil
}

// userNamespace opens the user namespace in the set, or else the one that owns the set's
// network namespace: through the Sandbox API, CRI makes both but passes only the latter. It
// returns nil if the user namespace is still to be made.
func (set Namespaces) userNamespace() (*NSFile, error) {
	if ns := set.find(specs.UserNamespace); ns != nil && ns.file != nil {
		fd, err := unix.FcntlInt(ns.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, os.NewSyscallError("fcntl", err)
		}
		return newNSFile(os.NewFile(uintptr(fd), ns.file.Name()))
	}
	ns := set.find(specs.NetworkNamespace)
	if ns == nil || ns.file == nil {
		return nil, nil
	}
	network := ns.file
	fd, err := unix.IoctlRetInt(int(network.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return nil, fmt.Errorf("cannot find the owner of %s: %w", network.Name(), err)
	}
	owner, err := newNSFile(os.NewFile(uintptr(fd), "owner of "+network.Name()))
	if err != nil {
		return nil, err
	}
	host, err := HostNamespace(specs.UserNamespace)
	if err != nil || owner.ID == host {
		owner.Close()
		return nil, err
	}
	return owner, nil
}

// run starts the process, sends it the order and waits for its report.
func (h *Holder) run(order program.Order) error {
	in, stdin, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	h.stdin = stdin
	stdout, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdout.Close()
	h.cmd.Stdin, h.cmd.Stdout = in, out
	err = h.cmd.Start()
	out.Close()
	if err != nil {
		h.cmd.Process = nil
		return fmt.Errorf("cannot start a process in the pod's user namespace: %w", err)
	}
	var report program.Report
	if err := binary.Write(stdin, binary.NativeEndian, order); err != nil {
		return err
	}
	if err := stdout.SetReadDeadline(time.Now().Add(holderTimeout)); err != nil {
		return err
	}
	if err := binary.Read(stdout, binary.NativeEndian, &report); err != nil {
		return fmt.Errorf("cannot read the report of the process in the pod's user namespace: %w", err)
	}
	if err := report.Err(); err != nil {
		return fmt.Errorf("cannot make namespaces in the pod's user namespace: %w", err)
	}
	return nil
}

// path returns the path of the holder's namespace with a name under /proc/<pid>/ns.
func (h *Holder) path(name string) string {
	return fmt.Sprintf("/proc/%d/ns/%s", h.cmd.Process.Pid, name)
}

// Fill opens the namespaces that the holder has made, and puts the files into the set.
func (h *Holder) Fill(set Namespaces) error {
	for _, t := range NamespaceTypes {
		ns := set.find(t.Kind)
		if ns == nil || ns.file != nil {
			continue
		}
		f, err := Open(h.path(t.Proc))
		if err != nil {
			return fmt.Errorf("cannot open the %s namespace made for the pod: %w", t.Kind, err)
		}
		ns.file = f
	}
	return nil
}

// Translate replaces the pod's group IDs with the host's in net.ipv4.ping_group_range, the
// only sysctl that has group IDs: the shim writes it, and the kernel interprets the IDs in
// the writer's user namespace (kernel, ipv4_ping_group_range in net/ipv4/sysctl_net_ipv4.c).
func (h *Holder) Translate(sysctls []Sysctl) error {
	const name = "net/ipv4/ping_group_range"
	for i, s := range sysctls {
		if s.Path != name {
			continue
		}
		ids, err := readIDMap(fmt.Sprintf("/proc/%d/gid_map", h.cmd.Process.Pid))
		if err != nil {
			return err
		}
		var groups []string
		for _, field := range strings.Fields(s.value) {
			group, err := ids.toHost(field)
			if err != nil {
				return fmt.Errorf("cannot set sysctl %q to %q: %w", strings.ReplaceAll(name, "/", "."), s.value, err)
			}
			groups = append(groups, strconv.FormatUint(group, 10))
		}
		sysctls[i].value = strings.Join(groups, " ")
	}
	return nil
}

// mappedIDs are the lines of a uid_map or gid_map: the first ID inside, the first ID
// outside, and their number (user_namespaces(7)).
type mappedIDs [][3]uint64

func readIDMap(path string) (ids mappedIDs, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		var id [3]uint64
		if _, err := fmt.Sscan(line, &id[0], &id[1], &id[2]); err != nil {
			return nil, fmt.Errorf("cannot decode %s: %w", path, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (m mappedIDs) toHost(text string) (uint64, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is not a group ID: %w", text, errdefs.ErrInvalidArgument)
	}
	for _, r := range m {
		if id >= r[0] && id-r[0] < r[2] {
			return r[1] + id - r[0], nil
		}
	}
	return 0, fmt.Errorf("the pod's user namespace does not map group ID %d: %w", id, errdefs.ErrInvalidArgument)
}

// Take ends the holder and returns the user namespace, which the caller must close.
func (h *Holder) Take() *NSFile {
	userns := h.userns
	h.userns = nil
	h.end()
	return userns
}

// end ends the holder, and closes the user namespace unless Take has returned it. The kernel
// frees the namespaces that nothing else holds.
func (h *Holder) end() {
	closeFile(h.stdin)
	if h.cmd.Process != nil {
		_ = h.cmd.Process.Kill() // it may have ended
		_ = h.cmd.Wait()         // its error is only the kill's
	}
	if h.userns != nil {
		h.userns.Close()
	}
}

func idMap(list []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	ids := make([]syscall.SysProcIDMap, len(list))
	for i, m := range list {
		ids[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)}
	}
	return ids
}

// CheckUserNamespace fails with [errdefs.ErrInvalidArgument] if the spec asks for a new user
// namespace without mapping ID 0: it would have no root.
func CheckUserNamespace(s *specs.Spec) error {
	if !slices.Contains(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace}) {
		return nil
	}
	for _, ids := range [][]specs.LinuxIDMapping{s.Linux.UIDMappings, s.Linux.GIDMappings} {
		if !mapsRoot(ids) {
			return fmt.Errorf("the spec asks for a user namespace, but does not map its root user or group: %w", errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func mapsRoot(ids []specs.LinuxIDMapping) bool {
	for _, m := range ids {
		if m.ContainerID == 0 && m.Size > 0 {
			return true
		}
	}
	return false
}
