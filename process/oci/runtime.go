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

// Options are the runtime options that concern the OCI runtime. Each field has the meaning
// of the field of the same name in containerd.runc.v1.Options, except for
// AlwaysCallRuntime, which only this shim has.
type Options struct {
	BinaryName    string `json:"binary_name,omitempty"` // name or path, default runc
	Root          string `json:"root,omitempty"`        // default /run/containerd/runc
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
	NoPivotRoot   bool   `json:"no_pivot_root,omitempty"`
	NoNewKeyring  bool   `json:"no_new_keyring,omitempty"`
	IoUID         uint32 `json:"io_uid,omitempty"`
	IoGID         uint32 `json:"io_gid,omitempty"`
	CriuWorkPath  string `json:"criu_work_path,omitempty"`

	// AlwaysCallRuntime makes the shim call the OCI runtime even where it could do the
	// work of a runc command itself.
	AlwaysCallRuntime bool `json:"always_call_runtime,omitempty"`
}

// CheckpointOptions are the fields of containerd.runc.v1.CheckpointOptions that the shim
// passes on.
type CheckpointOptions struct {
	Path                string // directory for the images
	WorkPath            string // directory for criu's logs; a temporary one if empty
	ParentPath          string
	Exit                bool // end the container
	OpenTCP             bool
	ExternalUnixSockets bool
	Terminal            bool
	FileLocks           bool
	EmptyNamespaces     []string
}

// CheckpointImage is the checkpoint that a container is restored from; empty for a new
// container.
type CheckpointImage struct{ Path, Parent, Work string }

// defaultRoot is the stock shim's directory for the OCI runtime's state, so that
// `runc --root /run/containerd/runc/k8s.io list` shows the containers of both shims.
const defaultRoot = "/run/containerd/runc"

// Runtime calls the OCI runtime for the containers of one bundle.
type Runtime struct {
	Options   Options
	Namespace string // containerd's namespace, such as k8s.io
	Bundle    string
	// CgroupsPath is the container's, from its spec; empty if others use that cgroup, too.
	CgroupsPath string
	Reaper      *reap.Reaper  // nil in a process that does not reap
	Starter     *Starter      // nil in a process whose threads do not end before it
	Force       time.Duration // for a delete by force; zero means forceTimeout
}

func (r *Runtime) patience() time.Duration {
	if r.Force == 0 {
		return forceTimeout
	}
	return r.Force
}

// Root returns the directory in which the OCI runtime keeps its state.
func (r *Runtime) Root() string {
	root := r.Options.Root
	if root == "" {
		root = defaultRoot
	}
	return filepath.Join(root, r.Namespace)
}

// Knows reports whether the OCI runtime has state of the container. With runc, crun and
// youki that is a directory with the container's name.
func (r *Runtime) Knows(id string) bool {
	_, err := os.Stat(r.stateDir(id))
	return err == nil
}

func (r *Runtime) stateDir(id string) string { return filepath.Join(r.Root(), id) }

// call is one call of the OCI runtime.
type call struct {
	verb string
	args []string // the verb's options, without the global ones and the id
	id   string
	log  string // name of the log in the bundle; empty for LogFile

	// stdio are the files of the runtime and of a process that it makes; nil stands for
	// /dev/null. Without standard output and error, an error of the call has what the
	// runtime wrote to them.
	stdio [3]*os.File
	// started is called once the runtime has started, with its own copies of stdio.
	started func()
}

// run calls the OCI runtime. Its error has the message in the runtime's log, which says
// more than the exit status. Calls that may run at the same time need logs of different
// names.
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
	out, err := RunToEnd(ctx, r.Starter, args, c.stdio, c.started)
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

// lastError returns the last message of level error or fatal in a runtime's JSON log, from
// an offset on. It skips lines that are not JSON.
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

// madeArgs returns the arguments that make the OCI runtime hand over the pid and the
// console of a new process.
func madeArgs(pidFile string, console *stdio.ConsoleSocket) []string {
	args := []string{"--pid-file", pidFile}
	if console != nil {
		args = append(args, "--console-socket", console.Path())
	}
	return args
}

// started returns a function for call.started, for a command that puts a process with these
// streams into a cgroup. AnnounceMove runs in the background, because it may take longer
// than a runtime that does not need the kernel's lock.
func started(s *stdio.Streams) func() {
	return func() {
		s.CloseChildEnds()
		go func() {
			if err := cgroups.AnnounceMove(); err != nil {
				log.L.WithError(err).Debug("cannot announce a move to a cgroup: a new process may have to wait for its cgroup")
			}
		}()
	}
}

// Create has the OCI runtime create the container of the bundle. The container's init then
// waits to be started, and its pid is in pidFile.
func (r *Runtime) Create(ctx context.Context, id, pidFile string, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	return r.run(ctx, call{
		verb: "create", id: id, stdio: s.Child, started: started(s),
		args: append(madeArgs(pidFile, console), r.bundleArgs()...),
	})
}

// bundleArgs returns the arguments of the commands that make a container from the bundle.
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

// Start has the OCI runtime start a container that Create has made, and waits until the init
// executes the container's program.
func (r *Runtime) Start(ctx context.Context, id string) error {
	return r.awaited(r.run(ctx, call{verb: "start", id: id}), filepath.Join(r.Bundle, "init.pid"))
}

