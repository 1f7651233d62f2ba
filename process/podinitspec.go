package process

import (
	"containerd-shim-pause-v2/process/pod"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// The spec of the container that the pod init runs in.

// podInitSpec returns the spec of the pod init for a sandbox with the given spec: a
// container without any rights.
func (s *sandbox) podInitSpec(spec *specs.Spec) *specs.Spec {
	linux := spec.Linux
	labels := pod.EnabledLabels(spec)
	return &specs.Spec{
		Version: "1.0.2", // the spec uses nothing newer
		Root:    &specs.Root{Path: s.initRoot, Readonly: true},
		Process: &specs.Process{
			Args:            []string{pod.InitName},
			Cwd:             "/",
			User:            spec.Process.User,
			Capabilities:    &specs.LinuxCapabilities{},
			NoNewPrivileges: true,
			OOMScoreAdj:     spec.Process.OOMScoreAdj,
			SelinuxLabel:    labels.Process,
			ApparmorProfile: labels.Profile,
		},
		// OCI runtimes need /proc, and a directory to put device files into.
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
			MountLabel:        labels.Mount,
			// A container that may trace the init can reach the init's /proc. Whatever is
			// masked in the container's own /proc must be masked there too.
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// podInitCgroup returns the cgroup path for the spec of the pod init, which puts the init
// into the sandbox's cgroup; path is that of the sandbox's spec. A runtime that does not use
// systemd would take a path in systemd's form for a directory name, so it gets the path of
// the directory instead.
func (s *sandbox) podInitCgroup(path string) string {
	if cgroup := s.task.group(); cgroup != nil && !s.options.SystemdCgroup {
		return cgroup.String()
	}
	return path
}

// podInitNamespaces returns the pod's namespaces, and new ones of the other types.
func (s *sandbox) podInitNamespaces() []specs.LinuxNamespace {
	list := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	for _, t := range pod.NamespaceTypes {
		if s.own[t.Kind] {
			list = append(list, specs.LinuxNamespace{Type: t.Kind, Path: s.path(t.Proc)})
		}
	}
	if s.userns != nil {
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace, Path: s.userns.Path()})
	}
	return list
}

// podInitSeccomp allows the system calls that the pod init makes (first list), and those
// that runc, with its Go runtime, and crun make after the filter is applied, up to
// execve(2) (second list).
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
