// Package shim is the machinery between containerd and a shim: how containerd
// starts, finds, logs, asks and stops a shim process. It knows nothing about
// containers; the functions of a Config do.
//
// containerd calls the same binary in three ways
// (https://github.com/containerd/containerd/blob/main/core/runtime/v2/README.md):
//
//	shim [flags] start    bootstrap.go, start.go, starter.go
//	  │ This process, the starter, waits for its child. The child writes the
//	  │ address of the group's shim to stdout, and becomes that shim unless
//	  │ it runs already:
//	  └►                  serve.go, log.go, publisher.go
//	shim [flags] delete   delete.go; each time a shim process has ended
//	shim -info            info.go
//
// Package entry runs before the Go runtime starts.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Config describes a shim to this package: its names, and the functions that
// do its work.
type Config struct {
	// Runtime is the runtime type, such as "io.containerd.pause.v2". Every
	// error message begins with it.
	Runtime string

	// SharedRuntime is the runtime type under which pods share a shim process. The
	// name of the program, argv[0], tells which is meant.
	SharedRuntime string

	// Version and Revision are shown by -v and -info.
	Version, Revision string

	// GroupAnnotations are the annotations of a container's spec, in order of
	// precedence, that name its group. The members of a group share one shim
	// process.
	GroupAnnotations []string

	// PodAnnotation is the annotation that names the sandbox to which a container
	// belongs. Without a group, the containers of a pod share one shim process, and a
	// container without a pod gets one to itself, or else a seat in a shared one.
	PodAnnotation string

	// Serve registers the services of a new shim process on Instance.Server.
	// It must not block. The returned stop is called once, when the process
	// ends and before its last events are flushed; it may be nil. ctx lasts as
	// long as the process.
	Serve func(ctx context.Context, p *Instance) (stop func(), err error)

	// CheckSaved fails if Serve could not go on with what Save of another build has written.
	CheckSaved func(saved json.RawMessage) error

	// Intercept wraps every RPC of the services, and turns their errors into
	// gRPC statuses.
	Intercept ttrpc.UnaryServerInterceptor

	// Delete removes what a dead shim has left of a container or sandbox, and
	// returns how that container or sandbox ended. Often nothing is left,
	// because containerd calls `delete` each time a shim has ended, even
	// normally. Log messages below the level of a warning are shown only with
	// -debug. An error says what may be left; the Exit is valid even then. ctx
	// has a deadline of a few seconds.
	Delete func(ctx context.Context, r DeleteRequest) (Exit, error)

	// SandboxImage writes an archive of an image of the given name, with which
	// containerd can make sandboxes.
	SandboxImage func(w io.Writer, name string) error

	// Install copies the running program, with its second name, into a directory, and Uninstall
	// removes it from there. Both write a line to w about each file.
	Install, Uninstall func(w io.Writer, dir string) error

	// JoinCgroup puts a process into an existing cgroup. path is the cgroup's
	// path below the root, as the option ShimCgroup gives it.
	JoinCgroup func(path string, pid int) error

	// Features returns what the `features` command of an OCI runtime prints.
	// binary is a path or a name, or "" for the default OCI runtime.
	Features func(ctx context.Context, binary string) (*features.Features, error)
}

