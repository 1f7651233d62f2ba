package process

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/proctest"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// FuzzSpec takes any config.json. ChangeSpec must change the given fields, and keep all
// others, whether the shim knows them or not.
func FuzzSpec(f *testing.F) {
	for _, seed := range []string{
		`null`, `{}`, `{"linux":null}`, `{"linux":[]}`,
		`{"ociVersion":"1.2.0","hostname":"pod","annotations":{"io.kubernetes.cri.container-type":"sandbox"},"futureField":{"a":[1]},
		  "process":{"user":{"uid":1},"oomScoreAdj":-998},"linux":{"namespaces":[{"type":"network","path":"/proc/1/ns/net"},{"type":"pid"},{"type":"pid"}],
		  "uidMappings":[{"containerID":0,"hostID":1000,"size":65536}],"sysctl":{"net.ipv4.ip_forward":"1"},"resources":{"cpu":{"shares":2}},"future":1}}`,
	} {
		f.Add([]byte(seed))
	}
	dir := f.TempDir()
	path := filepath.Join(dir, "config.json")
	f.Fuzz(func(t *testing.T, config []byte) {
		proctest.Must(t, os.WriteFile(path, config, 0o600))
		s, err := oci.ReadSpec(dir)
		if err != nil {
			return
		}
		own := pod.Own{}
		for _, ns := range s.Linux.Namespaces {
			own[ns.Type] = true
		}
		if pod.CheckNamespaceList(s.Linux.Namespaces) == nil && len(own) != len(s.Linux.Namespaces) {
			t.Errorf("a type is listed twice in %v", s.Linux.Namespaces)
		}
		_, _ = checkSandbox(s, own)
		_, _ = oci.IsSandbox(s), oci.OwnsPIDNamespace(s)

		list := []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/proc/./1/fd/2"}}
		var before, after map[string]any
		if oci.ChangeSpec(dir, map[string]any{"namespaces": list}) != nil {
			return
		}
		proctest.Must(t, json.Unmarshal(config, &before))
		proctest.Must(t, oci.ReadJSON(path, &after))
		if got, err := oci.ReadSpec(dir); err != nil || !reflect.DeepEqual(got.Linux.Namespaces, list) {
			t.Errorf("the namespaces are %v, error %v", got, err)
		}
		for _, spec := range []map[string]any{before, after} {
			if linux, ok := spec["linux"].(map[string]any); ok {
				delete(linux, "namespaces")
				if len(linux) == 0 {
					delete(spec, "linux")
				}
			} else {
				delete(spec, "linux")
			}
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%v became %v", before, after)
		}
	})
}

// FuzzSysctl takes any key. A key that is accepted must belong to a namespace, and its path must not leave /proc/sys.
func FuzzSysctl(f *testing.F) {
	for _, key := range []string{
		"net.ipv4.ip_forward", "net/ipv4/conf/eth0.1/forwarding", "net.ipv4.conf.eth0/1.forwarding", "kernel.shmmax",
		"kernel.panic", "fs.mqueue.msg_max", "net/../kernel/panic", "net..core", "", ".", "/net/core", "kernel/domainname", "net/",
	} {
		f.Add(key)
	}
	own := pod.Own{specs.NetworkNamespace: true, specs.IPCNamespace: true, specs.UTSNamespace: true}
	f.Fuzz(func(t *testing.T, key string) {
		list, err := pod.Sysctls(map[string]string{key: "1"}, own)
		if err != nil {
			return
		}
		path := filepath.Join("/proc/sys", list[0].Path)
		if path != "/proc/sys/"+list[0].Path || strings.Contains(path, "/../") {
			t.Errorf("%q leads to %s", key, path)
		}
		for _, below := range []string{"net/", "fs/mqueue/", "kernel/"} {
			if strings.HasPrefix(list[0].Path, below) {
				return
			}
		}
		t.Errorf("%q is accepted, which leads to %s", key, path)
	})
}

// FuzzRecords takes any content for the records in a bundle, which the clean-up after a dead shim reads.
func FuzzRecords(f *testing.F) {
	f.Add([]byte(`{"options":{"binary_name":"crun","systemd_cgroup":true},"sandbox":true,"cgroups_path":"/a/b","init_root":"/r","files":{}}`))
	f.Add([]byte(`{"pid":7,"status":137,"at":"2026-01-02T03:04:05.000000006Z"}`))
	f.Add([]byte(`null`))
	f.Add([]byte(``))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range []string{recordFile, exitFile} {
			proctest.Must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
		if record, err := readRecord(dir); err == nil {
			proctest.Must(t, writeRecord(dir, record))
			if again, err := readRecord(dir); err != nil || !reflect.DeepEqual(again, record) {
				t.Errorf("%+v became %+v, error %v", record, again, err)
			}
		}
		if st, err := readExit(dir); err == nil && json.Valid(data) {
			if writeExit(dir, st) != nil {
				return // a year that RFC 3339 does not have
			}
			if again, err := readExit(dir); err != nil || again.Pid != st.Pid || again.Exit.Status != st.Exit.Status || !again.Exit.At.Equal(st.Exit.At) {
				t.Errorf("%+v became %+v, error %v", st, again, err)
			}
		}
	})
}
