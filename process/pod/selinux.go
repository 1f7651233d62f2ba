package pod

import (
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Labels are of SELinux, and the profile of AppArmor.
type Labels struct{ Process, Mount, Profile string }

// EnabledLabels are those in a sandbox's spec that the kernel knows of. OCI
// runtimes refuse others, which a sandbox takes as long as it has no process.
func EnabledLabels(s *specs.Spec) (l Labels) {
	if HasSELinux() {
		l.Process, l.Mount = s.Process.SelinuxLabel, s.Linux.MountLabel
	}
	if enabled, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && enabled[0] == 'Y' {
		l.Profile = s.Process.ApparmorProfile
	}
	return l
}

// HasSELinux says whether the kernel has SELinux and a policy for it. Without one,
// every process is labelled "kernel", and the kernel refuses to mount with a label.
func HasSELinux() bool {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		return false
	}
	label, err := os.ReadFile("/proc/thread-self/attr/current")
	return err == nil && strings.TrimRight(string(label), "\x00\n") != "kernel"
}