// Instance is a shim process that serves.
type Instance struct {
	Runtime   string // runtime type
	Namespace string // containerd namespace
	ID        string // of the container or sandbox for which the process was started
	Bundle    string // absolute path of the bundle of ID; the working directory, unless the process is shared
	Debug     bool   // whether debug messages are logged
	Shared    bool   // whether the process serves pods that have nothing to do with each other

	// Options are the runtime options with which the process was started; never nil.
	Options *HandlerOptions

	Server *ttrpc.Server // to register services on
	Events *Publisher    // publishes events to containerd

	// Saved is what Save returned in the program that this one has replaced in the same
	// process. [Config.Serve] has to go on with it; nil in a process that has begun with this
	// program.
	Saved json.RawMessage

	// Begin waits while the process is handed over to another program, and must be called
	// before anything that changes its state without an RPC; end is called after it.
	Begin func() (end func())

	// RunCommand runs a program to its end, as [exec.Cmd.Run] does, in a process that reaps
	// its children. [Config.Serve] sets it.
	RunCommand func(cmd *exec.Cmd) error

	// Save stops everything that goes on without RPCs, and writes down all that Serve has to
	// know to go on with it in another program. files are the descriptors that have to be open
	// there. [Config.Serve] sets it, with Continue, which is called if there is no other
	// program after all.
	Save     func(ctx context.Context) (saved json.RawMessage, files []int, err error)
	Continue func()

	// Expects says whether the process keeps room for a pod, or for a container without
	// one, and since when: it was started for it, and neither Removed nor Forget has been
	// called.
	Expects func(id string) (since time.Time, ok bool)

	// Forget gives that room back: nothing will come of it.
	Forget func(id string)

	// Shutdown asks the process to end, if nothing is left in it. A process that is shared
	// goes on as long as it keeps room for any pod. Shutdown returns at once, so that the
	// RPC which calls it is still answered. It may be called many times.
	Shutdown func()

	// Removed records that nothing is left of a container or sandbox, and how it
	// ended, so that `delete` has nothing to do for it. bundle is an absolute path.
	Removed func(id, bundle string, e Exit)

	// GiveUp removes a container or sandbox, with all that is in it, that containerd will
	// not ask for any more, and calls Forget. It does nothing if the id is another
	// bundle's. [Config.Serve] sets it for a process that is shared.
	GiveUp func(ctx context.Context, id, bundle string) error

	// Idle calls Shutdown if nothing is left in the process. [Config.Serve] sets it for a
	// process that is shared.
	Idle func()
}

// DeleteRequest names the container or sandbox whose remains [Config.Delete] removes.
type DeleteRequest struct {
	Namespace string // containerd namespace
	ID        string // of the container or sandbox
	Bundle    string // absolute path of its bundle
}

// Exit is how a container or sandbox ended.
type Exit struct {
	Pid    uint32    // 0 if unknown
	Status uint32    // as in a shell: 128 + n for signal n
	At     time.Time // zero if unknown
}

// Run does what the command line args ask, and returns the exit code of the
// process. args do not include the program's name. Run prints an error to stderr
// as "<runtime>: <error>", cut to 4096 bytes.
//
// Run may be called on any goroutine; it locks no thread and handles no SIGCHLD.
func Run(ctx context.Context, cfg *Config, args []string) int {
	c := &call{config: cfg, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	c.shared = cfg.SharedRuntime != "" && filepath.Base(os.Args[0]) == programOf(cfg.SharedRuntime)
	err := c.run(ctx, args)
	var code exitCode
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &code):
		return int(code)
	case err != nil:
		fmt.Fprintln(os.Stderr, printable(fmt.Sprintf("%s: %s", c.runtime(), err)))
		return 1
	}
	return 0
}

// maxText is how many bytes of a message are printed.
const maxText = 4096

// printable makes text fit for containerd to pass on, for instance when it quotes a file:
// it is valid UTF-8, as gRPC demands, and no longer than maxText bytes.
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
	shared bool // the program was called by the name of the shared runtime
	flags
	stdin          io.Reader
	stdout, stderr io.Writer
}

// runtime returns the runtime type for which the program was called.
func (c *call) runtime() string {
	if c.shared {
		return c.config.SharedRuntime
	}
	return c.config.Runtime
}

// programOf returns the name of the program for a runtime type, as containerd makes it
// (BinaryName in pkg/shim/util.go): "containerd-shim-x-v2" for "io.containerd.x.v2".
func programOf(runtime string) string {
	parts := strings.Split(runtime, ".")
	return "containerd-shim-" + strings.Join(parts[max(0, len(parts)-2):], "-")
}

