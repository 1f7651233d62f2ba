package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// featuresTypeURL is the name in containerd's typeurl registry of an OCI
// runtime's features, which are encoded as JSON (core/runtime/typeurl.go of 2.4).
const featuresTypeURL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"

// printInfo answers -info with the version of the shim, the runtime options as
// read from stdin, which may be empty, and the features of the OCI runtime that
// the options name.
func (c *call) printInfo(ctx context.Context) error {
	input, err := readInput(c.stdin)
	if err != nil {
		return err
	}
	info := &types.RuntimeInfo{
		Name:    c.runtime(),
		Version: &types.RuntimeVersion{Version: c.config.Version, Revision: c.config.Revision},
	}
	if len(input) > 0 {
		info.Options = &anypb.Any{}
		if err := proto.Unmarshal(input, info.Options); err != nil {
			return fmt.Errorf("cannot decode standard input: %w", err)
		}
	}
	options, err := DecodeOptions(info.Options)
	if err != nil {
		return err
	}
	// An OCI runtime need not have the `features` command.
	if f, err := c.config.Features(ctx, options.Runc.BinaryName); err != nil {
		fmt.Fprintln(c.stderr, printable(fmt.Sprintf("%s: features are left out: %s", c.runtime(), err)))
	} else {
		if isGeneric(info.Options) {
			leaveOutUserNamespaces(f)
		}
		if info.Features, err = encodeFeatures(f); err != nil {
			return err
		}
	}

	answer, err := proto.Marshal(info)
	if err != nil {
		return fmt.Errorf("cannot encode answer: %w", err)
	}
	if _, err := c.stdout.Write(answer); err != nil {
		return fmt.Errorf("cannot write answer to containerd: %w", err)
	}
	return nil
}

// leaveOutUserNamespaces keeps CRI from announcing user namespaces for a handler whose options
// are generic, and so kubelet from running pods that need them: the first container of such a
// pod would fail. containerd adds the owner of a container's streams to the handler's options,
// and can do so only if these are runc's, or if there are none (WithUIDOwner in
// client/task_opts_unix.go of containerd 2.4.2). Nothing that the shim answers changes that,
// because containerd fails before it calls the shim.
func leaveOutUserNamespaces(f *features.Features) {
	if f != nil && f.Linux != nil {
		f.Linux.Namespaces = slices.DeleteFunc(f.Linux.Namespaces, func(name string) bool {
			return name == string(specs.UserNamespace)
		})
	}
}

func encodeFeatures(f *features.Features) (*anypb.Any, error) {
	if f == nil {
		return nil, nil
	}
	text, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("cannot encode features: %w", err)
	}
	return &anypb.Any{TypeUrl: featuresTypeURL, Value: text}, nil
}
