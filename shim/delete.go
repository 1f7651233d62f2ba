package shim

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"containerd-shim-pause-v2/shim/api"
	"containerd-shim-pause-v2/shim/wire"
)

// delete removes what a dead shim left of the container or sandbox in the
// bundle, and answers with how that ended.
func (c *call) delete(ctx context.Context) error {
	// Half a clean-up leaves mounts and cgroups that nobody looks for again.
	// It is short, and containerd ends it by SIGKILL if it is not. The signals
	// are caught and not ignored, as programs started from here would inherit
	// the latter.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGPIPE)

	// containerd repeats all of stderr as warnings (binary.Delete).
	level := log.WarnLevel
	if c.debug {
		level = log.DebugLevel
	}
	if err := log.SetLevel(level); err != nil {
		return err
	}

	bundle, err := c.bundlePath()
	if err != nil {
		return err
	}
	exit, err := c.program.Delete(ctx, DeleteRequest{Namespace: c.namespace, ID: c.id, Bundle: bundle})
	if serr := removeRecordedSocket(bundle); serr != nil {
		log.L.WithError(serr).Warn("a shim socket may be left")
	}
	if err != nil {
		return err
	}

	response := &api.DeleteResponse{Pid: exit.Pid, ExitStatus: exit.Status}
	if !exit.At.IsZero() {
		response.ExitedAt = timestamppb.New(exit.At)
	}
	answer, err := wire.Marshal(response)
	if err != nil {
		return fmt.Errorf("cannot encode answer: %w", err)
	}
	if _, err := c.stdout.Write(answer); err != nil {
		return fmt.Errorf("cannot answer: %w", err)
	}
	return nil
}

func (c *call) bundlePath() (string, error) {
	if c.bundle != "" {
		return c.bundle, nil
	}
	bundle, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("cannot find the bundle: %w", err)
	}
	return bundle, nil
}

// removeRecordedSocket removes the socket that the bundle names if its shim is
// dead. The shim may as well be alive: when one container of a group is
// deleted, it serves the others.
func removeRecordedSocket(bundle string) error {
	path, err := readAddress(bundle)
	if err != nil || path == "" {
		return err
	}
	return removeStaleSocket(path)
}
