package shim

import (
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The generations of containerd, by how they start a shim. Flags are the same
// in all, and all set TTRPC_ADDRESS. Sources: runtime/v2/binary.go, shim.go
// and shim/util.go of 1.6.38 and 1.7.27; core/runtime/v2/binary.go, shim.go
// and pkg/shim/util.go of 2.0.5 and 2.2.0; core/runtime/v2/command.go and
// shim.go of 2.4.2.
//
//	            stdin                   understands as an answer
//	1.6         Any: runtime options    address
//	1.7         Any: runtime options    address, JSON up to version 2
//	2.0 - 2.2   Any: runtime options    address, JSON up to version 3
//	2.3 -       BootstrapParams         address, JSON, BootstrapResult
//
// A bare address means Task API version 2 over ttrpc to each of them. Version 3
// saves a daemon 2.x the `start` and `delete` for every container that joins a
// sandbox (ShimManager.Start in core/runtime/v2/shim_manager.go), so it is
// worth telling 2.0 from 1.7.
type answer int

const (
	answerAddress answer = iota
	answerJSON
	answerProto
)

const (
	taskVersion     = 3
	ttrpcAddressEnv = "TTRPC_ADDRESS"

	// maxInput is far above what containerd sends; a stream without end must
	// not fill the memory.
	maxInput = 10 << 20

	// containerdV2 is the path of the Go module of containerd 2.x.
	containerdV2 = "github.com/containerd/containerd/v2"
)

// bootstrap is what containerd asks of `start`, by whichever generation.
type bootstrap struct {
	grpcAddress  string
	ttrpcAddress string
	socketDir    string
	debug        bool
	options      *options.Options // never nil
	answer       answer
}

// readBootstrap reads stdin to its end and completes it from the flags and the
// environment.
func (c *call) readBootstrap() (*bootstrap, error) {
	input, err := readInput(c.stdin)
	if err != nil {
		return nil, err
	}
	b, err := parseBootstrap(input, c.flags)
	if err != nil {
		return nil, err
	}
	if b.ttrpcAddress == "" {
		b.ttrpcAddress = os.Getenv(ttrpcAddressEnv)
	}
	// The parent is the daemon itself. /proc/<pid>/exe is the file that it
	// runs, also when a newer one has been installed in the meantime.
	if b.answer != answerProto && isContainerdV2(fmt.Sprintf("/proc/%d/exe", os.Getppid())) {
		b.answer = answerJSON
	}
	return b, nil
}

func readInput(r io.Reader) ([]byte, error) {
	input, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read standard input: %w", err)
	}
	if len(input) > maxInput {
		return nil, fmt.Errorf("cannot read standard input: longer than %d bytes", maxInput)
	}
	return input, nil
}

// parseBootstrap tells the generations apart. Both messages begin with two
// strings (instance id and namespace; type URL and value), so each parses as
// the other: only what the flags say decides.
func parseBootstrap(input []byte, f flags) (*bootstrap, error) {
	var params bootapi.BootstrapParams
	if proto.Unmarshal(input, &params) == nil && params.InstanceID == f.id && params.Namespace == f.namespace {
		return fromParams(&params, f)
	}
	b := &bootstrap{grpcAddress: f.address, socketDir: defaultSocketDir, debug: f.debug, options: &options.Options{}}
	if len(input) == 0 {
		return b, nil
	}
	var encoded anypb.Any
	err := proto.Unmarshal(input, &encoded)
	if err == nil {
		b.options, err = DecodeOptions(&encoded)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot decode standard input, neither bootstrap parameters of %s/%s nor runtime options: %w", f.namespace, f.id, err)
	}
	return b, nil
}

func fromParams(params *bootapi.BootstrapParams, f flags) (*bootstrap, error) {
	b := &bootstrap{
		grpcAddress:  params.ContainerdGrpcAddress,
		ttrpcAddress: params.ContainerdTtrpcAddress,
		socketDir:    params.GetSocketDir(),
		debug:        f.debug || params.LogLevel <= bootapi.LogLevel_LOG_LEVEL_DEBUG,
		options:      &options.Options{},
		answer:       answerProto,
	}
	if b.grpcAddress == "" {
		b.grpcAddress = f.address
	}
	if b.socketDir == "" {
		b.socketDir = defaultSocketDir
	}
	for _, e := range params.Extensions {
		// Extensions are open-ended: what is not for us is no error.
		if !isOptions(e.Value) {
			continue
		}
		var err error
		if b.options, err = DecodeOptions(e.Value); err != nil {
			return nil, err
		}
		break
	}
	return b, nil
}

// isContainerdV2 says whether the Go executable at path is containerd 2.x, or
// has it built in as k3s has. Nothing that 2.0 to 2.2 pass to a shim differs
// from 1.7 (both say MAX_SHIM_VERSION=2), but the build information that the
// go command leaves in every binary does. When in doubt it is not: an address
// is understood by all.
func isContainerdV2(path string) bool {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return false
	}
	// Without module mode there is a package path only.
	if strings.HasPrefix(info.Path, containerdV2+"/") || info.Main.Path == containerdV2 {
		return true
	}
	for _, dep := range info.Deps {
		if dep.Path == containerdV2 {
			return true
		}
	}
	return false
}

// encode returns the answer to `start` with the address of the group's shim.
func (a answer) encode(address string) ([]byte, error) {
	switch a {
	case answerProto:
		return proto.Marshal(&bootapi.BootstrapResult{Version: taskVersion, Address: address, Protocol: "ttrpc"})
	case answerJSON:
		return json.Marshal(struct {
			Version  int    `json:"version"`
			Address  string `json:"address"`
			Protocol string `json:"protocol"`
		}{taskVersion, address, "ttrpc"})
	}
	return []byte(address), nil
}
