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

// deleteLimit is how long `delete` may take. After 5 s containerd kills it (cleanupTimeout
// in core/runtime/v2/shim.go), and the answer is lost.
const deleteLimit = 4 * time.Second

// delete removes what a dead shim has left of the container or sandbox in the
// bundle, and answers with how that container or sandbox ended. If containerd has
// given up a shim that still lives, delete ends the shim first.
func (c *call) delete(ctx context.Context) error {
	// Signals must not interrupt the clean-up, or it would leave mounts and cgroups
	// that nothing removes later. It is short; if it is not, containerd ends it with
	// SIGKILL. The signals are caught rather than ignored, because child processes
	// inherit ignored signals.
	signal.Notify(make(chan os.Signal, 1), unix.SIGTERM, unix.SIGINT, unix.SIGPIPE)

	// containerd logs all of stderr as warnings (binary.Delete).
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
	// End a given-up shim first, so that it makes nothing new.
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
		return fmt.Errorf("cannot write answer to containerd: %w", err)
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

// removeRecordedSocket removes the socket that the bundle names if no shim listens
// on it. The shim may be alive: when one container of a group is deleted, it still
// serves the others.
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

// answers writes answers to `delete` into bundles, where package entry finds them. An
// answer says that nothing is left in the bundle, so that `delete` need not look.
type answers struct {
	own string // the bundle of the process; empty if the process is not that of one bundle

	mu sync.Mutex
	// last is the latest removal, beginning with the one of the task in the process's own
	// bundle; nil before. Its answer is written only after the process has removed its
	// socket, because the bundle still names the socket. Guarded by mu.
	last *removal
}

// removal says how the task in a bundle ended before it was removed.
type removal struct {
	bundle string
	dir    fs.FileInfo // of the bundle at the removal; another may take its place
	exit   Exit
}

// removed implements [Instance.Removed].
func (a *answers) removed(bundle string, e Exit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	dir, err := os.Stat(bundle)
	if err != nil {
		return // `delete` has no bundle either.
	}
	if a.own == "" {
		writeAnswer(bundle, e)
		return
	}
	own, err := os.Stat(a.own)
	if err == nil && os.SameFile(own, dir) {
		if err := forgetProcess(a.own); err != nil {
			log.L.WithError(err).Warn("a later delete may kill the shim while it serves other containers")
		}
	}
	if err == nil && a.last == nil && !os.SameFile(own, dir) {
		writeAnswer(bundle, e)
		return
	}
	a.last = &removal{bundle, dir, e}
}

// savedRemoval is a removal whose answer was not written yet.
type savedRemoval struct {
	Bundle string `json:"bundle"`
	Exit   Exit   `json:"exit"`
}

// save returns the answer that is held back; nil if there is none.
func (a *answers) save() *savedRemoval {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		return nil
	}
	return &savedRemoval{a.last.bundle, a.last.exit}
}

// restore holds back an answer that the program before this one has held back.
func (a *answers) restore(saved *savedRemoval) {
	if saved == nil {
		return
	}
	if dir, err := os.Stat(saved.Bundle); err == nil {
		a.last = &removal{saved.Bundle, dir, saved.Exit}
	}
}

// finish writes the answer that was held back. It is called when nothing is left of the
// process and of all that it has served.
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

// writeAnswer writes the answer to `delete` into a bundle, whole or not at all. It does
// nothing if the bundle is gone.
func writeAnswer(bundle string, e Exit) {
	answer, err := e.encode()
	if err == nil {
		err = replaceFile(filepath.Join(bundle, entry.AnswerFile), answer)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.L.WithError(err).Debug("cannot leave the exit status for delete")
	}
}
