package task

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podChange changes what is most of a pod's configuration.
type podChange func(*cri.PodSandboxConfig, *cri.LinuxSandboxSecurityContext)

// userns is a change to a user namespace.
func usernsOf(mode cri.NamespaceMode, uids, gids []*cri.IDMapping) podChange {
	return func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
		s.NamespaceOptions.UsernsOptions = &cri.UserNamespace{Mode: mode, Uids: uids, Gids: gids}
	}
}

// TestPodsThatAreRefused also has a row for everything that podsandbox refuses.
func TestPodsThatAreRefused(t *testing.T) {
	const (
		ofPod  = cri.NamespaceMode_POD
		ofHost = cri.NamespaceMode_NODE
		userns = "linux.security_context.namespace_options.userns_options."
	)
	var (
		ids   = []*cri.IDMapping{{HostId: 100000, Length: 65536}}
		two   = []*cri.IDMapping{{HostId: 100000, Length: 1}, {HostId: 200000, ContainerId: 1, Length: 1}}
		empty = []*cri.IDMapping{{HostId: 100000}}
		dir   = t.TempDir()
		text  = filepath.Join(dir, "text")
		fifo  = filepath.Join(dir, "fifo")
	)
	proctest.Must(t, os.WriteFile(text, []byte("text"), 0o600))
	proctest.Must(t, unix.Mkfifo(fifo, 0o600))
	seccomp := func(p *cri.SecurityProfile) podChange {
		return func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) { s.Seccomp = p }
	}
	localhost := func(path string) podChange {
		return seccomp(&cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: path})
	}
	for name, tc := range map[string]struct {
		change podChange
		want   []string // field and value
	}{
		"user namespace of a container": {usernsOf(cri.NamespaceMode_CONTAINER, ids, ids), []string{userns + "mode", "CONTAINER"}},
		"user namespace of a target":    {usernsOf(cri.NamespaceMode_TARGET, nil, nil), []string{userns + "mode", "TARGET"}},
		"unknown user namespace":        {usernsOf(9, ids, ids), []string{userns + "mode", "9"}},
		"several mappings of users":     {usernsOf(ofPod, two, ids), []string{userns + "uids", "2 mappings"}},
		"several mappings of groups":    {usernsOf(ofPod, ids, two), []string{userns + "gids", "2 mappings"}},
		"no mapping of users":           {usernsOf(ofPod, nil, ids), []string{userns + "uids", "none"}},
		"no mapping of groups":          {usernsOf(ofPod, ids, nil), []string{userns + "gids", "none"}},
		"no mapping at all":             {usernsOf(ofPod, nil, nil), []string{userns + "uids", "none"}},
		"a mapping of nobody":           {usernsOf(ofPod, ids, empty), []string{userns + "gids.length", "0"}},
		"a mapping of the host's":       {usernsOf(ofHost, nil, ids), []string{userns + "gids", "100000"}},
		"host name with the host's network": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.Network = ofHost
		}, []string{"hostname", "host-of-pod"}},
		"long host name": {func(c *cri.PodSandboxConfig, _ *cri.LinuxSandboxSecurityContext) {
			c.Hostname = strings.Repeat("h", 65)
		}, []string{"hostname", "hhh"}},
		"SELinux level": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.SelinuxOptions = &cri.SELinuxOption{Level: "high"}
		}, []string{"selinux_options.level", `"high"`}},
		"group without a user": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.RunAsGroup = &cri.Int64Value{Value: 7}
		}, []string{"run_as_group", "7"}},
		"user that is none": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.RunAsUser = &cri.Int64Value{Value: 1 << 32} // root, if it was cut
		}, []string{"run_as_user", "4294967296"}},
		"group that is none": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.RunAsUser, s.RunAsGroup = &cri.Int64Value{}, &cri.Int64Value{Value: -1}
		}, []string{"run_as_group", "-1"}},
		"other group that is none": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.SupplementalGroups = []int64{5, 1 << 31}
		}, []string{"supplemental_groups", "2147483648"}},
		"seccomp profile in old words": {func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.SeccompProfilePath = "profile" //nolint:staticcheck // deprecated, but in use
			s.Privileged = true              // That does not matter.
		}, []string{"seccomp_profile_path", `"profile"`}},
		"seccomp profile of no kind":     {seccomp(&cri.SecurityProfile{ProfileType: 3}), []string{"seccomp.profile_type", "3"}},
		"seccomp profile and a file":     {seccomp(&cri.SecurityProfile{LocalhostRef: text}), []string{"seccomp.localhost_ref", text}},
		"seccomp profile that is absent": {localhost(dir + "/none"), []string{"seccomp.localhost_ref", dir + "/none"}},
		"seccomp profile by its name":    {localhost("localhost/name"), []string{"seccomp.localhost_ref", `"name"`}},
		"seccomp profile of text":        {localhost(text), []string{"seccomp.localhost_ref", text, "decode"}},
		"seccomp profile that is a fifo": {localhost(fifo), []string{"seccomp.localhost_ref", fifo}},
		"sysctl of the host": {func(c *cri.PodSandboxConfig, _ *cri.LinuxSandboxSecurityContext) {
			c.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
		}, []string{"kernel.panic"}},
		"sysctl of the host's network": {func(c *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.Network, c.Hostname = ofHost, ""
			c.Linux.Sysctls = map[string]string{"net.core.somaxconn": "1"}
		}, []string{"net.core.somaxconn", "network"}},
	} {
		t.Run(name, func(t *testing.T) {
			n, h, c := newNode(t), newHome(t), config(t)
			tc.change(c, c.Linux.SecurityContext)
			_, err := n.sandboxes.CreateSandbox(proctest.Context(t), n.createRequest(h, c))
			if err == nil {
				t.Fatal("no error")
			}
			wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
			for _, text := range append(tc.want, "sandbox pod") {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error %q does not name %s", err, text)
				}
			}
			if _, err := os.Stat(filepath.Join(h.bundle, "config.json")); err == nil && !strings.HasPrefix(name, "sysctl") {
				t.Error("a spec was written")
			}
			if _, err := os.Stat(h.files); !os.IsNotExist(err) {
				t.Error("files are left")
			}
			// The id is free.
			n.createSandbox(n.createRequest(h, config(t)))
		})
	}
}

