package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"containerd-shim-pause-v2/cgroups"

	"github.com/containerd/errdefs"
	runc "github.com/containerd/go-runc"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

// Options are those of the runtime options that concern the OCI runtime. They
// have the meaning of the fields of the same names in containerd.runc.v1.Options,
// but for AlwaysCallRuntime, which is the shim's own.
type Options struct {
	BinaryName    string `json:"binary_name,omitempty"` // name or path, default runc
	Root          string `json:"root,omitempty"`        // default /run/containerd/runc
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
	NoPivotRoot   bool   `json:"no_pivot_root,omitempty"`
	NoNewKeyring  bool   `json:"no_new_keyring,omitempty"`
	IoUID         uint32 `json:"io_uid,omitempty"`
	IoGID         uint32 `json:"io_gid,omitempty"`
	CriuWorkPath  string `json:"criu_work_path,omitempty"`

	// AlwaysCallRuntime says that the shim does nothing in the place of a command of the
	// OCI runtime, though it could where that is runc.
	AlwaysCallRuntime bool `json:"always_call_runtime,omitempty"`
}

// defaultRoot is where the stock shim keeps the OCI runtime's state; the same
// place makes `runc --root /run/containerd/runc/k8s.io list` work for both.
const defaultRoot = "/run/containerd/runc"

// ociRuntime calls the OCI runtime for the containers of one bundle.
type ociRuntime struct {
	options   Options
	namespace string // containerd's
	bundle    string
	reaper    *Reaper       // nil in a process that does not reap
	force     time.Duration // zero for forceTimeout
}

func (r *ociRuntime) patience() time.Duration {
	if r.force == 0 {
		return forceTimeout
	}
	return r.force
}

// root is the directory in which the OCI runtime keeps its state.
func (r *ociRuntime) root() string {
	root := r.options.Root
	if root == "" {
		root = defaultRoot
	}
	return filepath.Join(root, r.namespace)
}

// knows says whether the OCI runtime has state of the container: a directory of
// its name, with runc, crun and youki.
func (r *ociRuntime) knows(id string) bool {
	_, err := os.Stat(r.stateDir(id))
	return err == nil
}

func (r *ociRuntime) stateDir(id string) string { return filepath.Join(r.root(), id) }

// call is one call of the OCI runtime.
type call struct {
	verb string
	args []string // without the runtime's own, and the id that comes last
	id   string
	log  string // name of the log in the bundle; empty for runtimeLog

	// stdio are the files of the runtime, and of a process that it makes; nil is
	// /dev/null. Without any, what the runtime writes to them is its message.
	stdio [3]*os.File
	// started is called when the runtime has been started, and has its own copies.
	started func()
}

// run calls the OCI runtime. An error of it carries the message that the runtime
// wrote to its log, which says more than its exit status. The log is called log.json
// like the stock shim's; another one keeps calls that run at the same time apart.
func (r *ociRuntime) run(ctx context.Context, c call) error {
	if r.reaper != nil {
		defer r.reaper.hold()()
	}
	if c.log == "" {
		c.log = runtimeLog
	}
	log := filepath.Join(r.bundle, c.log)
	start := fileSize(log)
	args := []string{r.binary(), "--root", r.root(), "--log", log, "--log-format", "json"}
	if r.options.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	args = append(append(append(args, c.verb), c.args...), c.id)
	out, err := runToEnd(ctx, args, c.stdio, c.started)
	if err == nil {
		return nil
	}
	if msg := lastError(log, start); msg != "" {
		return fmt.Errorf("OCI runtime %s failed: %s", c.verb, msg)
	}
	if out = strings.TrimSpace(out); out != "" {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return fmt.Errorf("OCI runtime %s failed: %w", c.verb, err)
}

// binary is the name or path of the OCI runtime.
func (r *ociRuntime) binary() string {
	if r.options.BinaryName == "" {
		return runc.DefaultCommand
	}
	return r.options.BinaryName
}

const runtimeLog = "log.json"

func fileSize(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// lastError returns the last message of level error or fatal in a runtime's JSON
// log, from an offset on. Lines that are not JSON are passed over.
func lastError(path string, offset int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return ""
	}
	var last string
	lines := bufio.NewReader(io.LimitReader(f, 1<<20))
	for {
		line, err := lines.ReadBytes('\n')
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = strings.TrimSpace(entry.Msg)
		}
		if err != nil {
			return last
		}
	}
}

