package shim

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// recorded returns the bytes of a hex dump in testdata.
func recorded(t *testing.T, name string) []byte {
	t.Helper()
	dump, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	var data []byte
	for line := range strings.Lines(string(dump)) {
		// Offset, up to 16 bytes in hex, text.
		text, _, _ := strings.Cut(line[8:], "|")
		b, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		data = append(data, b...)
	}
	return data
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBootstrapOfEachGeneration(t *testing.T) {
	const (
		grpc  = "/run/containerd/containerd.sock"
		ttrpc = "/run/containerd/containerd.sock.ttrpc"
	)
	f := flags{namespace: "k8s.io", id: "4f1a", address: grpc}
	all := &options.Options{BinaryName: "/usr/bin/crun", ShimCgroup: "/shims", SystemdCgroup: true, IoUid: 1000}

	for _, tc := range []struct {
		name  string
		input []byte
		flags flags
		want  bootstrap
	}{
		{
			name: "2.4, no options", input: recorded(t, "params-2.4.2"), flags: f,
			want: bootstrap{grpcAddress: grpc, ttrpcAddress: ttrpc, socketDir: "/run/containerd/s", options: &options.Options{}, answer: answerProto},
		}, {
			name: "2.4, runc options, debug, socket directory", input: recorded(t, "params-runc-2.4.2"), flags: f,
			want: bootstrap{grpcAddress: grpc, ttrpcAddress: ttrpc, socketDir: "/run/user/1000/containerd/s", debug: true, options: all, answer: answerProto},
		}, {
			name: "2.4, options of CRI", input: recorded(t, "params-generic-2.4.2"), flags: f,
			want: bootstrap{grpcAddress: grpc, ttrpcAddress: ttrpc, socketDir: "/run/containerd/s", options: all, answer: answerProto},
		}, {
			name: "2.4, extensions of others", flags: f,
			input: encode(t, &bootapi.BootstrapParams{InstanceID: "4f1a", Namespace: "k8s.io", Extensions: []*bootapi.Extension{
				{Value: &anypb.Any{TypeUrl: "org.example.Other", Value: []byte{0xff}}},
				{},
				{Value: &anypb.Any{TypeUrl: "type.googleapis.com/containerd.runc.v1.Options", Value: encode(t, all)}},
			}}),
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", options: all, answer: answerProto},
		}, {
			name: "up to 2.2, no options", flags: flags{namespace: "k8s.io", id: "4f1a", address: grpc, debug: true},
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", debug: true, options: &options.Options{}},
		}, {
			name: "up to 2.2, runc options", input: recorded(t, "options-runc-2.2.0"), flags: f,
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", options: all},
		}, {
			// Its value is text, so that it parses as BootstrapParams too.
			name: "up to 2.2, options of CRI", input: recorded(t, "options-generic-2.2.0"), flags: f,
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", options: all},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseBootstrap(tc.input, tc.flags)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.options, tc.want.options) {
				t.Errorf("options are %v, want %v", got.options, tc.want.options)
			}
			got.options, tc.want.options = nil, nil
			if *got != tc.want {
				t.Errorf("got %+v\nwant %+v", *got, tc.want)
			}
		})
	}
}

func TestTheFixtureOfOptionsParsesAsParams(t *testing.T) {
	var params bootapi.BootstrapParams
	if err := proto.Unmarshal(recorded(t, "options-generic-2.2.0"), &params); err != nil {
		t.Errorf("it does not, and tests nothing: %v", err)
	}
}

func TestBootstrapThatIsNone(t *testing.T) {
	for _, tc := range []struct {
		name  string
		input []byte
		flags flags
		want  string
	}{
		{"params of another container", recorded(t, "params-2.4.2"), flags{namespace: "k8s.io", id: "4f1b"}, "k8s.io/4f1b"},
		{"params of another namespace", recorded(t, "params-2.4.2"), flags{namespace: "moby", id: "4f1a"}, "moby/4f1a"},
		{"garbage", []byte("\xff\xff\xffgarbage"), flags{namespace: "k8s.io", id: "4f1a"}, "neither"},
		{"options of another type", encode(t, &anypb.Any{TypeUrl: "org.example.Options"}), flags{namespace: "k8s.io", id: "4f1a"}, "org.example.Options"},
		{"options with garbage inside", encode(t, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte{0xff}}), flags{namespace: "k8s.io", id: "4f1a"}, "cannot decode runtime options"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, err := parseBootstrap(tc.input, tc.flags)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %+v and error %v, want one with %q", b, err, tc.want)
			}
		})
	}
}

func TestInputIsLimited(t *testing.T) {
	if b, err := readInput(bytes.NewReader(make([]byte, maxInput))); err != nil || len(b) != maxInput {
		t.Errorf("read %d bytes at the limit, error %v", len(b), err)
	}
	if _, err := readInput(bytes.NewReader(make([]byte, maxInput+1))); err == nil {
		t.Error("no error for a byte more than the limit")
	}
}

func TestAnswers(t *testing.T) {
	const address = "unix:///run/containerd/s/00ff"

	if got, err := answerAddress.encode(address); err != nil || string(got) != address {
		t.Errorf("answer to 1.x is %q, error %v", got, err)
	}

	// What parseStartResponse of 2.0 to 2.2 decodes.
	var params struct {
		Version  int    `json:"version"`
		Address  string `json:"address"`
		Protocol string `json:"protocol"`
	}
	text, err := answerJSON.encode(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &params); err != nil || params.Version != 3 || params.Address != address || params.Protocol != "ttrpc" {
		t.Errorf("answer to 2.0 is %q, error %v", text, err)
	}

	var result bootapi.BootstrapResult
	data, err := answerProto.encode(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(data, &result); err != nil || result.Version != 3 || result.Address != address || result.Protocol != "ttrpc" {
		t.Errorf("answer to 2.4 is %q, error %v", data, err)
	}
	// 2.3 and later try protobuf first: the others must not pass for it.
	for _, other := range [][]byte{text, []byte(address)} {
		if proto.Unmarshal(other, &result) == nil {
			t.Errorf("%q parses as BootstrapResult", other)
		}
	}
}

func TestContainerd2IsKnownByItsModule(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		main  string
		want  bool
	}{
		{"2.x", map[string]string{
			"go.mod":                 "module github.com/containerd/containerd/v2\ngo 1.23\n",
			"cmd/containerd/main.go": "package main\nfunc main() {}\n",
		}, "./cmd/containerd", true},
		{"1.x", map[string]string{
			"go.mod":                 "module github.com/containerd/containerd\ngo 1.23\n",
			"cmd/containerd/main.go": "package main\nfunc main() {}\n",
		}, "./cmd/containerd", false},
		{"2.x built in", map[string]string{
			"go.mod": "module example.org/distribution\ngo 1.23\nrequire github.com/containerd/containerd/v2 v2.2.0\n" +
				"replace github.com/containerd/containerd/v2 => ./fork\n",
			"main.go":               "package main\nimport _ \"github.com/containerd/containerd/v2/server\"\nfunc main() {}\n",
			"fork/go.mod":           "module github.com/containerd/containerd/v2\ngo 1.23\n",
			"fork/server/server.go": "package server\n",
		}, ".", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			binary := filepath.Join(dir, "binary")
			build := exec.Command("go", "build", "-mod=mod", "-ldflags=-s -w", "-o", binary, tc.main)
			build.Dir = dir
			build.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if got := isContainerdV2(binary); got != tc.want {
				t.Errorf("isContainerdV2 is %t, want %t", got, tc.want)
			}
		})
	}
	if isContainerdV2("testdata/README") {
		t.Error("a text passes for containerd")
	}
}