// TestPodsThatAHostCannotHave has pods that are refused or not depending on the host.
func TestPodsThatAHostCannotHave(t *testing.T) {
	usual := host{seccomp: true, shm: t.TempDir()}
	selinux, old, bare := usual, usual, usual
	selinux.selinux = true
	old.seccomp = false
	bare.shm += "/none"
	label := func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
		s.SelinuxOptions = &cri.SELinuxOption{Type: "spc_t", Level: "s0:c1,c2"}
	}
	profile := func(kind cri.SecurityProfile_ProfileType, privileged bool) podChange {
		return func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.Seccomp, s.Privileged = &cri.SecurityProfile{ProfileType: kind}, privileged
		}
	}
	inOldWords := func(words string) podChange {
		return func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.SeccompProfilePath = words //nolint:staticcheck // deprecated, but in use
		}
	}
	ipcOfHost := func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
		s.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
	}
	for name, tc := range map[string]struct {
		host   host
		change podChange
		want   string // field of the error; empty for none
	}{
		"label, SELinux enabled":  {selinux, label, `linux.security_context.selinux_options = "::spc_t:s0:c1,c2"`},
		"label, SELinux disabled": {usual, label, ""},
		"empty label, SELinux enabled": {selinux, func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.SelinuxOptions = &cri.SELinuxOption{}
		}, ""},
		"privileged, SELinux enabled":     {selinux, func(c *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) { label(c, s); s.Privileged = true }, "selinux_options"},
		"no label, SELinux enabled":       {selinux, profile(0, false), ""},
		"default profile":                 {usual, profile(cri.SecurityProfile_RuntimeDefault, false), ""},
		"default profile, no seccomp":     {old, profile(cri.SecurityProfile_RuntimeDefault, false), "seccomp.profile_type"},
		"old default, no seccomp":         {old, inOldWords("runtime/default"), "seccomp.profile_type"},
		"old unconfined, no seccomp":      {old, inOldWords("unconfined"), ""},
		"unconfined, no seccomp":          {old, profile(cri.SecurityProfile_Unconfined, false), ""},
		"privileged, no seccomp":          {old, profile(cri.SecurityProfile_RuntimeDefault, true), ""},
		"no profile, no seccomp":          {old, inOldWords(""), ""},
		"the host's IPC":                  {usual, ipcOfHost, ""},
		"the host's IPC, but no /dev/shm": {bare, ipcOfHost, "namespace_options.ipc = NODE"},
		"IPC of the pod, but no /dev/shm": {bare, profile(0, false), ""},
	} {
		t.Run(name, func(t *testing.T) {
			err := decoded(t, tc.change).check(tc.host)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got error %v, want one with %s", err, tc.want)
			}
		})
	}
}

