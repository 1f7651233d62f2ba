package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// containerd may give up a shim that still lives: after a restart, when it finds the shim's
// socket gone or gets no answer in time (loadShim in core/runtime/v2/shim_load.go). It then
// calls `delete`, and takes the sandbox or container for removed. So `delete` ends such a
// shim, which would otherwise hold the pod's namespaces forever.
//
// A shim records its process in the bundle of the container or sandbox for which it was
// started. It removes the record when an RPC has removed that container or sandbox, since
// it may go on to serve other containers of the group.

const (
	// processFile in the bundle holds a shimProcess, in JSON.
	processFile = "pause-process.json"

	// endLimit is how long `delete` waits for a killed shim to end. The kernel needs longer
	// only if the shim waits for a device.
	endLimit = 2 * time.Second

	// shutdownLimit is how long `delete` waits for the answer of a shim that it asks to end.
	shutdownLimit = 500 * time.Millisecond

	// endInterval is how often `delete` checks whether a killed shim has ended.
	endInterval = 5 * time.Millisecond
)

// shimProcess identifies a shim process. It does not match another process that gets the
// same pid later, even after a reboot.
type shimProcess struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks after boot: starttime of proc_pid_stat(5)
	Name  string `json:"name"`  // of the program, up to 15 bytes: comm of proc_pid_stat(5)
}

// recordProcess records in the bundle that this process serves the bundle's container or
// sandbox.
func recordProcess(bundle string) error {
	p, _, err := findProcess(os.Getpid())
	if err != nil {
		return fmt.Errorf("cannot record shim process: %w", err)
	}
	data, err := json.Marshal(p)
	if err == nil {
		err = replaceFile(filepath.Join(bundle, processFile), data)
	}
	if err != nil {
		return fmt.Errorf("cannot record shim process: %w", err)
	}
	return nil
}

// forgetProcess removes the record from the bundle, if there is one.
func forgetProcess(bundle string) error {
	err := os.Remove(filepath.Join(bundle, processFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// recordedProcess returns the process that is recorded in the bundle. Without a record
// the error is [fs.ErrNotExist].
func recordedProcess(bundle string) (p shimProcess, err error) {
	path := filepath.Join(bundle, processFile)
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &p)
	}
	if err == nil && p.Pid <= 1 { // kill(2) takes pids below 1 for groups, and pid 1 is no shim.
		err = fmt.Errorf("%d is not the pid of a shim", p.Pid)
	}
	if err != nil {
		return p, fmt.Errorf("cannot read shim process from %s: %w", path, err)
	}
	return p, nil
}

// findProcess returns the process with the pid, and whether any of its threads still runs.
// The error is [fs.ErrNotExist] if there is no such process.
func findProcess(pid int) (p shimProcess, runs bool, err error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(path)
	if errors.Is(err, unix.ESRCH) { // The process has ended since the file was opened.
		err = fs.ErrNotExist
	}
	if err != nil {
		return p, false, err
	}
	// The name is in parentheses, and may contain parentheses itself.
	from, to := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if from < 0 || to < from {
		return p, false, fmt.Errorf("cannot decode %s: %q", path, stat)
	}
	fields := strings.Fields(string(stat[to+1:]))
	const state, threads, start = 0, 17, 19 // the fields' numbers in proc_pid_stat(5), less 3
	if len(fields) <= start {
		return p, false, fmt.Errorf("cannot decode %s: %q", path, stat)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return p, false, fmt.Errorf("cannot decode %s: %w", path, err)
	}
	// A main thread that has ended stays a zombie while other threads of the process run. A
	// process that is being reaped has no threads.
	ended := fields[threads] == "0" || fields[state] == "Z" && fields[threads] == "1"
	return shimProcess{Pid: pid, Start: ticks, Name: string(stat[from+1 : to])}, !ended, nil
}

// runs says whether the process still runs.
func (p shimProcess) runs() (bool, error) {
	found, runs, err := findProcess(p.Pid)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return runs && found == p, err
}

// kill ends the process with SIGKILL and waits until none of its threads runs. It returns
// nil if the process has already ended.
func (p shimProcess) kill(ctx context.Context) error {
	handle, err := os.FindProcess(p.Pid) // a pidfd, which stays with the process
	if err != nil {
		return fmt.Errorf("cannot find shim process %d: %w", p.Pid, err)
	}
	defer func() { _ = handle.Release() }()
	// Check after opening the pidfd: the pid may have been reused before.
	if runs, err := p.runs(); err != nil || !runs {
		return err
	}
	if err := handle.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot kill shim process %d: %w", p.Pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	for {
		if runs, err := p.runs(); err != nil || !runs {
			return err
		}
		if !sleep(ctx, endInterval) {
			return fmt.Errorf("cannot end shim process %d: it still runs after SIGKILL", p.Pid)
		}
	}
}

// endGivenUp ends the shim that serves the task or sandbox id in the bundle, unless the
// shim has removed that task or sandbox itself.
func endGivenUp(ctx context.Context, bundle, id string) error {
	p, err := recordedProcess(bundle)
	switch {
	case err == nil:
		return p.kill(ctx)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return askToEnd(ctx, bundle, id)
}

// askToEnd asks the shim whose socket the bundle names, if it runs, to end unless it serves
// other tasks. containerd may have been killed after it deleted the last task and before it
// called Shutdown. A shim that does not answer is left alone: it may serve other tasks.
func askToEnd(ctx context.Context, bundle, id string) error {
	path, err := readAddress(bundle)
	if err != nil || path == "" {
		return err
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil // The shim has ended.
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	if isShared(path) {
		return askToGiveUp(ctx, client, bundle, id)
	}
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	_, err = taskapi.NewTTRPCTaskClient(client).Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	if errors.Is(err, ttrpc.ErrClosed) || status.Code(err) == codes.Unimplemented {
		return nil // The shim ends by itself.
	}
	if err != nil {
		return fmt.Errorf("cannot ask the shim at %s to end: %w", path, err)
	}
	return nil
}

// askToGiveUp asks a shared shim to remove what is in the bundle, since containerd will
// not.
func askToGiveUp(ctx context.Context, client *ttrpc.Client, bundle, id string) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	err := callSeats(ctx, client, giveUpMethod, id, bundle)
	if errors.Is(err, ttrpc.ErrClosed) {
		return nil // The shim has ended.
	}
	if err != nil {
		return fmt.Errorf("cannot ask the shared shim to give %s up: %w", id, err)
	}
	return nil
}
