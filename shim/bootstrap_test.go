package shim

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// recorded returns the bytes of a hex dump in testdata.
func recorded(t testing.TB, name string) []byte {
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

func encode(t testing.TB, m proto.Message) []byte {
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
			want: bootstrap{grpcAddress: grpc, ttrpcAddress: ttrpc, socketDir: "/run/containerd/s", options: handlerOptions(&options.Options{}), answer: answerProto},
		}, {
			name: "2.4, runc options, debug, socket directory", input: recorded(t, "params-runc-2.4.2"), flags: f,
			want: bootstrap{grpcAddress: grpc, ttrpcAddress: ttrpc, socketDir: "/run/user/1000/containerd/s", debug: true, options: handlerOptions(all), answer: answerProto},
		}, {
			name: "2.4, options of CRI", input: recorded(t, "params-generic-2.4.2"), flags: f,
			want: bootstrap{grpcAddress: grpc, ttrpcAddress: ttrpc, socketDir: "/run/containerd/s", options: handlerOptions(all), answer: answerProto},
		}, {
			name: "2.4, extensions of others", flags: f,
			input: encode(t, &bootapi.BootstrapParams{InstanceID: "4f1a", Namespace: "k8s.io", Extensions: []*bootapi.Extension{
				{Value: &anypb.Any{TypeUrl: "org.example.Other", Value: []byte{0xff}}},
				{},
				{Value: &anypb.Any{TypeUrl: "type.googleapis.com/containerd.runc.v1.Options", Value: encode(t, all)}},
			}}),
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", options: handlerOptions(all), answer: answerProto},
		}, {
			name: "up to 2.2, no options", flags: flags{namespace: "k8s.io", id: "4f1a", address: grpc, debug: true},
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", debug: true, options: handlerOptions(&options.Options{})},
		}, {
			name: "up to 2.2, runc options", input: recorded(t, "options-runc-2.2.0"), flags: f,
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", options: handlerOptions(all)},
		}, {
			// Its value is text, so that it parses as BootstrapParams too.
			name: "up to 2.2, options of CRI", input: recorded(t, "options-generic-2.2.0"), flags: f,
			want: bootstrap{grpcAddress: grpc, socketDir: "/run/containerd/s", options: handlerOptions(all)},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := parseBootstrap(tc.input, tc.flags)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.options.Runc, tc.want.options.Runc) {
				t.Errorf("options are %v, want %v", got.options.Runc, tc.want.options.Runc)
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

	text, err := answerAddress.encode(address)
	if err != nil || string(text) != address {
		t.Errorf("answer to containerd before 2.4 is %q, error %v", text, err)
	}
	var result bootapi.BootstrapResult
	// containerd 2.3 and later try protobuf first, so an address must not parse as protobuf.
	if proto.Unmarshal(text, &result) == nil {
		t.Errorf("%q parses as BootstrapResult", text)
	}
	data, err := answerProto.encode(address)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(data, &result); err != nil || result.Version != 3 || result.Address != address || result.Protocol != "ttrpc" {
		t.Errorf("answer to 2.4 is %q, error %v", data, err)
	}
}

// With version 3, containerd 2.3 would not clean up the containers of a pod whose shim has
// died.
func TestAnswerGoesByTheDaemonsVersion(t *testing.T) {
	for version, want := range map[string]answer{
		"v2.3.7":         answerAddress,
		"2.3.0+unknown":  answerAddress,
		"v2.3.0-rc.1":    answerAddress,
		"v2.4.0":         answerProto,
		"2.30.1":         answerProto,
		"v3.2.3":         answerProto,
		"1.2.3+dist":     answerProto,
		"":               answerProto,
		"a distribution": answerProto,
	} {
		input := encode(t, &bootapi.BootstrapParams{InstanceID: "4f1a", Namespace: "k8s.io", ContainerdVersion: version})
		got, err := parseBootstrap(input, flags{namespace: "k8s.io", id: "4f1a"})
		if err != nil {
			t.Fatal(err)
		}
		if got.answer != want {
			t.Errorf("answer to %q is %d, not %d", version, got.answer, want)
		}
	}
}
