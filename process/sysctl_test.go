package process

import (
	"os"
	"path/filepath"
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
		all := ownNamespaces{net: true, ipc: true, uts: true}
		if tc.kind != "" {
			list, err := sandboxSysctls(map[string]string{tc.key: "1"}, all)
			if err != nil || len(list) != 1 || list[0].value != "1" {
				t.Errorf("%s: got %v and error %v", tc.key, list, err)
			}
			all[tc.kind] = false // of the host
		}
		_, err := sandboxSysctls(map[string]string{tc.key: "1"}, all)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.key) {
			t.Errorf("%s without an own namespace: got %v, want an invalid argument that names the key", tc.key, err)
		}
		delete(all, tc.kind) // not listed at all
		if _, err := sandboxSysctls(map[string]string{tc.key: "1"}, all); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s without a namespace in the spec: got %v", tc.key, err)
		}
	}
}

func TestSysctlValuesAreKeptAsTheyAre(t *testing.T) {
	own := ownNamespaces{specs.NetworkNamespace: true, specs.IPCNamespace: true}
	want := map[string]string{
		"net/ipv4/ping_group_range": "0 2147483647",
		"net/ipv4/a":                "a=b+c==",
		"kernel/sem":                "250\t32000 32  128",
	}
	list, err := sandboxSysctls(want, own)
	proctest.Must(t, err)
	if len(list) != len(want) {
		t.Errorf("got %v", list)
	}
	for i, s := range list {
		if s.value != want[s.path] {
			t.Errorf("%s: got %q, want %q", s.path, s.value, want[s.path])
		}
		if i > 0 && list[i-1].path > s.path {
			t.Errorf("%s comes before %s", list[i-1].path, s.path)
		}
	}
}

func TestSysctlsAreWrittenInsideOnly(t *testing.T) {
	values := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "7",
		"net.ipv4.ping_group_range":           "3 2147483647",
		"kernel.shmmax":                       "123456789",
		"kernel.sem":                          "251 32001 33 129",
		"kernel.shm_rmid_forced":              "1",
		"fs.mqueue.msg_max":                   "11",
		"kernel.domainname":                   "a=b+c d",
	}
	host := make(map[string]string)
	read := func(key string) string {
		data, err := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/")))
		if err != nil {
			t.Error(err)
		}
		return strings.Join(strings.Fields(string(data)), " ")
	}
	for key := range values {
		host[key] = read(key)
	}

	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.Sysctl = values
	n.make(n.request("pod", spec))
	proctest.Must(t, podThread.Do(func() error {
		for key, want := range values {
			if got := read(key); got != want {
				t.Errorf("%s is %q inside, want %q", key, got, want)
			}
		}
		return nil
	}))
	for key, want := range host {
		if got := read(key); got != want {
			t.Errorf("%s of the host is %q, was %q", key, got, want)
		}
	}
}

func TestSysctlThatTheKernelRefusesIsNamed(t *testing.T) {
	for key, value := range map[string]string{
		"net.ipv4.no_such_key": "1",
		"net.ipv4.ip_forward":  "many",
	} {
		n := newNode(t)
		spec := sandboxSpec()
		spec.Linux.Sysctl = map[string]string{key: value}
		_, err := n.Create(proctest.Context(t), n.request("pod", spec))
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("got %v, want an error that names %s", err, key)
		}
		if !proctest.AtHome(t, podTID) {
			t.Error("the thread has not come back")
		}
	}
}
