// Command containerd-shim-pause-v2 is a containerd shim, runtime type
// io.containerd.pause.v2, that holds the namespaces of a Kubernetes pod itself:
// the pod needs no pause container, and no process in its place.
package main

import (
	"context"
	"os"
	"runtime"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/shim"
	"containerd-shim-pause-v2/task"

	"google.golang.org/protobuf/types/known/anypb"
)

// The linker sets these; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

// The main thread is the pod's sandbox, because /proc/<pid>/ns shows its
// namespaces. A goroutine that locks its thread during initialization keeps the
// main thread (package runtime, LockOSThread).
func init() { runtime.LockOSThread() }

func main() {
	thread := pod.NewMainThread()
	config := &shim.Config{
		Runtime:  "io.containerd.pause.v2",
		Version:  version,
		Revision: revision,
		// Ours first, then those by which the stock shim groups.
		GroupAnnotations: []string{
			"io.containerd.pause.v2.group",
			"io.containerd.runc.v2.group",
			"io.kubernetes.cri.sandbox-id",
		},
		SandboxImage: writeSandboxImage,
		Serve:        func(ctx context.Context, p *shim.Instance) (func(), error) { return serve(ctx, p, thread), nil },
		Intercept:    task.Intercept,
		Delete:       deleteTask,
		JoinCgroup:   joinCgroup,
		Features:     oci.Features,
	}
	go func() { os.Exit(shim.Run(context.Background(), config, os.Args[1:])) }()
	thread.Serve()
}

// serve registers the services of a shim process. stop must be called when the process ends.
func serve(ctx context.Context, p *shim.Instance, thread *pod.Thread) (stop func()) {
	events := task.NewEvents(p.Events)
	supervisor := process.NewSupervisor(p.Namespace, thread, reap.NewReaper(ctx), events)
	removed := func(bundle string, st process.Status) { p.Removed(bundle, exitOf(st)) }
	service := task.NewService(supervisor, events, decodeOptions, p.ID, (*task.HandlerOptions)(p.Options), p.Shutdown, removed)
	service.Register(p.Server)
	go cgroups.Prepare() // while containerd connects
	return supervisor.Release
}

// decodeOptions gives package task the options that package shim decodes. Neither package
// knows the other, so each has its own type with the same fields.
func decodeOptions(a *anypb.Any) (*task.HandlerOptions, error) {
	o, err := shim.DecodeOptions(a)
	return (*task.HandlerOptions)(o), err
}

// deleteTask removes what a dead shim has left of a task.
func deleteTask(ctx context.Context, r shim.DeleteRequest) (shim.Exit, error) {
	st, err := process.CleanUp(ctx, r.Namespace, r.Bundle, r.ID)
	return exitOf(st), err
}

func exitOf(st process.Status) shim.Exit {
	return shim.Exit{Pid: uint32(st.Pid), Status: st.Exit.Status, At: st.Exit.At}
}

// joinCgroup puts a process into an existing cgroup.
func joinCgroup(path string, pid int) error {
	cgroup, err := cgroups.Load(path, false)
	if err != nil {
		return err
	}
	return cgroup.Add(pid)
}
