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

// start answers with the address of the shim that serves the group of the
// container whose bundle is the working directory. If there is none, this process
// becomes it: another one, the starter, is what containerd has executed.
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
	// containerd reads stdout and stderr through one pipe and takes all of it
	// for the answer (binary.Start in core/runtime/v2/binary.go).
	log.L.Logger.SetOutput(io.Discard)

	b, err := c.readBootstrap()
	if err != nil {
		return err
	}
	group, err := groupOf(specFile, c.config.GroupAnnotations)
	if err != nil {
		return err
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
	starter.claimed(socket.Name())
	return c.serve(ctx, b, socket, func() error {
		if err := c.leave(b); err != nil {
			return err
		}
		if group == c.id { // else others outlive what the bundle is of
			if err := recordProcess("."); err != nil {
				return err
			}
		}
		if err := c.answer(b, address); err != nil {
			return err
		}
		if err := detach(); err != nil {
			return err
		}
		return starter.tell()
	})
}

// descriptor is a file that can be written to when nobody reads it any more. With [os.Stdout] that
// would end the process, unless it asks for SIGPIPE, which takes Go a thread and a
// quarter of a millisecond (os/signal, "SIGPIPE").
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

// answer tells containerd the address of the group's shim.
func (c *call) answer(b *bootstrap, address string) error {
	reply, err := b.answer.encode(address)
	if err != nil {
		return fmt.Errorf("cannot encode answer: %w", err)
	}
	if err := writeAddress(".", address); err != nil {
		return err
	}
	if _, err := c.stdout.Write(reply); err != nil {
		return fmt.Errorf("cannot answer: %w", err)
	}
	return nil
}

// sandboxBundles is the directory of the bundles of the Sandbox API, beside that of
// those of tasks (the ids of the plugins in plugins/sandbox/controller.go and
// core/runtime/v2/task_manager.go of containerd 2.4).
const sandboxBundles = "io.containerd.sandbox.controller.v1.shim"

// runningShim returns the path of the socket on which the group's shim serves, if the
// group is a pod, by what the bundle of its sandbox says. That is not always where
// `start` would have it: a containerd that is started again under running pods may
// have another socket directory or address than before. Without a path the shim does
// not run, or its group is no pod.
//
// Half a group in a second shim would be worse than none: it does not know the sandbox,
// and the namespaces of a shim's process are in part the host's.
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

// maxGroup is how long the name of a file may be (NAME_MAX).
const maxGroup = 255

// groupOf returns the value of the first of annotations that the spec at path
// has, or "" if it has none. A value that cannot be the name of a bundle is refused: it
// would lead to the shim of another containerd namespace. A sandbox of the Sandbox API may be without a
// spec (NewBundle in core/runtime/v2/bundle.go of containerd 2.4).
func groupOf(path string, annotations []string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("cannot read spec: %w", err)
	}
	defer f.Close()

	// Only the annotations: the decoder skips the rest without storing it.
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(f).Decode(&spec); err != nil {
		return "", fmt.Errorf("cannot decode spec %s: %w", path, err)
	}
	for _, name := range annotations {
		group, ok := spec.Annotations[name]
		if !ok {
			continue
		}
		if group == "." || group == ".." || len(group) > maxGroup || strings.ContainsAny(group, "/\x00") {
			return "", fmt.Errorf("cannot use annotation %s of %s as a group: %.*q is no file name of up to %d bytes",
				name, path, maxGroup, group, maxGroup)
		}
		return group, nil
	}
	return "", nil
}
