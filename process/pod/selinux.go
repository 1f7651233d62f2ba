package pod

import (
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Labels are SELinux's labels for processes and mounts, and the name of an AppArmor profile.
type Labels struct{ Process, Mount, Profile string }

// EnabledLabels returns the labels in a sandbox's spec that the kernel supports. An OCI
// runtime would refuse the others, but a sandbox without a process has no use for them.
func EnabledLabels(s *specs.Spec) (l Labels) {
	if HasSELinux() {
		l.Process, l.Mount = s.Process.SelinuxLabel, s.Linux.MountLabel
	}
	if enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && enabled[0] == 'Y' {
		l.Profile = s.Process.ApparmorProfile
	}
	return l
}

// HasSELinux reports whether the kernel has SELinux enabled and a policy loaded. Without a
// policy, every process has the label "kernel", and the kernel refuses to mount with a
// label.
func HasSELinux() bool {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		return false
	}
	label, err := os.ReadFile("/proc/thread-self/attr/current")
	return err == nil && strings.TrimRight(string(label), "\x00\n") != "kernel"
}
