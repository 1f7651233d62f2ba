package oci

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
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/process/stdio"

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

// CheckpointOptions are those of containerd.runc.v1.CheckpointOptions.
type CheckpointOptions struct {
	Path                string // directory for the images
	WorkPath            string // for criu's logs; a temporary one if empty
	ParentPath          string
	Exit                bool // end the container
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
}

// CheckpointImage is what a container is restored from; empty for a new one.
type CheckpointImage struct{ Path, Parent, Work string }

// defaultRoot is where the stock shim keeps the OCI runtime's state; the same
// place makes `runc --root /run/containerd/runc/k8s.io list` work for both.
const defaultRoot = "/run/containerd/runc"

// Runtime calls the OCI runtime for the containers of one bundle.
type Runtime struct {
	Options   Options
	Namespace string // containerd's
	Bundle    string
	// CgroupsPath is that of the container's spec; empty if the cgroup is not its alone.
	CgroupsPath string
	Reaper      *reap.Reaper  // nil in a process that does not reap
	Force       time.Duration // zero for forceTimeout
}

func (r *Runtime) patience() time.Duration {
	if r.Force == 0 {
		return forceTimeout
	}
	return r.Force
}

// Root is the directory in which the OCI runtime keeps its state.
func (r *Runtime) Root() string {
	root := r.Options.Root
	if root == "" {
		root = defaultRoot
	}
	return filepath.Join(root, r.Namespace)
}

// Knows says whether the OCI runtime has state of the container: a directory of
// its name, with runc, crun and youki.
func (r *Runtime) Knows(id string) bool {
	_, err := os.Stat(r.stateDir(id))
	return err == nil
}

