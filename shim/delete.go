package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"containerd-shim-pause-v2/shim/entry"
)

// deleteLimit is how long `delete` may take. containerd kills it after 5 s (cleanupTimeout in
// core/runtime/v2/shim.go), and the answer is lost.
const deleteLimit = 4 * time.Second

// delete removes what a dead shim left of the container or sandbox in the
// bundle, and answers with how that ended. It ends a shim that is not dead, but
// given up.
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

	ctx, cancel := context.WithTimeout(ctx, deleteLimit)
	defer cancel()
	bundle, err := c.bundlePath()
	if err != nil {
		return err
	}
	// First of all, so that it makes nothing new.
	if err := endGivenUp(ctx, bundle, c.id); err != nil {
		log.L.WithError(err).Warn("the process of a shim that containerd has given up may still be running")
	}
	exit, err := c.config.Delete(ctx, DeleteRequest{Namespace: c.namespace, ID: c.id, Bundle: bundle})
	if serr := removeRecordedSocket(bundle); serr != nil {
		log.L.WithError(serr).Warn("the shim's socket may be left behind")
	}
	if err != nil {
		fmt.Fprintln(c.stderr, printable(fmt.Sprintf("cannot remove all of %s: %s", c.id, err)))
	}

	answer, err := exit.encode()
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

// encode returns the answer to `delete`.
func (e Exit) encode() ([]byte, error) {
	response := &taskapi.DeleteResponse{Pid: e.Pid, ExitStatus: e.Status}
	if !e.At.IsZero() {
		response.ExitedAt = timestamppb.New(e.At)
	}
	return proto.Marshal(response)
}

// answers are those to `delete` that the process writes into bundles, for package entry.
// One says that nothing is left, so that nobody looks for it.
type answers struct {
	own string // the bundle of the process

	mu sync.Mutex
	// last is what was removed last, since the process has nothing but itself left in its
	// own bundle. The answer to that is written when the process has removed its socket,
	// which is recorded there. Guarded by mu; nil before.
	last *removal
}

// removal is of what was in a bundle.
type removal struct {
	bundle string
	dir    fs.FileInfo // of the bundle then; another one may take its place
	exit   Exit
}

// removed implements [Instance.Removed].
func (a *answers) removed(bundle string, e Exit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	dir, err := os.Stat(bundle)
	if err != nil {
		return // There is nothing for `delete`, either.
	}
	own, err := os.Stat(a.own)
	if err == nil && os.SameFile(own, dir) {
		if err := forgetProcess(a.own); err != nil {
			log.L.WithError(err).Warn("the shim may be killed under containers of its group")
		}
	}
	if err == nil && a.last == nil && !os.SameFile(own, dir) {
		writeAnswer(bundle, e)
		return
	}
	a.last = &removal{bundle, dir, e}
}

// finish is called when nothing is left of the process, and of all that it has served.
func (a *answers) finish() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		return
	}
	if dir, err := os.Stat(a.last.bundle); err == nil && os.SameFile(dir, a.last.dir) {
		writeAnswer(a.last.bundle, a.last.exit)
	}
}

// writeAnswer writes the answer to `delete` into a bundle, whole or not at all. The bundle
// may be gone.
func writeAnswer(bundle string, e Exit) {
	answer, err := e.encode()
	if err == nil {
		err = replaceFile(filepath.Join(bundle, entry.AnswerFile), answer)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.L.WithError(err).Debug("the exit status is not left for the delete call")
	}
}
