package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// FuzzBootstrap takes any standard input of `start`, of either generation of containerd.
func FuzzBootstrap(f *testing.F) {
	for _, name := range []string{
		"params-2.4.2", "params-runc-2.4.2", "params-generic-2.4.2", "options-runc-2.2.0", "options-generic-2.2.0",
	} {
		f.Add(recorded(f, name))
	}
	f.Add([]byte{})
	f.Add([]byte("null"))
	f.Add(encode(f, &bootapi.BootstrapParams{InstanceID: "4f1a", Namespace: "k8s.io", Extensions: []*bootapi.Extension{
		{}, {Value: &anypb.Any{}}, {Value: &anypb.Any{TypeUrl: "containerd.runc.v1.Options"}},
	}}))
	for _, value := range []string{"null", "{}", "\x0a\x00", "\x0a\xff"} {
		f.Add(encode(f, &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: []byte(value)}))
		f.Add(encode(f, &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte(value)}))
		f.Add(encode(f, &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Spec", Value: []byte(value)}))
	}
	fl := flags{namespace: "k8s.io", id: "4f1a", address: "/run/containerd/containerd.sock"}
	f.Fuzz(func(t *testing.T, input []byte) {
		if readsFile(input) {
			t.Skip("it names a file of this machine")
		}
		b, err := parseBootstrap(input, fl)
		if err != nil {
			return
		}
		if b.options == nil || b.socketDir == "" {
			t.Errorf("got %+v", b)
		}
		var params bootapi.BootstrapParams
		ours := proto.Unmarshal(input, &params) == nil && params.InstanceID == fl.id && params.Namespace == fl.namespace
		if !ours && (b.grpcAddress != fl.address || b.answer != answerAddress) {
			t.Errorf("parameters of %s/%s were taken: %+v", params.Namespace, params.InstanceID, b)
		}
		if _, err := b.answer.encode("unix:///run/containerd/s/00ff"); err != nil {
			t.Error(err)
		}
	})
}

// readsFile says whether generic options may be in the input, whose config_path is read.
func readsFile(input []byte) bool { return strings.Contains(string(input), "\x12\x01/") }

// FuzzOptions takes any runtime options, of runc's type, or as the TOML of generic ones in
// the message or in a file.
func FuzzOptions(f *testing.F) {
	f.Add([]byte("BinaryName = 'crun'\nIoGid = 5\nSystemdCgroup = true\n"), uint8(0))
	for _, text := range []string{"BinaryName = # text", "BinaryName =", "BinaryName = '", "= 1", "[", "[[Root]]", "IoUid = -1", "\xff"} {
		f.Add([]byte(text), uint8(0))
		f.Add([]byte(text), uint8(1))
	}
	f.Add([]byte("\"Root\" = \"C:\\\\\" # x\nioUid = 1_000\n[Nested]\nRoot = '/n'\n"), uint8(1))
	f.Add([]byte("\x32\x04crun\x48\x01"), uint8(2))
	f.Add([]byte(""), uint8(1))
	path := filepath.Join(f.TempDir(), "options.toml")
	f.Fuzz(func(t *testing.T, data []byte, form uint8) {
		a := &anypb.Any{TypeUrl: "runtimeoptions.v1.Options"}
		switch form % 3 {
		case 0:
			a.Value = encode(t, &runtimeoptions.Options{ConfigBody: data})
		case 1:
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			a.Value = encode(t, &runtimeoptions.Options{ConfigPath: path})
		case 2:
			a = &anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: data}
		}
		decoded, err := DecodeOptions(a)
		if err != nil {
			return
		}
		got := decoded.Runc
		// What has been understood can be said again.
		//nolint:staticcheck // Some are deprecated, but clients may send them.
		body, err := toml.Marshal(map[string]any{
			"BinaryName": got.BinaryName, "Root": got.Root, "SystemdCgroup": got.SystemdCgroup, "ShimCgroup": got.ShimCgroup,
			"NoPivotRoot": got.NoPivotRoot, "NoNewKeyring": got.NoNewKeyring, "IoUid": got.IoUid, "IoGid": got.IoGid,
			"CriuImagePath": got.CriuImagePath, "CriuWorkPath": got.CriuWorkPath,
			"TaskApiAddress": got.GetTaskApiAddress(), "TaskApiVersion": got.GetTaskApiVersion(),
			"enable_unprivileged_ports": decoded.EnableUnprivilegedPorts, "enable_unprivileged_icmp": decoded.EnableUnprivilegedICMP,
			"restrict_oom_score_adj": decoded.RestrictOOMScoreAdj, "always_call_runtime": decoded.AlwaysCallRuntime,
		})
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeOptions(&anypb.Any{
			TypeUrl: "runtimeoptions.v1.Options", Value: encode(t, &runtimeoptions.Options{ConfigBody: body}),
		})
		if err != nil {
			t.Fatalf("%v, in %q", err, body)
		}
		want := &options.Options{}
		proto.Merge(want, got)
		want.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(again.Runc, want) {
			t.Errorf("got %v, want %v", again.Runc, want)
		}
		again.Runc, decoded.Runc = nil, nil
		if *again != *decoded {
			t.Errorf("got %+v, want %+v", *again, *decoded)
		}
	})
}

// FuzzGroup takes any spec.
func FuzzGroup(f *testing.F) {
	for _, spec := range []string{
		"", "null", "[]", "{}", "0", `"x"`, `{"annotations":null}`, `{"annotations":[]}`, `{"annotations":{"group":null}}`,
		`{"annotations":{"group":"pod"}}`, `{"annotations":{"group":"../ns/pod"}}`, `{"annotations":{"group":"a\u0000b"}}`,
		`{"annotations":{"group":1}}`, `{"annotations":{"group":"a"}} {`,
	} {
		f.Add([]byte(spec))
	}
	path := filepath.Join(f.TempDir(), specFile)
	f.Fuzz(func(t *testing.T, spec []byte) {
		if err := os.WriteFile(path, spec, 0o600); err != nil {
			t.Fatal(err)
		}
		group, err := groupIn(path, []string{"group"})
		if err != nil || group == "" {
			return
		}
		// The address is that of a pod of this namespace.
		if got := filepath.Join("/run/test.sock", "ns", group); filepath.Dir(got) != "/run/test.sock/ns" || filepath.Base(got) != group {
			t.Errorf("group %q leads to %s", group, got)
		}
	})
}

// FuzzRecords takes anything that a bundle may have for the records of this package.
func FuzzRecords(f *testing.F) {
	for _, text := range []string{"", "null", "{}", "[]", `{"pid":-1}`, `{"pid":1e99}`, `{"pid":2,"start":3,"name":"x"}`, "unix:///s/x", "unix://", "\xff"} {
		f.Add([]byte(text))
	}
	bundle := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, name := range []string{processFile, addressFile} {
			if err := os.WriteFile(filepath.Join(bundle, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if p, err := recordedProcess(bundle); err == nil && p.Pid <= 1 {
			t.Errorf("got process %+v", p)
		}
		if path, err := readAddress(bundle); err == nil && !filepath.IsAbs(path) {
			t.Errorf("got path %q", path)
		}
	})
}
