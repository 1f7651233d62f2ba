package task

import (
	"errors"
	"reflect"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// FuzzPodConfig compares what is decoded with what the generated code of CRI's type decodes.
func FuzzPodConfig(f *testing.F) {
	ids := []*cri.IDMapping{{HostId: 7, ContainerId: 1, Length: 9}, {HostId: 1 << 31}}
	for _, c := range []*cri.PodSandboxConfig{
		{},
		{
			Metadata: &cri.PodSandboxMetadata{Name: "name", Uid: "uid", Namespace: "ns", Attempt: 3},
			Hostname: "host", LogDirectory: "/var/log/pods/x", DnsConfig: &cri.DNSConfig{},
			PortMappings: []*cri.PortMapping{{HostPort: 80}},
			Labels:       map[string]string{"a": "b", "": ""}, Annotations: map[string]string{"c": "d"},
			Linux: &cri.LinuxPodSandboxConfig{
				Resources:    &cri.LinuxContainerResources{CpuPeriod: 1, CpuQuota: -1, CpuShares: 3, MemoryLimitInBytes: 1 << 40, CpusetCpus: "0"},
				CgroupParent: "/kubepods/pod1", Sysctls: map[string]string{"net.core.somaxconn": "1"},
				SecurityContext: &cri.LinuxSandboxSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{
						Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_TARGET, TargetId: "x",
						UsernsOptions: &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids[:1]},
					},
					SelinuxOptions: &cri.SELinuxOption{Level: "s0", User: "u", Role: "r", Type: "t"},
					Seccomp:        &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "/x"}, SeccompProfilePath: "y", //nolint:staticcheck // deprecated, but in use
					RunAsUser: &cri.Int64Value{Value: -1}, RunAsGroup: &cri.Int64Value{},
					SupplementalGroups: []int64{0, 5, 1 << 40}, Privileged: true, ReadonlyRootfs: true,
				},
			},
		},
		{DnsConfig: &cri.DNSConfig{Servers: []string{"1.2.3.4", "::1"}, Searches: []string{"a.b"}, Options: []string{"ndots:5"}}},
	} {
		data, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var (
			theirs cri.PodSandboxConfig
			got    podConfig
		)
		theirErr, err := proto.Unmarshal(data, &theirs), got.fields().decode(data)
		switch {
		case errors.Is(err, errWireType): // Generated code skips such a field.
		case err != nil && theirErr == nil:
			t.Errorf("%v, though it can be decoded", err)
		case err == nil && theirErr == nil:
			if want := fromTheirs(&theirs); !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
	})
}

func fromTheirs(c *cri.PodSandboxConfig) podConfig {
	got := podConfig{
		Metadata: podMetadata{c.GetMetadata().GetName(), c.GetMetadata().GetUid(), c.GetMetadata().GetNamespace(), c.GetMetadata().GetAttempt()},
		Hostname: c.Hostname, LogDirectory: c.LogDirectory, Labels: c.Labels, Annotations: c.Annotations,
	}
	if d := c.DnsConfig; d != nil {
		got.DNS = &dnsConfig{d.Servers, d.Searches, d.Options}
	}
	got.Linux.CgroupParent, got.Linux.Sysctls = c.GetLinux().GetCgroupParent(), c.GetLinux().GetSysctls()
	s := c.GetLinux().GetSecurityContext()
	o := s.GetNamespaceOptions()
	got.Linux.Security = securityContext{
		Namespaces: namespaceOptions{
			Network: namespaceMode(o.GetNetwork()), PID: namespaceMode(o.GetPid()), IPC: namespaceMode(o.GetIpc()),
		},
		SupplementalGroups: s.GetSupplementalGroups(), Privileged: s.GetPrivileged(),
	}
	if l := s.GetSelinuxOptions(); l != nil {
		got.Linux.Security.SELinux = &selinuxOptions{l.User, l.Role, l.Type, l.Level}
	}
	got.Linux.Security.SeccompPath = s.GetSeccompProfilePath() //nolint:staticcheck // deprecated, but in use
	if p := s.GetSeccomp(); p != nil {
		got.Linux.Security.Seccomp = &securityProfile{profileType(p.ProfileType), p.LocalhostRef}
	}
	if r := c.GetLinux().GetResources(); r != nil {
		got.Linux.Resources = &podResources{r.CpuPeriod, r.CpuQuota, r.CpuShares, r.MemoryLimitInBytes}
	}
	if u := s.GetRunAsUser(); u != nil {
		got.Linux.Security.User = &int64Value{u.Value}
	}
	if g := s.GetRunAsGroup(); g != nil {
		got.Linux.Security.Group = &int64Value{g.Value}
	}
	if u := o.GetUsernsOptions(); u != nil {
		got.Linux.Security.Namespaces.User = &userNamespace{namespaceMode(u.Mode), mappingsOfTheirs(u.Uids), mappingsOfTheirs(u.Gids)}
	}
	return got
}

func mappingsOfTheirs(list []*cri.IDMapping) (ids []idMapping) {
	for _, m := range list {
		ids = append(ids, idMapping{m.HostId, m.ContainerId, m.Length})
	}
	return ids
}

func TestPodConfigThatCannotBeRead(t *testing.T) {
	for name, data := range map[string][]byte{
		"cut off":           {0x0a, 5, 1},
		"no field":          {0xff},
		"a number as text":  protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1),
		"text as a number":  {0x0a, 3, 0x22, 1, 'x'},
		"text not in UTF-8": {0x12, 1, 0xff},
		"inside":            {0x42, 3, 0x12, 1, 0xff},
	} {
		if err := new(podConfig).fields().decode(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
