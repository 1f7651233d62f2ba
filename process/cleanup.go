package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"

	"github.com/containerd/containerd/v2/core/mount"
)

// containerd gives the whole of a delete call 5 s (cleanupTimeout in
// core/runtime/v2/shim.go), and without its answer the exit status is lost. When a shim of
// many containers is killed, as many calls run at the same time.
const cleanUpTimeout = 4 * time.Second

// CleanUp removes what a shim that has ended left of the task in a bundle: the
// container in the OCI runtime with its processes, the sandbox's cgroup, mounts.
// Namespaces went with the shim's thread. It returns how the task ended, which is
// valid even if something could not be removed. Nothing to remove is no error:
// containerd calls this after every end of a shim.
func CleanUp(ctx context.Context, namespace, bundle, id string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, cleanUpTimeout)
	defer cancel()
	var errs []error
	record, err := readRecord(bundle)
	if errors.Is(err, os.ErrNotExist) {
		return readExit(bundle) // nothing was made, or all has been removed
	}
	switch {
	case err != nil:
		errs = append(errs, err)
	case record.Sandbox:
		errs = append(errs, cleanUpSandbox(ctx, namespace, bundle, id, record))
	default:
		rt := &oci.Runtime{Options: record.Options, Namespace: namespace, Bundle: bundle, CgroupsPath: record.CgroupsPath}
		errs = append(errs, rt.End(ctx, id), oci.RestoreSpec(bundle))
	}
	rootfs := filepath.Join(bundle, "rootfs")
	if err := mount.UnmountRecursive(rootfs, 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("cannot unmount %s: %w", rootfs, err))
	}
	st, err := readExit(bundle)
	return st, errors.Join(append(errs, err)...)
}

// cleanUpSandbox removes the pod's init, if there is one, and the cgroup, and runs
// the poststop hooks.
func cleanUpSandbox(ctx context.Context, namespace, bundle, id string, record bundleRecord) error {
	rt := &oci.Runtime{Options: record.Options, Namespace: namespace, Bundle: filepath.Join(bundle, podInitDir), CgroupsPath: record.CgroupsPath}
	var errs []error
	if _, err := os.Stat(rt.Bundle); err == nil {
		errs = append(errs, rt.End(ctx, id))
	} else {
		errs = append(errs, rt.RemoveCgroup(ctx))
	}
	errs = append(errs, record.Files.Remove(), pod.RemoveInitRoot(record.InitRoot, bundle))
	if s, err := oci.ReadSpec(bundle); err != nil {
		errs = append(errs, err)
	} else if err := pod.NewHooks(s, id, bundle, 0).Stopped(ctx); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return removeRecord(bundle)
}