func (r *Runtime) stateDir(id string) string { return filepath.Join(r.Root(), id) }

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
func (r *Runtime) run(ctx context.Context, c call) error {
	if r.Reaper != nil {
		defer r.Reaper.Hold()()
	}
	if c.log == "" {
		c.log = LogFile
	}
	log := filepath.Join(r.Bundle, c.log)
	start := fileSize(log)
	args := []string{r.binary(), "--root", r.Root(), "--log", log, "--log-format", "json"}
	if r.Options.SystemdCgroup {
		args = append(args, "--systemd-cgroup")
	}
	args = append(append(append(args, c.verb), c.args...), c.id)
	out, err := RunToEnd(ctx, args, c.stdio, c.started)
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
func (r *Runtime) binary() string {
	if r.Options.BinaryName == "" {
		return runc.DefaultCommand
	}
	return r.Options.BinaryName
}

// LogFile is the name of the OCI runtime's log in a bundle, the same as the stock shim's.
const LogFile = "log.json"

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
func madeArgs(pidFile string, console *stdio.ConsoleSocket) []string {
	args := []string{"--pid-file", pidFile}
	if console != nil {
		args = append(args, "--console-socket", console.Path())
	}
	return args
}

// started is for commands that put a process with these streams into a cgroup. Nobody waits
// for what it begins: a runtime may do without the kernel's lock, and be ready before.
func started(s *stdio.Streams) func() {
	return func() {
		s.CloseChildEnds()
		go func() {
			if err := cgroups.AnnounceMove(); err != nil {
				log.L.WithError(err).Debug("a process will have to wait for its cgroup")
			}
		}()
	}
}

// Create has the OCI runtime create the container of the bundle, up to its init that waits
// to be started. The init's pid is in pidFile then.
func (r *Runtime) Create(ctx context.Context, id, pidFile string, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	return r.run(ctx, call{
		verb: "create", id: id, stdio: s.Child, started: started(s),
		args: append(madeArgs(pidFile, console), r.bundleArgs()...),
	})
}

// bundleArgs are the arguments of the commands that make a container.
func (r *Runtime) bundleArgs() []string {
	args := []string{"--bundle", r.Bundle}
	if r.Options.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	if r.Options.NoNewKeyring {
		args = append(args, "--no-new-keyring")
	}
	return args
}

// Start has the OCI runtime start a container that it has created.
func (r *Runtime) Start(ctx context.Context, id string) error {
	return r.awaited(r.run(ctx, call{verb: "start", id: id}), filepath.Join(r.Bundle, "init.pid"))
}

// awaited takes the outcome of a command that lets a process go, and waits until this has
// executed its program.
func (r *Runtime) awaited(err error, pidFile string) error {
	if err != nil {
		return err
	}
	if pid, err := ReadPidFile(pidFile); err == nil {
		awaitProgram(pid, r.isInit)
	}
	return nil
}

// Exec executes a process, whose spec is in a file.
func (r *Runtime) Exec(ctx context.Context, id, spec, pidFile, log string, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	defer os.Remove(filepath.Join(r.Bundle, log))
	err := r.run(ctx, call{
		verb: "exec", id: id, log: log, stdio: s.Child, started: started(s),
		args: append(madeArgs(pidFile, console), "--process", spec, "--detach"),
	})
	return r.awaited(err, pidFile)
}

// Restore has the OCI runtime make the container of the bundle from a checkpoint, and start
// it. The init's pid is in pidFile then.
func (r *Runtime) Restore(ctx context.Context, id string, image CheckpointImage, pidFile string, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	args := append(madeArgs(pidFile, console), "--image-path", image.Path, "--work-path", image.Work)
	if image.Parent != "" {
		args = append(args, "--parent-path", image.Parent)
	}
	if r.Options.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	// Without --no-subreaper, which crun does not know. With runc it makes no difference:
	// what it adopts comes to the shim when it ends.
	return r.run(ctx, call{
		verb: "restore", id: id, stdio: s.Child, started: started(s),
		args: append(args, "--bundle", r.Bundle, "--detach"),
	})
}

// Checkpoint has the OCI runtime write the state of the container's processes to disk, by criu.
func (r *Runtime) Checkpoint(ctx context.Context, id string, o CheckpointOptions) error {
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

// Update has the OCI runtime change the resources of the container.
func (r *Runtime) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
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

// Delete removes the container from the OCI runtime, by force with its processes, which
// end though the OCI runtime may fail. One that it does not know (any more: a checkpoint
// that ends the container removes it) is no error: then what the shim itself knows of is
// removed.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	if !r.Knows(id) {
		return r.removeUnknown(ctx, force)
	}
	lost := r.hasLost(id)
	var args []string
	if force {
		args = append(args, "--force")
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, r.patience(), fmt.Errorf("it has not ended after %v", r.patience()))
		defer cancel()
		if err := r.kill(ctx, id); err != nil {
			log.G(ctx).WithError(err).Warn("cannot kill the container without the OCI runtime; calling it")
		}
	}
	err := r.run(ctx, call{verb: "delete", id: id, args: args})
	switch {
	case err == nil && force && !lost:
		// Under load, runc gives up on a cgroup whose last process the kernel has not
		// taken out yet, with no more than a line in its log.
		return r.removeUnknown(ctx, false)
	case !lost && (err == nil || r.Knows(id)):
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
func (r *Runtime) hasLost(id string) bool {
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
func (r *Runtime) removeUnknown(ctx context.Context, kill bool) error {
	cgroup, err := r.cgroup()
	if err != nil || cgroup == nil {
		return err
	}
	if kill {
		if err := cgroup.Signal(unix.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return r.RemoveCgroup(ctx)
}

// RunDetached has the runtime create and start a container.
func (r *Runtime) RunDetached(ctx context.Context, id, pidFile string) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	return r.run(ctx, call{
		verb: "run", id: id, stdio: [3]*os.File{null, null, null},
		args: append(append(madeArgs(pidFile, nil), "--detach"), r.bundleArgs()...),
	})
}

// HasSeccomp says whether the runtime was built with seccomp. One that does not
// tell is taken to have been.
func (r *Runtime) HasSeccomp(ctx context.Context) bool {
	f, err := Features(ctx, r.Options.BinaryName)
	if err != nil || f.Linux == nil || f.Linux.Seccomp == nil || f.Linux.Seccomp.Enabled == nil {
		return true
	}
	return *f.Linux.Seccomp.Enabled
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

// ReadPidFile returns the pid that the OCI runtime has written. It does not give up at
// once where descriptors are used up: the process would go on, and nobody know of it.
func ReadPidFile(path string) (int, error) {
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
