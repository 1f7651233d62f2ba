// Package shim is the machinery between containerd and a shim program: how
// containerd starts, finds, logs, asks and stops a shim process. It knows
// nothing of containers; those belong to the Program that it runs.
//
// containerd calls the same binary in three ways
// (https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md):
//
//	shim [flags] start    bootstrap.go, start.go, starter.go
//	  │ the starter, which waits for its child. That answers with the address
//	  │ of the group's shim on stdout, and becomes it unless it runs already:
//	  └►                  serve.go, log.go, publisher.go
//	shim [flags] delete   delete.go; after every end of a shim process
//	shim -info            info.go
//
// Package entry does what is done before the Go runtime starts.
package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Program is what the machinery needs to know about the program that it runs.
type Config struct {
	// Runtime is the runtime type, such as "io.containerd.pause.v2". It opens
	// every error message.
	Runtime string

	// Version and Revision are shown by -v and -info.
	Version, Revision string

	// GroupAnnotations are the annotations of a container's spec that name
	// the group whose members share one shim process, in order of precedence.
	// A container with none of them is a group of its own.
	GroupAnnotations []string

	// Serve registers the services of a shim process that starts, on
	// Instance.Server. It must not block. What it returns is called once, when
	// the process ends and before its last events are flushed; it may be nil.
	// ctx lasts as long as the process.
	Serve func(ctx context.Context, p *Instance) (stop func(), err error)

	// Intercept passes on every RPC of the services, and makes gRPC statuses of their errors.
	Intercept ttrpc.UnaryServerInterceptor

	// Delete removes what a dead shim left of a container or sandbox, and
	// says how that ended. Often there is nothing left: containerd asks after
	// every end of a shim, normal ones included. What it logs below the
	// level of a warning is not shown, unless -debug is given. An error says
	// what may be left; the Exit is valid in any case. There is little time:
	// see the deadline of ctx.
	Delete func(ctx context.Context, r DeleteRequest) (Exit, error)

	// SandboxImage writes an archive of an image by which containerd can make
	// sandboxes, of the given name.
	SandboxImage func(w io.Writer, name string) error

	// JoinCgroup puts a process into an existing cgroup,
	// which the option ShimCgroup names by its path below the root.
	JoinCgroup func(path string, pid int) error

	// Features returns what `features` of an OCI runtime prints. binary is a
	// path or a name, or "" for the program's default.
	Features func(ctx context.Context, binary string) (*features.Features, error)
}

// Instance is a shim process that serves.
type Instance struct {
	Namespace string // containerd namespace
	ID        string // of the container or sandbox for which the process was started
	Bundle    string // absolute path of that one's bundle, the working directory
	Debug     bool   // debug messages are logged

	// Options are the runtime options that the process was started with; never nil.
	Options *HandlerOptions

	Server *ttrpc.Server // to register services on
	Events *Publisher    // to containerd

	// Shutdown asks the process to end. It returns at once, so that the RPC
	// which calls it is still answered. It may be called many times.
	Shutdown func()

	// Removed is told that nothing is left of a container or sandbox, so that `delete`
	// has nothing to do for it, and how it ended. bundle is an absolute path.
	Removed func(bundle string, e Exit)
}

// DeleteRequest says of what the remains are to be removed.
type DeleteRequest struct {
	Namespace string // containerd namespace
	ID        string // of the container or sandbox
	Bundle    string // absolute path of its bundle
}

// Exit is how a container or sandbox ended.
type Exit struct {
	Pid    uint32    // 0 if it is not known
	Status uint32    // as a shell has it: 128 + n for signal n
	At     time.Time // zero if it is not known
}

// Run does what containerd's command line asks of the program, and returns the
// exit code of the process. args are without the name of the program. An error
// is printed to stderr as "<runtime>: <error>", of which 4096 bytes are shown.
//
// Run may be called on any goroutine; it locks no thread and takes no SIGCHLD.
func Run(ctx context.Context, cfg *Config, args []string) int {
	c := &call{config: cfg, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	err := c.run(ctx, args)
	var code exitCode
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &code):
		return int(code)
	case err != nil:
		fmt.Fprintln(os.Stderr, printable(fmt.Sprintf("%s: %s", cfg.Runtime, err)))
		return 1
	}
	return 0
}

