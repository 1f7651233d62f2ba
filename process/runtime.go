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
	"strings"

	runc "github.com/containerd/go-runc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

// Options are those of the runtime options that concern the OCI runtime. They
// have the meaning of the fields of the same names in containerd.runc.v1.Options.
type Options struct {
	BinaryName    string `json:"binary_name,omitempty"` // name or path, default runc
	Root          string `json:"root,omitempty"`        // default /run/containerd/runc
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
	NoPivotRoot   bool   `json:"no_pivot_root,omitempty"`
	NoNewKeyring  bool   `json:"no_new_keyring,omitempty"`
	IoUID         uint32 `json:"io_uid,omitempty"`
	IoGID         uint32 `json:"io_gid,omitempty"`
	CriuWorkPath  string `json:"criu_work_path,omitempty"`
}

// defaultRoot is where the stock shim keeps the OCI runtime's state; the same
// place makes `runc --root /run/containerd/runc/k8s.io list` work for both.
const defaultRoot = "/run/containerd/runc"

// ociRuntime calls the OCI runtime for the containers of one bundle.
type ociRuntime struct {
	options   Options
	namespace string // containerd's
	bundle    string
	reaper    *Reaper // nil in a process that does not reap
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
	_, err := os.Stat(filepath.Join(r.root(), id))
	return err == nil
}

// run calls the OCI runtime by f. An error of it carries the message that the
// runtime wrote to its log, which says more than its exit status. The log is
// called log.json like the stock shim's; another one keeps calls that run at the
// same time apart.
func (r *ociRuntime) run(verb, logName string, f func(*runc.Runc) error) error {
	if r.reaper != nil {
		r.reaper.hold()
		defer r.reaper.release()
	}
	log := filepath.Join(r.bundle, logName)
	start := fileSize(log)
	err := f(&runc.Runc{
		Command:       r.options.BinaryName,
		Log:           log,
		LogFormat:     runc.JSON,
		PdeathSignal:  unix.SIGKILL,
		Root:          r.root(),
		SystemdCgroup: r.options.SystemdCgroup,
	})
	if err == nil {
		return nil
	}
	if msg := lastError(log, start); msg != "" {
		return fmt.Errorf("OCI runtime %s failed: %s", verb, msg)
	}
	return fmt.Errorf("OCI runtime %s failed: %w", verb, err)
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

func (r *ociRuntime) create(ctx context.Context, id string, opts *runc.CreateOpts) error {
	opts.NoPivot = r.options.NoPivotRoot
	opts.NoNewKeyring = r.options.NoNewKeyring
	return r.run("create", runtimeLog, func(rt *runc.Runc) error { return rt.Create(ctx, id, r.bundle, opts) })
}

func (r *ociRuntime) start(ctx context.Context, id string) error {
	return r.run("start", runtimeLog, func(rt *runc.Runc) error { return rt.Start(ctx, id) })
}

func (r *ociRuntime) exec(ctx context.Context, id string, spec specs.Process, opts *runc.ExecOpts, logName string) error {
	opts.LogFile = filepath.Join(r.bundle, logName)
	defer os.Remove(opts.LogFile)
	return r.run("exec", logName, func(rt *runc.Runc) error { return rt.Exec(ctx, id, spec, opts) })
}

func (r *ociRuntime) restore(ctx context.Context, id string, opts *runc.RestoreOpts) error {
	opts.NoPivot = r.options.NoPivotRoot
	return r.run("restore", runtimeLog, func(rt *runc.Runc) error {
		_, err := rt.Restore(ctx, id, r.bundle, opts)
		return err
	})
}

func (r *ociRuntime) checkpoint(ctx context.Context, id string, opts *runc.CheckpointOpts, actions ...runc.CheckpointAction) error {
	return r.run("checkpoint", runtimeLog, func(rt *runc.Runc) error { return rt.Checkpoint(ctx, id, opts, actions...) })
}

func (r *ociRuntime) update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	return r.run("update", runtimeLog, func(rt *runc.Runc) error { return rt.Update(ctx, id, resources) })
}

// delete removes the container from the OCI runtime. One that it does not know
// (any more: a checkpoint that ends the container removes it) is no error.
func (r *ociRuntime) delete(ctx context.Context, id string, force bool) error {
	if !r.knows(id) {
		return nil
	}
	err := r.run("delete", runtimeLog, func(rt *runc.Runc) error {
		return rt.Delete(ctx, id, &runc.DeleteOpts{Force: force})
	})
	if err != nil && !r.knows(id) {
		return nil
	}
	return err
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

// readPidFile returns the pid that the OCI runtime has written.
func readPidFile(path string) (int, error) {
	pid, err := runc.ReadPidFile(path)
	if err != nil {
		return 0, fmt.Errorf("cannot read the pid file of the OCI runtime: %w", err)
	}
	if pid <= 0 {
		return 0, errors.New("pid file " + path + " holds no pid")
	}
	return pid, nil
}
