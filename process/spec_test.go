package process

import (
	"encoding/json"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Whatever the way by which they are decoded, all but the devices is there.
func TestResourcesOfASandbox(t *testing.T) {
	for _, text := range []string{
		`{}`,
		`{"cpu":{"shares":2}}`,
		`{"devices":[{"allow":false,"access":"rwm"}],"cpu":{"shares":2}}`,
		`{"cpu":{"shares":2,"quota":1000}}`,
		`{"cpu":{"shares":2},"memory":{"limit":1048576}}`,
		`{"unified":{"memory.high":"1"}}`,
	} {
		var want specs.LinuxResources
		must(t, json.Unmarshal([]byte(text), &want))
		want.Devices = nil
		s := &spec{}
		s.Linux.Resources = json.RawMessage(text)
		got, err := s.sandboxResources()
		must(t, err)
		got.Devices = nil
		if got.CPU != nil && *got.CPU == (specs.LinuxCPU{}) {
			got.CPU = nil
		}
		if !reflect.DeepEqual(got, &want) {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
	if got, err := (&spec{}).sandboxResources(); got != nil || err != nil {
		t.Errorf("without resources: %v, %v", got, err)
	}
	s := &spec{}
	s.Linux.Resources = json.RawMessage(`{"cpu":{"shares":"many"}}`)
	if _, err := s.sandboxResources(); err == nil {
		t.Error("a text was taken for a number of shares")
	}
}

func TestSandboxSpecIsWhatItWouldBeInTheBundle(t *testing.T) {
	s := &SandboxSpec{Version: "1.0.2", Hostname: "pod", Annotations: map[string]string{"a": "b"}}
	s.Process.User = specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}}
	s.Process.Args, s.Process.Cwd = []string{"/pause"}, "/"
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: "/run/netns/x"}, {Type: specs.PIDNamespace}}
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 1, HostID: 2000, Size: 20}}
	s.Linux.Sysctl, s.Linux.CgroupsPath = map[string]string{"net.core.somaxconn": "1"}, "/pods/x"
	s.Linux.Resources.CPU.Shares = 2
	bundle := t.TempDir()
	must(t, writeJSON(filepath.Join(bundle, "config.json"), s))
	read, err := readSpec(bundle)
	must(t, err)
	given := s.spec()
	wantResources, err := read.sandboxResources()
	must(t, err)
	gotResources, err := given.sandboxResources()
	must(t, err)
	if !reflect.DeepEqual(gotResources, wantResources) {
		t.Errorf("the resources are %+v, want %+v", gotResources, wantResources)
	}
	given.sandboxShares, read.Linux.Resources = nil, nil
	if !reflect.DeepEqual(given, read) {
		t.Errorf("got %+v, want %+v", given, read)
	}
	for i := range reflect.TypeFor[SandboxSpec]().NumField() { // else there is something that this test lacks
		if reflect.ValueOf(s).Elem().Field(i).IsZero() {
			t.Errorf("%s is not set", reflect.TypeFor[SandboxSpec]().Field(i).Name)
		}
	}
}