// maxText is how many bytes of a message are shown.
const maxText = 4096

// printable returns a text, such as one that quotes a file, as containerd can pass it on: in
// valid UTF-8, as gRPC demands it, and with no more than maxText bytes.
func printable(text string) string {
	text = strings.ToValidUTF8(text, string(utf8.RuneError))
	if len(text) <= maxText {
		return text
	}
	end := maxText
	for !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end]
}

// call is one call of the binary.
type call struct {
	config *Config
	flags
	stdin          io.Reader
	stdout, stderr io.Writer
}

// flags is the command line, which is the same from containerd 1.6
// (runtime/v2/shim/util.go) to 2.4 (core/runtime/v2/command.go).
type flags struct {
	namespace string
	id        string
	address   string // gRPC address of containerd
	bundle    string // for delete
	socket    string // path to serve on, without being started by containerd
	debug     bool
	image     *string // name of a sandbox image to write; nil without
	version   bool
	info      bool
	action    string
}

func (c *call) run(ctx context.Context, args []string) error {
	if err := c.parse(args, c.stderr); err != nil {
		return err
	}
	switch {
	case c.version:
		return c.printVersion()
	case c.info:
		return c.printInfo(ctx)
	case c.image != nil:
		return c.config.SandboxImage(c.stdout, *c.image)
	case c.namespace == "":
		return errors.New("no containerd namespace: -namespace is missing")
	case c.id == "":
		return errors.New("no container or sandbox id: -id is missing")
	case !utf8.ValidString(c.namespace) || !utf8.ValidString(c.id): // They are strings of messages.
		return fmt.Errorf("cannot use namespace %q and id %q: they must be UTF-8", c.namespace, c.id)
	}
	switch c.action {
	case "start":
		return c.start(ctx)
	case "delete":
		return c.delete(ctx)
	case "":
		return c.serveSocket(ctx)
	}
	return fmt.Errorf("unknown action %q: want start, delete, or none to serve", c.action)
}

func (f *flags) parse(args []string, usage io.Writer) error {
	var ignored string
	set := flag.NewFlagSet(filepath.Base(os.Args[0]), flag.ContinueOnError)
	// The flag package would print each error a second time, with the whole
	// usage; containerd puts all of it into one line of an error message.
	set.SetOutput(io.Discard)
	set.BoolVar(&f.debug, "debug", false, "log debug messages")
	set.BoolVar(&f.version, "v", false, "show the version and exit")
	set.BoolVar(&f.version, "version", false, "show the version and exit")
	set.BoolVar(&f.info, "info", false, "read runtime options from stdin, write RuntimeInfo to stdout, and exit")
	set.Func("sandbox-image", "write an archive of a sandbox image of this `name` to stdout, for ctr -n k8s.io images import -, and exit", func(name string) error {
		f.image = &name
		return nil
	})
	set.StringVar(&f.namespace, "namespace", "", "containerd namespace")
	set.StringVar(&f.id, "id", "", "id of the container or sandbox")
	set.StringVar(&f.socket, "socket", "", "path of the socket to serve on")
	set.StringVar(&f.bundle, "bundle", "", "path of the bundle, if it is not the working directory")
	set.StringVar(&f.address, "address", "", "gRPC address of containerd")
	set.StringVar(&ignored, "debug-socket", "", "accepted and ignored: there is no debug server")
	set.StringVar(&ignored, "publish-binary", "", "accepted and ignored: events go to $"+ttrpcAddressEnv)
	err := set.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		set.SetOutput(usage)
		set.Usage()
	}
	f.action = set.Arg(0)
	return err
}

// printVersion writes in the form of the stock shim.
func (c *call) printVersion() error {
	_, err := fmt.Fprintf(c.stdout, "%s:\n  Version:  %s\n  Revision: %s\n  Go version: %s\n\n",
		filepath.Base(os.Args[0]), c.config.Version, c.config.Revision, runtime.Version())
	return err
}
