package shim

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestInfo(t *testing.T) {
	runc := func(binary string) *anypb.Any {
		return &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: encode(t, &options.Options{BinaryName: binary})}
	}
	for _, tc := range []struct {
		name       string
		options    *anypb.Any
		noFeatures bool
		binary     string
		namespaces []string
	}{
		{name: "no options", namespaces: []string{"ipc", "user", "uts"}},
		{name: "runc options", options: runc("/usr/bin/crun"), binary: "/usr/bin/crun", namespaces: []string{"ipc", "user", "uts"}},
		{
			name:    "generic options, with which containers in user namespaces fail",
			options: generic(t, &runtimeoptions.Options{ConfigBody: []byte("BinaryName = '/usr/bin/crun'")}),
			binary:  "/usr/bin/crun", namespaces: []string{"ipc", "uts"},
		},
		{name: "a runtime without features", options: runc("/no/features"), noFeatures: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdin []byte
			if tc.options != nil {
				stdin = encode(t, tc.options)
			}
			var stdout, stderr bytes.Buffer
			c := &call{config: testConfig, stdin: bytes.NewReader(stdin), stdout: &stdout, stderr: &stderr}
			if err := c.run(t.Context(), []string{"-info"}); err != nil {
				t.Fatal(err)
			}
			var info types.RuntimeInfo
			if err := proto.Unmarshal(stdout.Bytes(), &info); err != nil {
				t.Fatal(err)
			}
			if info.Name != "io.containerd.test.v2" || info.Version.Version != "1.2.3" || info.Version.Revision != "abcdef" {
				t.Errorf("got %v", &info)
			}
			if !proto.Equal(info.Options, tc.options) {
				t.Errorf("options are %v, want %v", info.Options, tc.options)
			}
			if tc.noFeatures {
				if info.Features != nil || !strings.Contains(stderr.String(), "no such command") || !utf8.ValidString(stderr.String()) {
					t.Errorf("features are %v, stderr %q", info.Features, &stderr)
				}
				return
			}
			// The name under which containerd registers the type.
			if got, want := info.Features.GetTypeUrl(), "types.containerd.io/opencontainers/runtime-spec/1/features/Features"; got != want {
				t.Fatalf("features have type %q, want %q", got, want)
			}
			var f features.Features
			if err := json.Unmarshal(info.Features.Value, &f); err != nil || f.Annotations["binary"] != tc.binary {
				t.Errorf("features are %s, error %v", info.Features.Value, err)
			}
			if !slices.Equal(f.Linux.Namespaces, tc.namespaces) {
				t.Errorf("namespaces are %v, want %v", f.Linux.Namespaces, tc.namespaces)
			}
		})
	}
	t.Run("garbage", func(t *testing.T) {
		c := &call{config: testConfig, stdin: strings.NewReader("\xff"), stdout: &bytes.Buffer{}}
		if err := c.run(t.Context(), []string{"-info"}); err == nil {
			t.Error("no error")
		}
	})
}