// madeArgs are the arguments by which the OCI runtime tells of a process that it makes.
func madeArgs(pidFile string, console *consoleSocket) []string {
	args := []string{"--pid-file", pidFile}
	if console != nil {
		args = append(args, "--console-socket", console.Path())
	}
	return args
}

// started is for commands that put a process with these streams into a cgroup. Nobody waits
// for what it begins: a runtime may do without the kernel's lock, and be ready before.
func (s *streams) started() {
	s.closeChildEnds()
	go func() {
		if err := cgroups.AnnounceMove(); err != nil {
			log.L.WithError(err).Debug("a process will have to wait for its cgroup")
		}
	}()
}

func (r *ociRuntime) create(ctx context.Context, id, pidFile string, s *streams, console *consoleSocket) error {
	return r.run(ctx, call{
		verb: "create", id: id, stdio: s.child, started: s.started,
		args: append(madeArgs(pidFile, console), r.bundleArgs()...),
	})
}

// bundleArgs are the arguments of the commands that make a container.
func (r *ociRuntime) bundleArgs() []string {
	args := []string{"--bundle", r.bundle}
	if r.options.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	if r.options.NoNewKeyring {
		args = append(args, "--no-new-keyring")
	}
	return args
}

func (r *ociRuntime) start(ctx context.Context, id string) error {
	return r.awaited(r.run(ctx, call{verb: "start", id: id}), filepath.Join(r.bundle, "init.pid"))
}

// awaited takes the outcome of a command that lets a process go, and waits until this has
// executed its program.
func (r *ociRuntime) awaited(err error, pidFile string) error {
	if err != nil {
		return err
	}
	if pid, err := readPidFile(pidFile); err == nil {
		awaitProgram(pid, r.isInit)
	}
	return nil
}

// exec executes a process, whose spec is in a file.
func (r *ociRuntime) exec(ctx context.Context, id, spec, pidFile, log string, s *streams, console *consoleSocket) error {
	defer os.Remove(filepath.Join(r.bundle, log))
	err := r.run(ctx, call{
		verb: "exec", id: id, log: log, stdio: s.child, started: s.started,
		args: append(madeArgs(pidFile, console), "--process", spec, "--detach"),
	})
	return r.awaited(err, pidFile)
}

func (r *ociRuntime) restore(ctx context.Context, id string, image checkpointImage, pidFile string, s *streams, console *consoleSocket) error {
	args := append(madeArgs(pidFile, console), "--image-path", image.path, "--work-path", image.work)
	if image.parent != "" {
		args = append(args, "--parent-path", image.parent)
	}
	if r.options.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	// Without --no-subreaper, which crun does not know. With runc it makes no difference:
	// what it adopts comes to the shim when it ends.
	return r.run(ctx, call{
		verb: "restore", id: id, stdio: s.child, started: s.started,
		args: append(args, "--bundle", r.bundle, "--detach"),
	})
}

func (r *ociRuntime) checkpoint(ctx context.Context, id string, o CheckpointOptions) error {
	args := []string{"--image-path", o.Path, "--work-path", o.WorkPath}
	if o.ParentPath != "" {
		args = append(args, "--parent-path", o.ParentPath)
	}
	for arg, wanted := range map[string]bool{
		"--tcp-established": o.OpenTCP, "--ext-unix-sk": o.ExternalUnixSockets, "--shell-job": o.Terminal,
		"--file-locks": o.FileLocks, "--leave-running": !o.Exit,
	} {
		if wanted {
			args = append(args, arg)
		}
	}
	for _, ns := range o.EmptyNamespaces {
		args = append(args, "--empty-ns", ns)
	}
	return r.run(ctx, call{verb: "checkpoint", id: id, args: args})
}

