package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// start answers with the address of the shim that serves the container's group. The
// working directory is the container's bundle. If no such shim runs, this process becomes
// it; the process that containerd has executed is its parent, the starter.
func (c *call) start(ctx context.Context) error {
	starter, err := takeStarter()
	if err != nil {
		return err
	}
	if starter == nil {
		return executeAgain()
	}
	if c.stdout == os.Stdout {
		c.stdout = descriptor(unix.Stdout)
	}
	// Nothing may be logged yet: containerd reads stdout and stderr through one
	// pipe and takes everything for the answer (binary.Start in
	// core/runtime/v2/binary.go).
	log.L.Logger.SetOutput(io.Discard)

	b, err := c.readBootstrap()
	if err != nil {
		return err
	}
	spec, err := readAnnotations(specFile)
	if err != nil {
		return err
	}
	group, err := spec.group(c.config.GroupAnnotations...)
	if err != nil {
		return err
	}
	pod, err := spec.group(c.config.PodAnnotation)
	if err != nil {
		return err
	}
	// A client that names a group wants a shim for just that.
	if c.shared && group == "" && b.mayShare() {
		return c.startShared(ctx, b, starter, pod)
	}
	if group == "" {
		group = pod
	}
	if group == "" {
		group = c.id
	}
	address := socketAddress(b.socketDir, b.grpcAddress, c.namespace, group)
	if path := c.runningShim(group); path != "" {
		address = unixScheme + path
	}
	socket, err := claimSocket(strings.TrimPrefix(address, unixScheme))
	if err != nil {
		return err
	}
	if socket == nil {
		return c.answer(b, address) // The starter ends with this process.
	}
	return c.become(ctx, b, socket, starter, tenancy{seats: 1, recorded: group == c.id})
}

// tenancy says for whom a shim process is.
type tenancy struct {
	seats int // how many pods, or containers without one, the shim takes in
	// shared says that the pods have nothing to do with each other.
	shared bool
	// recorded says that the shim is for the task of its bundle alone, with the rest of the
	// pod. Any other may outlive that, and must not be killed for it.
	recorded bool
}

// become makes this process the shim that serves on the socket, and lets the starter end.
func (c *call) become(ctx context.Context, b *bootstrap, socket *os.File, starter *starter, t tenancy) error {
	starter.claimed(socket.Name())
	return c.serve(ctx, b, socket, t, func() error {
		if err := c.leave(b, t); err != nil {
			return err
		}
		if t.recorded {
			if err := recordProcess("."); err != nil {
				return err
			}
		}
		if err := c.answer(b, unixScheme+socket.Name()); err != nil {
			return err
		}
		if err := detach(); err != nil {
			return err
		}
		return starter.tell()
	})
}

// descriptor is a file descriptor to which a process can write even when nobody reads from
// it any more. A write to [os.Stdout] would then end the process by SIGPIPE. Catching that
// signal takes Go a thread and a quarter of a millisecond (os/signal, "SIGPIPE").
type descriptor int

// Write implements [io.Writer].
func (d descriptor) Write(data []byte) (n int, err error) {
	for n < len(data) && err == nil {
		var written int
		written, err = unix.Write(int(d), data[n:])
		n += max(written, 0)
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
	}
	return n, err
}

// answer records the address of the group's shim in the bundle, and sends it to containerd.
func (c *call) answer(b *bootstrap, address string) error {
	reply, err := b.answer.encode(address)
	if err != nil {
		return fmt.Errorf("cannot encode answer: %w", err)
	}
	if err := writeAddress(".", address); err != nil {
		return err
	}
	if _, err := c.stdout.Write(reply); err != nil {
		return fmt.Errorf("cannot write answer to containerd: %w", err)
	}
	return nil
}

// sandboxBundles is the directory of the Sandbox API's bundles, which is beside the
// directory of task bundles. containerd names both by the ids of its plugins
// (plugins/sandbox/controller.go and core/runtime/v2/task_manager.go of 2.4).
const sandboxBundles = "io.containerd.sandbox.controller.v1.shim"

// runningShim returns the path of the socket on which the shim of a pod serves, or "" if
// it does not run or the group is no pod. The path is read from the bundle of the pod's
// sandbox, because it is not always the one that `start` would choose: a containerd
// restarted under running pods may have a new socket directory or address.
//
// A second shim for half of a group would be worse than none: it does not know the
// sandbox, and some namespaces of its process are the host's.
func (c *call) runningShim(group string) (path string) {
	if group == c.id {
		return ""
	}
	for _, bundle := range []string{
		filepath.Join("..", group),
		filepath.Join("..", "..", "..", sandboxBundles, c.namespace, group),
	} {
		path, err := readAddress(bundle)
		if err != nil || path == "" {
			continue
		}
		if alive, err := isServed(path); err == nil && alive {
			return path
		}
	}
	return ""
}

// specFile is the OCI spec in a bundle.
const specFile = "config.json"

// maxGroup is the longest name of a file in bytes (NAME_MAX).
const maxGroup = 255

// annotations are those of a container's spec.
type annotations struct {
	path   string // of the spec
	values map[string]string
}

// readAnnotations reads the annotations of the spec at path. There is none for some sandboxes
// of the Sandbox API (NewBundle in core/runtime/v2/bundle.go of containerd 2.4).
func readAnnotations(path string) (*annotations, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &annotations{path: path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read spec: %w", err)
	}
	defer f.Close()

	// The decoder skips everything else without storing it.
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return nil, fmt.Errorf("cannot decode spec %s: %w", path, err)
	}
	return &annotations{path, spec.Annotations}, nil
}

// group returns the value of the first of the names that the spec has, or "" if it has none.
// A value that cannot be the name of a bundle is refused: it would lead to the shim of
// another containerd namespace.
func (a *annotations) group(names ...string) (string, error) {
	for _, name := range names {
		group, ok := a.values[name]
		if !ok {
			continue
		}
		if group == "." || group == ".." || len(group) > maxGroup || strings.ContainsAny(group, "/\x00") {
			return "", fmt.Errorf("cannot use annotation %s of %s as a group: %.*q is not a file name of at most %d bytes",
				name, a.path, maxGroup, group, maxGroup)
		}
		return group, nil
	}
	return "", nil
}
