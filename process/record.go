package process

import (
	"errors"
	"os"
	"path/filepath"
	"time"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// bundleRecord is the record in a bundle that CleanUp needs after a shim has died.
type bundleRecord struct {
	Options     oci.Options `json:"options"`
	Sandbox     bool        `json:"sandbox"`
	CgroupsPath string      `json:"cgroups_path"` // empty if the task shares the cgroup with others
	InitRoot    string      `json:"init_root,omitempty"`
	Files       *pod.Files  `json:"files,omitempty"`
}

// exitRecord says how the task in a bundle ended.
type exitRecord struct {
	Pid int `json:"pid"`
	Exit
}

const (
	recordFile = "pause-shim.json"
	exitFile   = "pause-exit.json"
)

// writeRecord writes the record of a task that is about to be created.
func writeRecord(bundle string, r bundleRecord) error {
	return oci.WriteJSON(filepath.Join(bundle, recordFile), r)
}

// writeStockRecord leaves in a container's bundle what the stock shim needs to clean up.
// This shim may be selected by its path, with the stock shim's runtime type. If containerd
// and the shim are both killed, the new containerd then calls the stock shim to clean up,
// because containerd remembers the path for the sandbox only (loadShim in
// core/runtime/v2/shim_load.go).
// Source of the file names: containerd, cmd/containerd-shim-runc-v2/runc/container.go.
func writeStockRecord(bundle string, o oci.Options) error {
	if err := oci.WriteJSON(filepath.Join(bundle, "options.json"), o); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "runtime"), []byte(o.BinaryName), 0o600)
}

// removeRecord removes the record of a task of which nothing is left.
func removeRecord(bundle string) error {
	err := os.Remove(filepath.Join(bundle, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func readRecord(bundle string) (r bundleRecord, err error) {
	err = oci.ReadJSON(filepath.Join(bundle, recordFile), &r)
	return r, err
}

func writeExit(bundle string, st Status) error {
	return oci.WriteJSON(filepath.Join(bundle, exitFile), exitRecord{st.Pid, st.Exit})
}

// readExit returns the exit that the shim recorded. There is no record if the shim died
// before it could report the exit; then the task counts as killed now.
func readExit(bundle string) (Status, error) {
	var r exitRecord
	err := oci.ReadJSON(filepath.Join(bundle, exitFile), &r)
	switch {
	case err == nil:
		return Status{Stopped, r.Pid, r.Exit}, nil
	case !errors.Is(err, os.ErrNotExist):
		return Status{}, err
	}
	pid, _ := oci.ReadPidFile(filepath.Join(bundle, "init.pid")) // only a container has a pid file
	return Status{Stopped, max(pid, 0), Exit{Status: reap.ExitSignalBase + uint32(unix.SIGKILL), At: time.Now()}}, nil
}