func (r *ociRuntime) update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	data, err := json.Marshal(resources)
	if err != nil {
		return err
	}
	stdin, err := scratchFile("resources", data)
	if err != nil {
		return err
	}
	defer stdin.Close()
	return r.run(ctx, call{verb: "update", id: id, args: []string{"--resources=-"}, stdio: [3]*os.File{stdin}})
}

// forceTimeout bounds how long the OCI runtime may take to remove what has failed. Nobody
// waits for that who could give up.
const forceTimeout = time.Minute

// delete removes the container from the OCI runtime, by force with its processes, which
// end though the OCI runtime may fail. One that it does not know (any more: a checkpoint
// that ends the container removes it) is no error: then what the shim itself knows of is
// removed.
func (r *ociRuntime) delete(ctx context.Context, id string, force bool) error {
	if !r.knows(id) {
		return r.removeUnknown(ctx, force)
	}
	lost := r.hasLost(id)
	var args []string
	if force {
		args = append(args, "--force")
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, r.patience(), fmt.Errorf("it has not ended after %v", r.patience()))
		defer cancel()
		if err := r.killKnown(ctx, id); err != nil {
			log.G(ctx).WithError(err).Warn("the OCI runtime is to kill the container")
		}
	}
	err := r.run(ctx, call{verb: "delete", id: id, args: args})
	switch {
	case err == nil && force && !lost:
		// Under load, runc gives up on a cgroup whose last process the kernel has not
		// taken out yet, with no more than a line in its log.
		return r.removeUnknown(ctx, false)
	case !lost && (err == nil || r.knows(id)):
		return err
	}
	// By force runc removes a directory without state, and says no more.
	if err := os.RemoveAll(r.stateDir(id)); err != nil {
		return err
	}
	return r.removeUnknown(ctx, force)
}

// hasLost says whether nothing is left in the OCI runtime's directory of a container from
// which this could know what to remove: no files, or one that a full disk has cut off. A
// runtime that was killed while it made the container may have made the fifo only, by
// which that is started.
func (r *ociRuntime) hasLost(id string) bool {
	files, err := os.ReadDir(r.stateDir(id))
	if err != nil {
		return false
	}
	if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() != "exec.fifo" }) {
		return true
	}
	for _, name := range []string{"state.json", "status"} { // of runc and youki; of crun
		data, err := os.ReadFile(filepath.Join(r.stateDir(id), name))
		if err == nil && !json.Valid(data) {
			return true
		}
	}
	return false
}

// removeUnknown removes the cgroup of a container of which the OCI runtime has lost its
// state, and which it will never remove. One that was killed while it made the container
// may have left a process there.
func (r *ociRuntime) removeUnknown(ctx context.Context, kill bool) error {
	record, err := readRecord(r.bundle)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it is the bundle of a pod's init, in the cgroup of the sandbox
	}
	if err != nil {
		return err
	}
	cgroup, err := record.cgroup()
	if err != nil || cgroup == nil {
		return err
	}
	if kill {
		if err := cgroup.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return record.removeCgroup(ctx)
}

// Features asks an OCI runtime, given by name or path (default runc), for the
// features that it implements.
// Source: OCI runtime specification, features.md.
func Features(ctx context.Context, binary string) (*features.Features, error) {
	rt := runc.Runc{Command: binary}
	f, err := rt.Features(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot ask the OCI runtime %q for its features: %w", binary, err)
	}
	return f, nil
}

// descriptorTimeout bounds how long it is waited until others have closed descriptors.
const descriptorTimeout = 10 * time.Second

// readPidFile returns the pid that the OCI runtime has written. It does not give up at
// once where descriptors are used up: the process would go on, and nobody know of it.
func readPidFile(path string) (int, error) {
	pid, err := runc.ReadPidFile(path)
	for end := time.Now().Add(descriptorTimeout); isUsedUp(err) && time.Now().Before(end); {
		time.Sleep(look)
		pid, err = runc.ReadPidFile(path)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot read the pid file of the OCI runtime: %w", err)
	}
	if pid <= 0 {
		return 0, errors.New("pid file " + path + " holds no pid")
	}
	return pid, nil
}

// isUsedUp says whether something failed for want of descriptors.
func isUsedUp(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }
