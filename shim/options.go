package shim

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/pelletier/go-toml/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// HandlerOptions are the options of a runtime handler: those of the stock shim, and
// those that only this shim has. The latter come only as TOML, since no protobuf type
// carries them.
type HandlerOptions struct {
	// Runc are the options of the stock shim, containerd.runc.v1.Options; never nil.
	Runc *options.Options `toml:"-"`

	// The next three options have the names, meanings and defaults of settings of
	// containerd's CRI, because the Sandbox API does not pass those on. They have no
	// effect where CRI makes the spec of the sandbox itself (podsandbox).
	//
	// EnableUnprivilegedPorts lets all users in a pod bind ports below 1024, through
	// net.ipv4.ip_unprivileged_port_start=0. Default true.
	EnableUnprivilegedPorts bool `toml:"enable_unprivileged_ports"`
	// EnableUnprivilegedICMP lets all groups in a pod send pings, through
	// net.ipv4.ping_group_range. Default true.
	EnableUnprivilegedICMP bool `toml:"enable_unprivileged_icmp"`
	// RestrictOOMScoreAdj keeps the oom_score_adj of a sandbox's process from being
	// lower than the shim's own (proc_pid_oom_score_adj(5)). Default false.
	RestrictOOMScoreAdj bool `toml:"restrict_oom_score_adj"`

	// PodsPerShim is how many pods, or containers without one, a shared shim takes in. 0
	// leaves it to the environment variable PAUSE_PODS_PER_SHIM, and without that to a
	// default of 32.
	PodsPerShim int

	// AlwaysCallRuntime makes the shim call the OCI runtime even for work that the shim
	// would otherwise do itself through system calls. Default false.
	AlwaysCallRuntime bool `toml:"always_call_runtime"`
}

// handlerOptions returns the options o of runc, and the defaults of all others.
func handlerOptions(o *options.Options) *HandlerOptions {
	return &HandlerOptions{Runc: o, EnableUnprivilegedPorts: true, EnableUnprivilegedICMP: true}
}

const (
	podsPerShimEnv     = "PAUSE_PODS_PER_SHIM"
	defaultPodsPerShim = 32

	// maxPodsPerShim keeps what ends with one process, and its threads and files, within
	// reason.
	maxPodsPerShim = 1000
)

// podsPerShim returns how many pods a shared shim takes in.
func (o *HandlerOptions) podsPerShim() (int, error) {
	pods, source := o.PodsPerShim, "the option PodsPerShim"
	if text := os.Getenv(podsPerShimEnv); pods == 0 && text != "" {
		source = "$" + podsPerShimEnv
		var err error
		if pods, err = strconv.Atoi(text); err != nil {
			return 0, fmt.Errorf("cannot use %s: %w", source, err)
		}
	} else if pods == 0 {
		return defaultPodsPerShim, nil
	}
	if pods < 1 || pods > maxPodsPerShim {
		return 0, fmt.Errorf("cannot use %s: %d is not between 1 and %d", source, pods, maxPodsPerShim)
	}
	return pods, nil
}

// DecodeOptions returns the runtime options in a, as clients of the Task API
// and containerd's CRI send them. If a is nil or empty, they are the defaults.
//
// Options come in two types. Clients that know runc's options send
// containerd.runc.v1.Options. CRI sends that type only for the runtime type
// "io.containerd.runc.v2". For any other runtime type it sends
// runtimeoptions.v1.Options, with the options table of its config as TOML in
// config_body, or with the config_path that the table names
// (GenerateRuntimeOptions in internal/cri/config/config.go of containerd 2.4).
// The keys are the same, so a config written for runc.v2 keeps its meaning.
// containerd 1.6 drops the table, so config_path is the only way there.
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
	return a.MessageIs((*options.Options)(nil)) || isGeneric(a)
}

// isGeneric says whether the options are those that CRI sends for any runtime type but that
// of the stock shim.
func isGeneric(a *anypb.Any) bool { return a.MessageIs((*runtimeoptions.Options)(nil)) }

// fromTOML decodes the config_body of generic options, or else the file at config_path.
// It ignores unknown keys, as containerd does.
func fromTOML(generic *runtimeoptions.Options) (*HandlerOptions, error) {
	source, text := "config_body", generic.ConfigBody
	if len(text) == 0 && generic.ConfigPath != "" {
		var err error
		if text, err = os.ReadFile(generic.ConfigPath); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %w", err)
		}
		source = generic.ConfigPath
	}
	o := handlerOptions(&options.Options{})
	// Both read the same table, and each takes the keys that it knows.
	for _, to := range []any{o.Runc, o} {
		if err := toml.Unmarshal(text, to); err != nil {
			var at *toml.DecodeError
			if errors.As(err, &at) {
				line, _ := at.Position()
				return nil, fmt.Errorf("cannot decode runtime options in %s, line %d: %w", source, line, err)
			}
			return nil, fmt.Errorf("cannot decode runtime options in %s: %w", source, err)
		}
	}
	return o, nil
}
