package shim

import (
	"fmt"
	"io"
	"os"
	"strings"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// answer is the form of the answer to `start`.
//
// It depends on the generation of containerd. All generations use the same flags
// and set TTRPC_ADDRESS. Sources: runtime/v2/binary.go, shim.go and shim/util.go
// of 1.6.38 and 1.7.27; core/runtime/v2/binary.go, shim.go and pkg/shim/util.go
// of 2.0.5 and 2.2.0; core/runtime/v2/command.go and shim.go of 2.4.2.
//
//	            stdin                   understands as an answer
//	1.6         Any: runtime options    address
//	1.7         Any: runtime options    address, JSON up to version 2
//	2.0 - 2.2   Any: runtime options    address, JSON up to version 3
//	2.3 -       BootstrapParams         address, JSON, BootstrapResult
//
// All of them take a bare address for Task API version 2 over ttrpc. Version 3
// saves containerd 2.x the `start` and `delete` for every container that joins a
// sandbox (ShimManager.Start in core/runtime/v2/shim_manager.go). But containerd
// 2.0 to 2.3 then skips the `delete` even when the shim has been killed, and the
// container runs on forever: Start watches the shim with `func() {}`, and only
// since 2.4 with cleanupAfterDeadShim. So only 2.4 and later get version 3.
type answer int

const (
	answerAddress answer = iota
	answerProto
)

const (
	taskVersion     = 3
	ttrpcAddressEnv = "TTRPC_ADDRESS"

	// maxInput is the most bytes read from stdin, so that an endless stream
	// does not fill the memory. It is far above what containerd sends.
	maxInput = 10 << 20
)

// bootstrap is what any generation of containerd asks of `start`.
type bootstrap struct {
	grpcAddress  string
	ttrpcAddress string
	socketDir    string
	debug        bool
	options      *HandlerOptions // never nil
	answer       answer
}

// readBootstrap reads stdin to its end, and takes from the flags and the
// environment what is not there.
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

// parseBootstrap decodes the input of either generation. Each message parses as
// the other, because both begin with two strings (instance id and namespace; type
// URL and value). So only a comparison with the flags tells them apart.
func parseBootstrap(input []byte, f flags) (*bootstrap, error) {
	var params bootapi.BootstrapParams
	if proto.Unmarshal(input, &params) == nil && params.InstanceID == f.id && params.Namespace == f.namespace {
		return fromParams(&params, f)
	}
	b := &bootstrap{grpcAddress: f.address, socketDir: defaultSocketDir, debug: f.debug, options: handlerOptions(&options.Options{})}
	if len(input) == 0 {
		return b, nil
	}
	var encoded anypb.Any
	err := proto.Unmarshal(input, &encoded)
	if err == nil {
		b.options, err = DecodeOptions(&encoded)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot decode standard input, which is neither bootstrap parameters for %s/%s nor runtime options: %w", f.namespace, f.id, err)
	}
	return b, nil
}

func fromParams(params *bootapi.BootstrapParams, f flags) (*bootstrap, error) {
	b := &bootstrap{
		grpcAddress:  params.ContainerdGrpcAddress,
		ttrpcAddress: params.ContainerdTtrpcAddress,
		socketDir:    defaultSocketDir,
		debug:        f.debug || params.LogLevel <= bootapi.LogLevel_LOG_LEVEL_DEBUG,
		options:      handlerOptions(&options.Options{}),
		answer:       answerProto,
	}
	if !cleansUpMembers(params.ContainerdVersion) {
		b.answer = answerAddress
	}
	if b.grpcAddress == "" {
		b.grpcAddress = f.address
	}
	if dir := params.SocketDir; dir != nil && *dir != "" {
		b.socketDir = *dir
	}
	for _, e := range params.Extensions {
		// Extensions are open-ended, so an unknown one is not an error.
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

// cleansUpMembers says whether containerd cleans up the containers of a sandbox when a
// shim that has answered with version 3 dies. version is from BootstrapParams, so it is
// 2.3 or later; an unknown one is taken for later than 2.3.
func cleansUpMembers(version string) bool {
	return !strings.HasPrefix(strings.TrimPrefix(version, "v"), "2.3.")
}

// encode returns the bytes of the answer, with the address of the group's shim.
func (a answer) encode(address string) ([]byte, error) {
	if a == answerProto {
		return proto.Marshal(&bootapi.BootstrapResult{Version: taskVersion, Address: address, Protocol: "ttrpc"})
	}
	return []byte(address), nil
}
