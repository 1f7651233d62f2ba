// Command containerd-shim-pause-v2 is a containerd shim, runtime type
// io.containerd.pause.v2, that holds the namespaces of a Kubernetes pod itself:
// the pod needs no pause container, and no process in its place.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process"
	"containerd-shim-pause-v2/process/carry"
	"containerd-shim-pause-v2/process/launch"
	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"
	"containerd-shim-pause-v2/shim"
	"containerd-shim-pause-v2/shim/install"
	"containerd-shim-pause-v2/task"

	"google.golang.org/protobuf/types/known/anypb"
)

// The linker sets these; see the Makefile.
var (
	version  = "unknown"
	revision = "unknown"
)

// self is this program, even if its file has been removed (proc_pid_exe(5)).
const self = "/proc/self/exe"

// The main thread is the pod's sandbox, because /proc/<pid>/ns shows its
// namespaces. A goroutine that locks its thread during initialization keeps the
// main thread (package runtime, LockOSThread).
func init() { runtime.LockOSThread() }

func main() {
	thread := pod.NewMainThread()
	config := &shim.Config{
		Runtime:       "io.containerd.pause.v2",
		SharedRuntime: "io.containerd.pause-shared.v2",
		Version:       version,
		Revision:      revision,
		// Ours first, then those by which the stock shim groups.
		GroupAnnotations: []string{
			"io.containerd.pause.v2.group",
			"io.containerd.runc.v2.group",
		},
		PodAnnotation: oci.SandboxIDAnnotation,
		SandboxImage:  writeSandboxImage,
		Install:       func(w io.Writer, dir string) error { return install.Program(w, self, dir, install.Shim) },
		Uninstall:     func(w io.Writer, dir string) error { return install.RemoveProgram(w, self, dir, install.Shim) },
		Serve:         func(ctx context.Context, p *shim.Instance) (func(), error) { return serve(ctx, p, thread) },
		CheckSaved:    checkTasks,
		Intercept:     task.Intercept,
		Delete:        deleteTask,
		JoinCgroup:    joinCgroup,
		Features:      oci.Features,
	}
	go func() { os.Exit(shim.Run(context.Background(), config, os.Args[1:])) }()
	thread.Serve()
}

// serve registers the services of a shim process. stop must be called when the process ends.
// The sandbox of a process that is not shared lives in the main thread.
// It goes on with the tasks of the program before this one, if there was one.
func serve(ctx context.Context, p *shim.Instance, mainThread *pod.Thread) (stop func(), err error) {
	saved, err := decodeTasks(p.Saved)
	if err != nil {
		return nil, err
	}
	events := task.NewEvents(p.Events)
	thread := mainThread
	if p.Shared {
		thread = nil
	}
	reaper := reap.NewReaper(ctx, saved.Children()...)
	supervisor := process.NewSupervisor(p.Namespace, thread, reaper, events)
	supervisor.Begin = p.Begin
	service := task.NewService(supervisor, events, decodeOptions, taskOptions(p.Options), task.Host{
		Runtime:  p.Runtime,
		ID:       p.ID,
		Shared:   p.Shared,
		Expects:  p.Expects,
		Forget:   p.Forget,
		Removed:  func(id, bundle string, st process.Status) { p.Removed(id, bundle, exitOf(st)) },
		Shutdown: p.Shutdown,
	})
	service.Register(p.Server)
	p.GiveUp, p.Idle = service.GiveUp, service.Idle
	p.RunCommand = func(cmd *exec.Cmd) error {
		defer reaper.Hold()()
		return launch.Run(cmd)
	}
	p.Save = func(ctx context.Context) (json.RawMessage, []int, error) {
		var files carry.Files
		tasks, err := supervisor.Save(ctx, &files)
		if err != nil {
			return nil, nil, err
		}
		data, err := json.Marshal(tasks)
		return data, files.Numbers(), err
	}
	p.Continue = supervisor.Continue
	if err := supervisor.Restore(saved); err != nil {
		return nil, err
	}
	go cgroups.Prepare() // while containerd connects
	return supervisor.Release, nil
}

// checkTasks fails if this program does not understand the tasks that another has saved.
func checkTasks(saved json.RawMessage) error {
	_, err := decodeTasks(saved)
	return err
}

// decodeTasks decodes the tasks that another program has saved; there are none if saved is
// empty. It refuses what this program does not know, and would lose.
func decodeTasks(saved json.RawMessage) (*process.Saved, error) {
	tasks := new(process.Saved)
	if len(saved) == 0 {
		return tasks, nil
	}
	decoder := json.NewDecoder(bytes.NewReader(saved))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(tasks); err != nil {
		return nil, fmt.Errorf("cannot decode the shim's tasks: %w", err)
	}
	return tasks, nil
}

// decodeOptions gives package task the options that package shim decodes.
func decodeOptions(a *anypb.Any) (*task.HandlerOptions, error) {
	o, err := shim.DecodeOptions(a)
	if err != nil {
		return nil, err
	}
	return taskOptions(o), nil
}

// taskOptions are the options that concern package task. Neither package knows the other.
func taskOptions(o *shim.HandlerOptions) *task.HandlerOptions {
	return &task.HandlerOptions{
		Runc:                    o.Runc,
		EnableUnprivilegedPorts: o.EnableUnprivilegedPorts,
		EnableUnprivilegedICMP:  o.EnableUnprivilegedICMP,
		RestrictOOMScoreAdj:     o.RestrictOOMScoreAdj,
		AlwaysCallRuntime:       o.AlwaysCallRuntime,
	}
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
