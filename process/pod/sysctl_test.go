package pod

import (
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestSysctlKeys(t *testing.T) {
	for key, want := range map[string]string{
		"net.ipv4.ip_forward":                "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":                "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding":  "net/ipv4/conf/eth0.100/forwarding",
		"net/ipv4/conf/eth0.100/forwarding":  "net/ipv4/conf/eth0.100/forwarding",
		"kernel.hostname":                    "kernel/hostname",
		"kernel.shm_rmid_forced":             "kernel/shm_rmid_forced",
		"fs.mqueue.msg_max":                  "fs/mqueue/msg_max",
		"":                                   "",
		".":                                  "",
		"..":                                 "",
		"/":                                  "",
		"/net/ipv4/ip_forward":               "",
		"/proc/sys/net/ipv4/ip_forward":      "",
		".net.ipv4":                          "",
		"net..ipv4":                          "",
		"net.ipv4.":                          "",
		"net//ipv4":                          "",
		"net/ipv4/":                          "",
		"net/./ipv4":                         "",
		"net/../kernel/panic":                "",
		"../../etc/passwd":                   "",
		"net.//.kernel.panic":                "",
		"net.ipv4.//.//.kernel.panic":        "",
		"net/ipv4/../../../../../etc/shadow": "",
	} {
		path, err := sysctlPath(key)
		if want == "" {
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `"`+key+`"`) {
				t.Errorf("%q: got %q and error %v, want an invalid argument that names the key", key, path, err)
			}
			continue
		}
		if err != nil || path != want {
			t.Errorf("%q: got %q and error %v, want %q", key, path, err, want)
		}
	}
}

func TestSysctlsNeedANamespaceOfThePod(t *testing.T) {
	const net, ipc, uts = specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace
	for _, tc := range []struct {
		key  string
		kind specs.LinuxNamespaceType // empty: refused whatever the pod has
	}{
		{"net.ipv4.ip_unprivileged_port_start", net},
		{"net/core/somaxconn", net},
		{"kernel.shmmax", ipc},
		{"kernel.sem", ipc},
		{"kernel.msgmni", ipc},
		{"fs.mqueue.msg_max", ipc},
		{"kernel.domainname", uts},
		{"kernel.hostname", ""},
		{"kernel.panic", ""},
		{"kernel.shmmaxx", ""},
		{"fs.file-max", ""},
		{"fs.mqueue", ""},
		{"vm.swappiness", ""},
		{"netx.a", ""},
		{"net", ""},
	} {
		all := Own{net: true, ipc: true, uts: true}
		if tc.kind != "" {
			list, err := Sysctls(map[string]string{tc.key: "1"}, all)
			if err != nil || len(list) != 1 || list[0].value != "1" {
				t.Errorf("%s: got %v and error %v", tc.key, list, err)
			}
			all[tc.kind] = false // of the host
		}
		_, err := Sysctls(map[string]string{tc.key: "1"}, all)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.key) {
			t.Errorf("%s without an own namespace: got %v, want an invalid argument that names the key", tc.key, err)
		}
		delete(all, tc.kind) // not listed at all
		if _, err := Sysctls(map[string]string{tc.key: "1"}, all); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s without a namespace in the spec: got %v", tc.key, err)
		}
	}
}

func TestSysctlValuesAreKeptAsTheyAre(t *testing.T) {
	own := Own{specs.NetworkNamespace: true, specs.IPCNamespace: true}
	want := map[string]string{
		"net/ipv4/ping_group_range": "0 2147483647",
		"net/ipv4/a":                "a=b+c==",
		"kernel/sem":                "250\t32000 32  128",
	}
	list, err := Sysctls(want, own)
	proctest.Must(t, err)
	if len(list) != len(want) {
		t.Errorf("got %v", list)
	}
	for i, s := range list {
		if s.value != want[s.Path] {
			t.Errorf("%s: got %q, want %q", s.Path, s.value, want[s.Path])
		}
		if i > 0 && list[i-1].Path > s.Path {
			t.Errorf("%s comes before %s", list[i-1].Path, s.Path)
		}
	}
}
