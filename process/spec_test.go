package process

import (
	"encoding/json"
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