// decoded is a changed configuration, as the shim has it.
func decoded(t *testing.T, change podChange) *podConfig {
	t.Helper()
	c := config(t)
	if change != nil {
		change(c, c.Linux.SecurityContext)
	}
	options, err := typeurl.MarshalAnyToProto(c)
	proctest.Must(t, err)
	d, err := decodePodConfig(options)
	proctest.Must(t, err)
	return d
}

func TestSELinuxLevels(t *testing.T) {
	for level, ok := range map[string]bool{
		"": true, "s0": true, "s0-s3": true, "s0:c1": true, "s0:c1,c2": true, "s0-s0:c0.c1023": true, "s9:c1.c3,c7,c10.c12": true,
		"s": false, "s10": false, "s0:": false, "s0:c": false, "s0:c12345": false, "s0:c1,": false, "s0:c1.": false, "s0-": false,
		"s0 ": false, "s0\n": false, "c1": false, "s0:c1:c2": false,
	} {
		err := (&selinuxOptions{Level: level}).check(host{})
		if (err == nil) != ok {
			t.Errorf("%q: got error %v", level, err)
		}
	}
}

func TestSeccompProfileOfTheNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "profile.json")
	proctest.Must(t, os.WriteFile(path, []byte(`{"defaultAction": "SCMP_ACT_ERRNO"}`), 0o600))
	for _, change := range []podChange{
		func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.Seccomp = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: path}
		},
		func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.SeccompProfilePath = "localhost/" + path //nolint:staticcheck // deprecated, but in use
		},
	} {
		proctest.Must(t, decoded(t, change).check(host{seccomp: true}))
	}
}