// flags is the command line, which is the same from containerd 1.6
// (runtime/v2/shim/util.go) to 2.4 (core/runtime/v2/command.go).
type flags struct {
	namespace string
	id        string
	address   string // gRPC address of containerd
	bundle    string // for delete
	socket    string // path to serve on, for a shim that containerd has not started
	debug     bool
	image     *string // name of a sandbox image to write; nil if none
	install   *string // directory to install into; nil if none
	uninstall *string // directory to uninstall from; nil if none
	version   bool
	info      bool
	upgrade   bool
	check     bool // look whether this program could take over the state on standard input
	action    string
}

func (c *call) run(ctx context.Context, args []string) error {
	if err := c.parse(args, c.stderr); err != nil {
		return err
	}
	switch {
	case c.version:
		return c.printVersion()
	case c.check:
		return c.checkState()
	case c.upgrade:
		return c.upgradeAll(ctx)
	case c.info:
		return c.printInfo(ctx)
	case c.image != nil:
		return c.config.SandboxImage(c.stdout, *c.image)
	case c.install != nil:
		return c.config.Install(c.stdout, *c.install)
	case c.uninstall != nil:
		return c.config.Uninstall(c.stdout, *c.uninstall)
	case c.namespace == "":
		return errors.New("-namespace is missing: give a containerd namespace")
	case c.id == "":
		return errors.New("-id is missing: give the id of a container or sandbox")
	case !utf8.ValidString(c.namespace) || !utf8.ValidString(c.id): // protobuf strings must be UTF-8.
		return fmt.Errorf("cannot use namespace %q and id %q: they must be valid UTF-8", c.namespace, c.id)
	}
	if text := os.Getenv(stateEnv); text != "" {
		return c.takeOver(ctx, text)
	}
	switch c.action {
	case "start":
		return c.start(ctx)
	case "delete":
		return c.delete(ctx)
	case "":
		return c.serveSocket(ctx)
	}
	return fmt.Errorf("unknown action %q: give start or delete, or none to serve on -socket", c.action)
}

func (f *flags) parse(args []string, usage io.Writer) error {
	var ignored string
	set := flag.NewFlagSet(filepath.Base(os.Args[0]), flag.ContinueOnError)
	// The flag package would print each error a second time, with the whole
	// usage, and containerd would put all of that into one line of an error message.
	set.SetOutput(io.Discard)
	set.BoolVar(&f.debug, "debug", false, "log debug messages")
	set.BoolVar(&f.version, "v", false, "show the version and exit")
	set.BoolVar(&f.version, "version", false, "show the version and exit")
	set.BoolVar(&f.info, "info", false, "read runtime options from stdin, write RuntimeInfo to stdout, and exit")
	set.Func("sandbox-image", "write an archive of a sandbox image with this `name` to stdout, for ctr -n k8s.io images import -, and exit", func(name string) error {
		f.image = &name
		return nil
	})
	set.Func("install", "copy this program into the directory `dir`, with the link for pods that share a shim, and exit", func(dir string) error {
		f.install = &dir
		return nil
	})
	set.Func("uninstall", "remove this program and its link from the directory `dir`, and exit", func(dir string) error {
		f.uninstall = &dir
		return nil
	})
	set.BoolVar(&f.upgrade, "upgrade", false, "have all running shims of this node go on with this program, or those of a -namespace, -id or containerd's -address, and exit")
	set.BoolVar(&f.check, "check-state", false, "used by -upgrade: check the state of a shim, read from stdin, and exit")
	set.StringVar(&f.namespace, "namespace", "", "containerd namespace")
	set.StringVar(&f.id, "id", "", "id of the container or sandbox")
	set.StringVar(&f.socket, "socket", "", "path of the socket to serve on")
	set.StringVar(&f.bundle, "bundle", "", "path of the bundle, if not the working directory")
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

// printVersion prints the version in the stock shim's format.
func (c *call) printVersion() error {
	_, err := fmt.Fprintf(c.stdout, "%s:\n  Version:  %s\n  Revision: %s\n  Go version: %s\n\n",
		filepath.Base(os.Args[0]), c.config.Version, c.config.Revision, runtime.Version())
	return err
}
