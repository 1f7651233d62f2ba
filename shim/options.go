package shim

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// HandlerOptions are the options of a runtime handler: those of the stock shim, and
// those that only this program has, which no protobuf type carries, so that they come
// as TOML only.
type HandlerOptions struct {
	// Runc are those of containerd.runc.v1.Options; never nil.
	Runc *options.Options `toml:"-"`

	// The next three have the names, the meaning and the defaults of settings of
	// containerd's CRI, which the Sandbox API does not hand on. They are of no effect
	// where CRI makes the spec of the sandbox itself (podsandbox).
	//
	// EnableUnprivilegedPorts lets users of a pod bind ports below 1024, by
	// net.ipv4.ip_unprivileged_port_start=0. Default true.
	EnableUnprivilegedPorts bool `toml:"enable_unprivileged_ports"`
	// EnableUnprivilegedICMP lets all groups of a pod send pings, by
	// net.ipv4.ping_group_range. Default true.
	EnableUnprivilegedICMP bool `toml:"enable_unprivileged_icmp"`
	// RestrictOOMScoreAdj keeps the oom_score_adj of a sandbox's process from being
	// lower than this process's own (proc_pid_oom_score_adj(5)). Default false.
	RestrictOOMScoreAdj bool `toml:"restrict_oom_score_adj"`

	// AlwaysCallRuntime has the OCI runtime do what else system calls do in its place.
	// Default false.
	AlwaysCallRuntime bool `toml:"always_call_runtime"`
}

// handlerOptions are the given options of runc, and defaults.
func handlerOptions(o *options.Options) *HandlerOptions {
	return &HandlerOptions{Runc: o, EnableUnprivilegedPorts: true, EnableUnprivilegedICMP: true}
}

// DecodeOptions returns the runtime options in a, as clients of the Task API
// and containerd's CRI send them. An absent or empty a gives the defaults.
//
// Two types carry them. Clients that know runc's options send
// containerd.runc.v1.Options. CRI sends those only for the runtime type
// "io.containerd.runc.v2"; for any other it sends runtimeoptions.v1.Options,
// with the options table of its config as TOML in config_body, or with the
// config_path that the table names (GenerateRuntimeOptions in
// internal/cri/config/config.go of containerd 2.4). The keys are the same, so
// that a config written for runc.v2 keeps its meaning. containerd 1.6 drops
// the table: there config_path is the only way.
func DecodeOptions(a *anypb.Any) (*HandlerOptions, error) {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return handlerOptions(&options.Options{}), nil
	}
	decoded, err := typeurl.UnmarshalAny(a)
	if err != nil {
		return nil, fmt.Errorf("cannot decode runtime options of type %q: %w", a.TypeUrl, err)
	}
	switch o := decoded.(type) {
	case *options.Options:
		return handlerOptions(o), nil
	case *runtimeoptions.Options:
		return fromTOML(o)
	}
	return nil, fmt.Errorf("cannot decode runtime options: unknown type %q", a.TypeUrl)
}

func isOptions(a *anypb.Any) bool {
	return a.MessageIs((*options.Options)(nil)) || a.MessageIs((*runtimeoptions.Options)(nil))
}

// fromTOML reads the body, or else the file, of generic options. Unknown keys are
// ignored, as they are in containerd.
func fromTOML(generic *runtimeoptions.Options) (*HandlerOptions, error) {
	source, text := "config body", generic.ConfigBody
	if len(text) == 0 && generic.ConfigPath != "" {
		var err error
		if text, err = os.ReadFile(generic.ConfigPath); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %w", err)
		}
		source = generic.ConfigPath
	}
	o := handlerOptions(&options.Options{})
	// The keys of both are beside each other; each takes those that it knows.
	for _, to := range []any{o.Runc, o} {
		if err := toml.Unmarshal(text, to); err != nil {
			var at *toml.DecodeError
			if errors.As(err, &at) {
				line, _ := at.Position()
				return nil, fmt.Errorf("cannot decode runtime options: %s: line %d: %w", source, line, err)
			}
			return nil, fmt.Errorf("cannot decode runtime options: %s: %w", source, err)
		}
	}
	return o, nil
}