// TestDefaultsOfAPod checks the defaults that a pod has not asked for.
func TestDefaultsOfAPod(t *testing.T) {
	const (
		ports = "net.ipv4.ip_unprivileged_port_start=0"
		ping  = "net.ipv4.ping_group_range=0 2147483647"
		own   = "kernel.msgmax=9001" // of the configuration
	)
	usual := host{procSys: "/proc/sys", canLowerScore: true, ownScore: 3}
	rootless, noIPv4 := usual, usual
	rootless.userns, rootless.canLowerScore = true, false
	noIPv4.procSys = t.TempDir()
	all := HandlerOptions{EnableUnprivilegedPorts: true, EnableUnprivilegedICMP: true}
	restricted := all
	restricted.RestrictOOMScoreAdj = true
	ids := []*cri.IDMapping{{HostId: 100000, Length: 65536}}
	for name, tc := range map[string]struct {
		host    host
		options HandlerOptions
		change  podChange
		want    []string
		score   int
	}{
		"all":              {usual, all, nil, []string{ports, ping}, -998},
		"no ports":         {usual, HandlerOptions{EnableUnprivilegedICMP: true}, nil, []string{ping}, -998},
		"no pings":         {usual, HandlerOptions{EnableUnprivilegedPorts: true}, nil, []string{ports}, -998},
		"neither":          {usual, HandlerOptions{}, nil, nil, -998},
		"restricted score": {usual, restricted, nil, []string{ports, ping}, 3},
		"user namespace":   {usual, all, usernsOf(cri.NamespaceMode_POD, ids, ids), []string{ports}, -998},
		"rootless":         {rootless, all, nil, []string{ports}, 3},
		"no IPv4":          {noIPv4, all, nil, nil, -998},
		"host's network": {usual, all, func(_ *cri.PodSandboxConfig, s *cri.LinuxSandboxSecurityContext) {
			s.NamespaceOptions.Network = cri.NamespaceMode_NODE
		}, nil, -998},
		"values of the pod": {rootless, all, func(c *cri.PodSandboxConfig, _ *cri.LinuxSandboxSecurityContext) {
			maps.Copy(c.Linux.Sysctls, map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "net.ipv4.ping_group_range": "1 0"})
		}, []string{"net.ipv4.ip_unprivileged_port_start=80", "net.ipv4.ping_group_range=1 0"}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			spec := decoded(t, tc.change).spec("pod", "", &tc.options, tc.host)
			want := make(map[string]string)
			for _, setting := range append(tc.want, own) {
				key, value, _ := strings.Cut(setting, "=")
				want[key] = value
			}
			if !maps.Equal(spec.Linux.Sysctl, want) {
				t.Errorf("sysctls are %v, want %v", spec.Linux.Sysctl, want)
			}
			if score := *spec.Process.OOMScoreAdj; score != tc.score {
				t.Errorf("the score is %d, want %d", score, tc.score)
			}
		})
	}
}

// TestOptionsOfTheHandlerReachThePod reads what the kernel has in the pod's namespace.
func TestOptionsOfTheHandlerReachThePod(t *testing.T) {
	n, h := newNode(t), newHome(t)
	n.service.options.EnableUnprivilegedPorts, n.service.options.EnableUnprivilegedICMP = false, false
	n.createSandbox(n.createRequest(h, config(t)))
	for key, want := range map[string]string{"ip_unprivileged_port_start": "1024", "ping_group_range": "1\t0"} {
		var got string
		proctest.Must(t, thread.Do(func() error {
			data, err := os.ReadFile("/proc/sys/net/ipv4/" + key)
			got = strings.TrimSpace(string(data))
			return err
		}))
		if got != want {
			t.Errorf("%s is %q, want the kernel's default %q", key, got, want)
		}
	}
}

// rootlessEnv makes the test program run the test of its value, in a user namespace.
const rootlessEnv = "PAUSE_TEST_ROOTLESS"

// TestPodOfARootlessContainerd makes a pod where the shim itself is in a user namespace.
func TestPodOfARootlessContainerd(t *testing.T) {
	if os.Getenv(rootlessEnv) != "" {
		n, h, c := newNode(t), newHome(t), config(t)
		c.Linux.CgroupParent = "" // It has none to give away.
		n.createSandbox(n.createRequest(h, c))
		n.startSandbox()
		if state := n.status().State; state != sandboxReady {
			t.Errorf("the sandbox is %s", state)
		}
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestPodOfARootlessContainerd$", "-test.v")
	cmd.Env = append(os.Environ(), rootlessEnv+"=1")
	root := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: root, GidMappings: root,
	}
	defer reaper.Hold()()
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestThisHost(t *testing.T) {
	h, err := thisHost()
	proctest.Must(t, err)
	if h.selinux != process.HasSELinux() {
		t.Errorf("got %+v", h)
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	proctest.Must(t, err)
	if want := strings.TrimSpace(string(data)); fmt.Sprint(h.ownScore) != want {
		t.Errorf("the score is %d, want %s", h.ownScore, want)
	}
	// Only a try shows what is allowed.
	lower := os.WriteFile("/proc/self/oom_score_adj", []byte(fmt.Sprint(h.ownScore-1)), 0) == nil
	if lower {
		proctest.Must(t, os.WriteFile("/proc/self/oom_score_adj", data, 0))
	}
	if h.canLowerScore && !lower && h.ownScore > -1000 {
		t.Error("canLowerScore is true, but the score cannot be lowered")
	}
}
