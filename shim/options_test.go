package shim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func generic(t *testing.T, o *runtimeoptions.Options) *anypb.Any {
	t.Helper()
	return &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: encode(t, o)}
}

func TestOptionsAsTOML(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		want       *options.Options
	}{
		{
			"as containerd 2 writes it", "BinaryName = 'crun'\nIoGid = 5\nNoPivotRoot = false\nSystemdCgroup = true\n",
			&options.Options{BinaryName: "crun", IoGid: 5, SystemdCgroup: true},
		},
		{
			"as containerd 1.7 writes it", "BinaryName = \"/opt/a b/crun\"\nNoNewKeyring = true\n",
			&options.Options{BinaryName: "/opt/a b/crun", NoNewKeyring: true},
		},
		{
			"as people write it", "# which runtime\n\n  BinaryName=\"/opt/\\\"#\\\"/runc\" # really\n\"Root\" = 'C:\\' #\nioUid = 1_000 # ten hundred\r\nCriuWorkPath = ''\n",
			&options.Options{BinaryName: `/opt/"#"/runc`, Root: `C:\`, IoUid: 1000},
		},
		{"unknown keys", "TypeUrl = 'x'\nRuntimeRoot = [1, 2]\nRoot = '/r'\n", &options.Options{Root: "/r"}},
		{"tables", "Root = '/r'\n[Nested]\nRoot = '/n'\n", &options.Options{Root: "/r"}},
		{"nothing", "", &options.Options{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := DecodeOptions(generic(t, &runtimeoptions.Options{ConfigBody: []byte(tc.body)}))
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.Runc, tc.want) {
				t.Errorf("got %v, want %v", got.Runc, tc.want)
			}
			got.Runc = nil
			if want := (HandlerOptions{EnableUnprivilegedPorts: true, EnableUnprivilegedICMP: true}); *got != want {
				t.Errorf("got %+v, want %+v", *got, want)
			}
		})
	}
}

// Each option is set to something other than its default.
func TestOptionsOfTheHandler(t *testing.T) {
	const body = "BinaryName = 'crun'\nalways_call_runtime = true\nenable_unprivileged_icmp = false\n" +
		"enable_unprivileged_ports = false\nrestrict_oom_score_adj = true\n"
	got, err := DecodeOptions(generic(t, &runtimeoptions.Options{ConfigBody: []byte(body)}))
	if err != nil {
		t.Fatal(err)
	}
	if got.Runc.BinaryName != "crun" {
		t.Errorf("got %v, want the binary crun", got.Runc)
	}
	got.Runc = nil
	if want := (HandlerOptions{RestrictOOMScoreAdj: true, AlwaysCallRuntime: true}); *got != want {
		t.Errorf("got %+v, want %+v", *got, want)
	}
}

// runc's own type cannot carry the shim's own options.
func TestOptionsOfTheStockTypeHaveTheDefaults(t *testing.T) {
	got, err := DecodeOptions(&anypb.Any{TypeUrl: "containerd.runc.v1.Options", Value: encode(t, &options.Options{BinaryName: "crun"})})
	if err != nil {
		t.Fatal(err)
	}
	if got.Runc.BinaryName != "crun" || !got.EnableUnprivilegedPorts || !got.EnableUnprivilegedICMP || got.RestrictOOMScoreAdj || got.AlwaysCallRuntime {
		t.Errorf("got %v and %+v", got.Runc, got)
	}
}

func TestOptionsThatAreNoTOML(t *testing.T) {
	for _, line := range []string{
		"BinaryName", "BinaryName =", "BinaryName = crun", "BinaryName = 'crun", "BinaryName = 'crun' 'runc'",
		`BinaryName = "\q"`, "SystemdCgroup = yes", "SystemdCgroup = 'true'", "enable_unprivileged_ports = 'no'", "always_call_runtime = 1", "IoUid = -1", "IoUid = 4294967296", "IoUid = # none",
	} {
		t.Run(line, func(t *testing.T) {
			o, err := DecodeOptions(generic(t, &runtimeoptions.Options{ConfigBody: []byte("Root = '/r'\n" + line)}))
			if err == nil || !strings.Contains(err.Error(), "config_body, line 2: ") {
				t.Errorf("got %v and error %v, want one that names line 2", o, err)
			}
		})
	}
}

func TestOptionsInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pause.toml")
	if _, err := DecodeOptions(generic(t, &runtimeoptions.Options{ConfigPath: path})); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got error %v for a missing file, want one with its path", err)
	}
	if err := os.WriteFile(path, []byte("BinaryName = 'crun'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := DecodeOptions(generic(t, &runtimeoptions.Options{ConfigPath: path}))
	if err != nil {
		t.Fatal(err)
	}
	if got.Runc.BinaryName != "crun" {
		t.Errorf("got %v, want the binary crun", got.Runc)
	}
}

func TestNoOptions(t *testing.T) {
	for _, a := range []*anypb.Any{nil, {}} {
		if got, err := DecodeOptions(a); err != nil || !proto.Equal(got.Runc, &options.Options{}) {
			t.Errorf("got %v and error %v, want empty options", got, err)
		}
	}
}
