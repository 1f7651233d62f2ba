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

// containerd allows 5 s for a whole delete call (cleanupTimeout in
// core/runtime/v2/shim.go), and the exit status is lost without an answer. When a shim
// with many containers is killed, containerd makes one call per container, all at once.
const cleanUpTimeout = 4 * time.Second

// CleanUp removes what a dead shim has left of the task in a bundle: a container's
// state in the OCI runtime and its processes, or a sandbox's cgroup, and the mounts. The
// kernel removed the namespaces with the shim's thread. CleanUp returns how the task
// ended, which is valid even with an error. It is no error if nothing is left, because
// containerd calls delete after every end of a shim.
func CleanUp(ctx context.Context, namespace, bundle, id string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, cleanUpTimeout)
	defer cancel()
	var errs []error
	record, err := readRecord(bundle)
	if errors.Is(err, os.ErrNotExist) {
		return readExit(bundle) // nothing was created, or everything has been removed
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

// cleanUpSandbox removes the pod init, if there is one, and the cgroup, and runs the
// poststop hooks.
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
