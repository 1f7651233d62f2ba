package process

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestJSONIsThatOfTheLibrary(t *testing.T) {
	umask := uint32(0o22)
	for _, v := range []any{
		nil, "text \" < \u2028", 7, []string(nil),
		[]string{"a"},
		[]string{},
		map[string]string{"a": "b"},
		(*DNS)(nil),
		bundleRecord{},
		bundleRecord{
			Options:     Options{BinaryName: "crun", Root: "/run/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true, IoUID: 1, IoGID: 2, CriuWorkPath: "/w"},
			Sandbox:     true,
			CgroupsPath: "a.slice:cri:\"x\"",
			InitRoot:    "/i",
			Files:       &PodFiles{Dir: "/d", ShmDir: "/s", Hostname: "h", DNS: &DNS{Servers: []string{"1.1.1.1"}, Searches: []string{}}},
		},
		exitRecord{Pid: 3, Exit: Exit{Status: 137, At: time.Unix(1700000000, 5).UTC()}},
		specs.User{UID: 1, Umask: &umask, AdditionalGids: []uint32{5, 6}},
		[]specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/n"}},
		struct {
			Raw   json.RawMessage
			Inner struct {
				N uint64 `json:"n,omitempty"`
			} `json:"inner,omitempty"`
			Hidden string `json:"-"`
			secret int
		}{Raw: json.RawMessage(`{"a":[1]}`), Hidden: "x", secret: 1},
	} {
		want, err := json.Marshal(v)
		must(t, err)
		got, err := EncodeJSON(v)
		must(t, err)
		var a, b any
		must(t, json.Unmarshal(want, &a))
		must(t, json.Unmarshal(got, &b))
		if !reflect.DeepEqual(a, b) {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
