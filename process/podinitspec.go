package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"containerd-shim-pause-v2/process/program"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// What the container of a pod's init is made of: its spec and its root.

// podInitSpec describes a container without any rights, for a sandbox with the
// given spec.
func (s *sandbox) podInitSpec(spec *specs.Spec) *specs.Spec {
	linux := spec.Linux
	labels := enabledLabels(spec)
	return &specs.Spec{
		Version: "1.0.2", // nothing newer is used
		Root:    &specs.Root{Path: s.initRoot, Readonly: true},
		Process: &specs.Process{
			Args:            []string{podInitName},
			Cwd:             "/",
			User:            spec.Process.User,
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			OOMScoreAdj:     spec.Process.OOMScoreAdj,
			SelinuxLabel:    labels.process,
			ApparmorProfile: labels.profile,
		},
		// OCI runtimes need /proc, and something to put device files into.
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "noexec", "ro", "mode=755", "size=64k"}},
		},
		Linux: &specs.Linux{
			Namespaces:        s.podInitNamespaces(),
			UIDMappings:       linux.UIDMappings,
			GIDMappings:       linux.GIDMappings,
			CgroupsPath:       s.podInitCgroup(linux.CgroupsPath),
			Resources:         linux.Resources,
			RootfsPropagation: "private",
			MountLabel:        labels.mount,
			// A container that may trace the init can reach its /proc. What is kept
			// from the container in its own must be kept from it there.
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// podInitCgroup is the path by which the OCI runtime puts the init into the sandbox's
// cgroup, whose path in the sandbox's spec is given. A runtime that is not to use
// systemd would take one in systemd's form for the name of another directory.
func (s *sandbox) podInitCgroup(path string) string {
	if cgroup := s.task.group(); cgroup != nil && !s.options.SystemdCgroup {
		return cgroup.String()
	}
	return path
}

// podInitNamespaces are the pod's, and new ones of the other types.
func (s *sandbox) podInitNamespaces() []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	for _, t := range podNamespaceTypes {
		if s.own[t.kind] {
			list = append(list, specs.LinuxNamespace{Type: t.kind, Path: s.path(t.proc)})
		}
	}
	if s.userns != nil {
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace, Path: s.userns.path()})
	}
	return list
}

// podInitSeccomp allows the init's own system calls, and those that runc and
// crun, and the Go runtime in the former, make between applying the filter and
// execve(2).
var podInitSeccomp = &specs.LinuxSeccomp{
	DefaultAction: specs.ActErrno,
	Syscalls: []specs.LinuxSyscall{
		{Action: specs.ActAllow, Names: []string{"close", "exit_group", "rt_sigprocmask", "rt_sigtimedwait", "wait4"}},
		{Action: specs.ActAllow, Names: []string{
			"capget", "capset", "clone", "clone3", "close_range", "epoll_ctl", "epoll_pwait", "eventfd2", "execve", "exit",
			"fcntl", "fstat", "fstatfs", "futex", "getdents64", "getpid", "gettid", "lseek", "madvise", "mmap", "mprotect",
			"munmap", "nanosleep", "newfstatat", "openat", "openat2", "prctl", "read", "readlinkat", "rseq", "rt_sigaction",
			"rt_sigreturn", "sched_yield", "set_robust_list", "sigaltstack", "statx", "tgkill", "write",
		}},
	},
}

// labels are of SELinux, and the profile of AppArmor.
type labels struct{ process, mount, profile string }

// enabledLabels are those in a sandbox's spec that the kernel knows of. OCI
// runtimes refuse others, which a sandbox takes as long as it has no process.
func enabledLabels(s *specs.Spec) (l labels) {
	if hasSELinux() {
		l.process, l.mount = s.Process.SelinuxLabel, s.Linux.MountLabel
	}
	if enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && enabled[0] == 'Y' {
		l.profile = s.Process.ApparmorProfile
	}
	return l
}

// hasSELinux says whether the kernel has SELinux and a policy for it. Without one,
// every process is labelled "kernel", and the kernel refuses to mount with a label.
func hasSELinux() bool {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		return false
	}
	label, err := os.ReadFile("/proc/thread-self/attr/current")
	return err == nil && strings.TrimRight(string(label), "\x00\n") != "kernel"
}

// makePodInitRoot mounts a file system that holds the init's program and nothing
// else: of its own, so that neither a mount option of the host (noexec) nor a
// file of the host can be met through it.
func makePodInitRoot(dir, label string) error {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	code, err := program.PodInit()
	if err != nil {
		return err
	}
	data := "mode=755,size=16k,nr_inodes=8"
	if label != "" {
		data += fmt.Sprintf(",context=%q", label)
	}
	if err := unix.Mount("pause", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("cannot mount %s: %w", dir, err)
	}
	for _, name := range []string{"dev", "proc"} {
		path := filepath.Join(dir, name)
		// It is for any user, whatever the umask.
		if err := errors.Join(os.Mkdir(path, 0o555), os.Chmod(path, 0o555)); err != nil {
			return err
		}
	}
	if err := writeProgram(unix.AT_FDCWD, filepath.Join(dir, podInitName), code); err != nil {
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("cannot make %s read-only: %w", dir, err)
	}
	return nil
}

// podInitRootOf is where the root directory of a pod's init is to be. In the bundle
// of a task there is a place for it, which containerd unmounts when it removes that.
// The directory with the bundles of the Sandbox API is closed to all but root
// (plugins/sandbox/controller.go), and so to the root of a user namespace; for
// those there is one of the shim's own beside it, in containerd's state directory.
func podInitRootOf(r CreateRequest) string {
	if !r.Sandbox {
		return filepath.Join(r.Bundle, "rootfs")
	}
	namespace := filepath.Dir(filepath.Clean(r.Bundle))
	state := filepath.Dir(filepath.Dir(namespace))
	return filepath.Join(state, "io.containerd.pause.v2", filepath.Base(namespace), r.ID)
}

// removePodInitRoot unmounts the root directory of an init, and removes it if it
// is not in a bundle.
func removePodInitRoot(root, bundle string) error {
	if root == "" {
		return nil
	}
	if err := mount.UnmountRecursive(root, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot unmount %s: %w", root, err)
	}
	if filepath.Dir(root) == filepath.Clean(bundle) {
		return nil
	}
	if err := os.Remove(root); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
