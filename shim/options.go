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

// DecodeOptions returns the runtime options in a, as clients of the Task API
// and containerd's CRI send them. An absent or empty a gives empty options.
//
// Two types carry them. Clients that know runc's options send
// containerd.runc.v1.Options. CRI sends those only for the runtime type
// "io.containerd.runc.v2"; for any other it sends runtimeoptions.v1.Options,
// with the options table of its config as TOML in config_body, or with the
// config_path that the table names (GenerateRuntimeOptions in
// internal/cri/config/config.go of containerd 2.4). The keys are the same, so
// that a config written for runc.v2 keeps its meaning. containerd 1.6 drops
// the table: there config_path is the only way.
func DecodeOptions(a *anypb.Any) (*options.Options, error) {
	if a.GetTypeUrl() == "" && len(a.GetValue()) == 0 {
		return &options.Options{}, nil
	}
	decoded, err := typeurl.UnmarshalAny(a)
	if err != nil {
		return nil, fmt.Errorf("cannot decode runtime options of type %q: %w", a.TypeUrl, err)
	}
	switch o := decoded.(type) {
	case *options.Options:
		return o, nil
	case *runtimeoptions.Options:
		return fromTOML(o)
	}
	return nil, fmt.Errorf("cannot decode runtime options: unknown type %q", a.TypeUrl)
}

func isOptions(a *anypb.Any) bool {
	return a.MessageIs((*options.Options)(nil)) || a.MessageIs((*runtimeoptions.Options)(nil))
}

// fromTOML reads the body, or else the file, of generic options. Keys that runc's
// options do not have are ignored, as they are in containerd.
func fromTOML(generic *runtimeoptions.Options) (*options.Options, error) {
	source, text := "config body", generic.ConfigBody
	if len(text) == 0 && generic.ConfigPath != "" {
		var err error
		if text, err = os.ReadFile(generic.ConfigPath); err != nil {
			return nil, fmt.Errorf("cannot read runtime options: %w", err)
		}
		source = generic.ConfigPath
	}
	o := &options.Options{}
	if err := toml.Unmarshal(text, o); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return nil, fmt.Errorf("cannot decode runtime options: %s: line %d: %w", source, line, err)
		}
		return nil, fmt.Errorf("cannot decode runtime options: %s: %w", source, err)
	}
	return o, nil
}