// awaited returns err, the error of a command that starts a process. If it is nil, it first
// waits until that process executes its program.
func (r *Runtime) awaited(err error, pidFile string) error {
	if err != nil {
		return err
	}
	if pid, err := ReadPidFile(pidFile); err == nil {
		awaitProgram(pid, r.isInit)
	}
	return nil
}

// Exec has the OCI runtime execute a process in the container. spec is the path of the
// process's spec, and log the name of a log in the bundle that no other call uses. The
// pid of the process is in pidFile afterwards.
func (r *Runtime) Exec(ctx context.Context, id, spec, pidFile, log string, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	defer os.Remove(filepath.Join(r.Bundle, log))
	err := r.run(ctx, call{
		verb: "exec", id: id, log: log, stdio: s.Child, started: started(s),
		args: append(madeArgs(pidFile, console), "--process", spec, "--detach"),
	})
	return r.awaited(err, pidFile)
}

// Restore has the OCI runtime make the container of the bundle from a checkpoint and start
// it. The pid of its init is in pidFile afterwards.
func (r *Runtime) Restore(ctx context.Context, id string, image CheckpointImage, pidFile string, s *stdio.Streams, console *stdio.ConsoleSocket) error {
	args := append(madeArgs(pidFile, console), "--image-path", image.Path, "--work-path", image.Work)
	if image.Parent != "" {
		args = append(args, "--parent-path", image.Parent)
	}
	if r.Options.NoPivotRoot {
		args = append(args, "--no-pivot")
	}
	// --no-subreaper is left out, as crun does not know it. With runc it makes no
	// difference: children that runc adopts become the shim's when runc ends.
	return r.run(ctx, call{
		verb: "restore", id: id, stdio: s.Child, started: started(s),
		args: append(args, "--bundle", r.Bundle, "--detach"),
	})
}

// Checkpoint has the OCI runtime write the state of the container's processes to disk, with
// criu.
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

// forceTimeout bounds how long the OCI runtime may take for a delete by force. No client
// waits for such a delete, so none would give up on a runtime that hangs.
const forceTimeout = time.Minute

// Delete has the OCI runtime delete the container. By force, it first kills the container's
// processes itself, so that they end even if the OCI runtime fails. It is no error if the
// OCI runtime does not know the container, as after a checkpoint that ended it; then Delete
// removes its cgroup only, by force with the processes there.
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
			log.G(ctx).WithError(err).Warn("calling the OCI runtime to kill the container")
		}
	}
	err := r.run(ctx, call{verb: "delete", id: id, args: args})
	switch {
	case err == nil && force && !lost:
		// runc may have left a busy cgroup behind, see End.
		return r.removeUnknown(ctx, false)
	case !lost && (err == nil || r.Knows(id)):
		return err
	}
	// runc delete --force succeeds without state, but removes no more than its directory.
	if err := os.RemoveAll(r.stateDir(id)); err != nil {
		return err
	}
	return r.removeUnknown(ctx, force)
}

// hasLost reports whether the OCI runtime has lost its state of a container, and so cannot
// know what to remove. The directory may be empty, or have only exec.fifo if the runtime
// was killed while it made the container; or a full disk may have cut off the state file.
func (r *Runtime) hasLost(id string) bool {
	files, err := os.ReadDir(r.stateDir(id))
	if err != nil {
		return false
	}
	if !slices.ContainsFunc(files, func(f os.DirEntry) bool { return f.Name() != "exec.fifo" }) {
		return true
	}
	for _, name := range []string{"state.json", "status"} { // the first is runc's and youki's, the second crun's
		data, err := os.ReadFile(filepath.Join(r.stateDir(id), name))
		if err == nil && !json.Valid(data) {
			return true
		}
	}
	return false
}

// removeUnknown removes the cgroup of a container that the OCI runtime does not know, and
// will never remove. With kill set, it first kills the processes in the cgroup: a runtime
// that was killed while it made the container may have left one there.
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

// RunDetached has the OCI runtime create and start the container of the bundle, with
// /dev/null as its streams. The pid of its init is in pidFile afterwards.
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

// HasSeccomp reports whether the OCI runtime was built with seccomp support. It returns
// true if the runtime does not say.
func (r *Runtime) HasSeccomp(ctx context.Context) bool {
	f, err := Features(ctx, r.Options.BinaryName)
	if err != nil || f.Linux == nil || f.Linux.Seccomp == nil || f.Linux.Seccomp.Enabled == nil {
		return true
	}
	return *f.Linux.Seccomp.Enabled
}

// Features returns the features that an OCI runtime, given by name or path (default runc),
// says it implements (OCI runtime specification, features.md).
func Features(ctx context.Context, binary string) (*features.Features, error) {
	rt := runc.Runc{Command: binary}
	f, err := rt.Features(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot get the features of OCI runtime %q: %w", binary, err)
	}
	return f, nil
}

// descriptorTimeout bounds how long ReadPidFile tries again for want of descriptors.
const descriptorTimeout = 10 * time.Second

// ReadPidFile returns the pid that the OCI runtime has written to a file. If there are no
// free descriptors, it tries again for a while: otherwise the process would run unknown to
// the shim.
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
		return 0, fmt.Errorf("cannot use the pid file %s of the OCI runtime: it has pid %d", path, pid)
	}
	return pid, nil
}

// isUsedUp reports whether err means that there are no free descriptors.
func isUsedUp(err error) bool { return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) }
