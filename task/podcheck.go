package task

// What a pod may ask for. Through the Sandbox API, only the shim checks a pod's
// configuration: what is neither refused here nor applied elsewhere would be dropped
// silently, and a protection of the host perhaps with it. What CRI's own podsandbox
// refuses is refused here too; docs/differences.md has the whole list.

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// words describes, in an error, a value that is not itself text.
type words string

// refuse returns the error for a field of a pod's configuration. The field is named as in
// CRI's api.proto.
func refuse(field string, value any, why string) error {
	if text, ok := value.(string); ok {
		value = fmt.Sprintf("%q", text)
	}
	return fmt.Errorf("%s = %v: %s: %w", field, value, why, errdefs.ErrInvalidArgument)
}

const (
	securityField = "linux.security_context."
	usernsField   = securityField + "namespace_options.userns_options."
)

// check refuses what the pod cannot have on this host. All errors are of the kind
// [errdefs.ErrInvalidArgument], and name the field and its value.
func (c *podConfig) check(h host) error {
	security := &c.Linux.Security
	for _, check := range []func() error{
		c.checkHostname,
		security.Namespaces.User.check,
		func() error { return security.checkIPC(h) },
		func() error { return security.SELinux.check(h) },
		func() error { return security.checkSeccomp(h) },
		security.checkUser,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// maxHostname is the longest host name that Linux takes, in bytes (sethostname(2)).
const maxHostname = 64

// checkHostname refuses a host name that cannot be set. A pod has its own UTS namespace
// only with its own network namespace, so with the host's network the name would become
// the host's. podsandbox fails there too, as runc refuses to set it.
func (c *podConfig) checkHostname() error {
	switch {
	case c.Hostname != "" && c.Linux.Security.Namespaces.Network == modeNode:
		return refuse("hostname", c.Hostname, "a pod in the host's network has the host's name")
	case len(c.Hostname) > maxHostname:
		return refuse("hostname", c.Hostname, fmt.Sprintf("a host name has at most %d bytes", maxHostname))
	}
	return nil
}

// check does what parseUsernsIDs does in containerd's internal/cri/server/podsandbox.
func (u *userNamespace) check() error {
	if u == nil {
		return nil
	}
	for _, list := range []struct {
		name string
		ids  []idMapping
	}{{"uids", u.UIDs}, {"gids", u.GIDs}} {
		field := usernsField + list.name
		switch {
		case len(list.ids) > 1:
			return refuse(field, words(fmt.Sprintf("%d mappings", len(list.ids))), "only one is supported")
		case len(list.ids) == 1 && list.ids[0].Length == 0:
			return refuse(field+".length", 0, "a mapping must have at least one ID")
		case len(list.ids) == 1 && u.Mode == modeNode:
			m := list.ids[0]
			return refuse(field, words(fmt.Sprintf("%d:%d:%d", m.ContainerID, m.HostID, m.Length)), "the host's user namespace (mode NODE) cannot be mapped")
		case len(list.ids) == 0 && u.Mode == modePod:
			return refuse(field, words("none"), "a user namespace of the pod (mode POD) needs a mapping")
		}
	}
	if u.Mode != modePod && u.Mode != modeNode {
		return refuse(usernsField+"mode", u.Mode, "it must be POD (the pod's own) or NODE (the host's)")
	}
	return nil
}

// checkIPC refuses the host's IPC namespace on a host without shared memory, as CRI
// mounts the host's into the containers.
func (s *securityContext) checkIPC(h host) error {
	if s.Namespaces.IPC != modeNode {
		return nil
	}
	if _, err := os.Stat(h.shm); err != nil {
		return refuse(securityField+"namespace_options.ipc", s.Namespaces.IPC, fmt.Sprintf("cannot find the host's shared memory: %v", err))
	}
	return nil
}

// selinuxLevel matches an SELinux level or a range of levels: sensitivities, optionally
// followed by categories and ranges of them, as CRI accepts them (checkSelinuxLevel in
// containerd's internal/cri/server/podsandbox).
const (
	selinuxCategory = `c[0-9]{1,4}(\.c[0-9]{1,4})?`
	selinuxLevel    = `^s[0-9](-s[0-9])?(:` + selinuxCategory + `(,` + selinuxCategory + `)*)?$`
)

// check refuses labels that would take effect. The shim makes no labels; without the
// pod's, containers that have no SELinux options themselves would get labels that nobody
// asked for. Where labels have no effect, podsandbox drops them as well, except for a
// malformed level.
func (o *selinuxOptions) check(h host) error {
	if o == nil {
		return nil
	}
	const field = securityField + "selinux_options"
	if o.Level != "" && !regexp.MustCompile(selinuxLevel).MatchString(o.Level) {
		return refuse(field+".level", o.Level, "it is not an SELinux level such as s0:c1,c2")
	}
	if h.selinux && *o != (selinuxOptions{}) {
		label := strings.Join([]string{o.User, o.Role, o.Type, o.Level}, ":")
		return refuse(field, label, "SELinux is enabled, and this shim does not support labels through the Sandbox API; use sandboxer = 'podsandbox'")
	}
	return nil
}

// seccompProfile returns the requested profile, including one in the older form of
// seccomp_profile_path; nil if there is none (GenerateSeccompSecurityProfile in
// containerd's internal/cri/sputil).
func (s *securityContext) seccompProfile() (*securityProfile, error) {
	if s.Seccomp != nil {
		return s.Seccomp, nil
	}
	switch s.SeccompPath {
	case "":
		return nil, nil
	case "runtime/default", "docker/default":
		return &securityProfile{Type: profileDefault}, nil
	case "unconfined":
		return &securityProfile{Type: profileUnconfined}, nil
	}
	if file, ok := strings.CutPrefix(s.SeccompPath, localhostPrefix); ok {
		return &securityProfile{Type: profileLocalhost, File: file}, nil
	}
	return nil, refuse(securityField+"seccomp_profile_path", s.SeccompPath, "it must be runtime/default, docker/default, unconfined or localhost/<path>")
}

const localhostPrefix = "localhost/"

// checkSeccomp refuses a profile that could not be applied. A valid one is not used: the
// sandbox has no process except the init of a shared PID namespace, whose filter allows
// less (GenerateSeccompSpecOpts in containerd's internal/cri/sputil).
func (s *securityContext) checkSeccomp(h host) error {
	profile, err := s.seccompProfile()
	if err != nil || profile == nil || s.Privileged {
		return err
	}
	const field = securityField + "seccomp."
	switch {
	case profile.Type < profileDefault || profile.Type > profileLocalhost:
		return refuse(field+"profile_type", int32(profile.Type), "this type is unknown")
	case !h.seccomp && profile.Type != profileUnconfined:
		return refuse(field+"profile_type", int32(profile.Type), "the kernel has no seccomp filters")
	case profile.Type == profileLocalhost:
		return checkProfileFile(field+"localhost_ref", strings.TrimPrefix(profile.File, localhostPrefix))
	case profile.File != "":
		return refuse(field+"localhost_ref", profile.File, "only profile_type Localhost takes a path")
	}
	return nil
}

func checkProfileFile(field, path string) error {
	if !filepath.IsAbs(path) {
		return refuse(field, path, "it is not an absolute path")
	}
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() { // opening a fifo would block
		err = errors.New("it is not a regular file")
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return refuse(field, path, fmt.Sprintf("cannot read the profile: %v", err))
	}
	if err := json.Unmarshal(data, new(specs.LinuxSeccomp)); err != nil {
		return refuse(field, path, fmt.Sprintf("cannot decode the profile: %v", err))
	}
	return nil
}

// checkUser refuses a group without a user, as CRI does, and IDs outside the range of OCI
// runtimes (WithUser in containerd's pkg/oci): cut to 32 bits, some would be root's.
func (s *securityContext) checkUser() error {
	if s.Group != nil && s.User == nil {
		return refuse(securityField+"run_as_group", s.Group.Value, "it is given without run_as_user")
	}
	ids := []struct {
		name  string
		value *int64Value
	}{{"run_as_user", s.User}, {"run_as_group", s.Group}}
	for _, id := range ids {
		if id.value != nil && !isID(id.value.Value) {
			return refuse(securityField+id.name, id.value.Value, notAnID)
		}
	}
	for _, group := range s.SupplementalGroups {
		if !isID(group) {
			return refuse(securityField+"supplemental_groups", group, notAnID)
		}
	}
	return nil
}

const notAnID = "an ID is between 0 and 2147483647"

func isID(id int64) bool { return id >= 0 && id <= math.MaxInt32 }
