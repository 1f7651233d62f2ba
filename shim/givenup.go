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

// containerd calls `delete` also for a shim that lives: when it starts again and the shim's
// socket is gone, or the shim does not answer in time (loadShim in
// core/runtime/v2/shim_load.go). It then takes the sandbox or container for removed. So
// `delete` ends such a shim, which would hold the pod's namespaces for ever.
//
// The bundle of the one for which a shim was started tells which process to end, for as
// long as that one exists in the shim. When the shim has removed it by an RPC, it removes
// the record, too: it may go on to serve containers of the group.

const (
	// processFile in the bundle holds a shimProcess.
	processFile = "pause-process.json"

	// endLimit is how long `delete` waits for the end of a shim that it has killed. The
	// kernel needs longer only for one that waits for a device.
	endLimit = 2 * time.Second

	// shutdownLimit is how long `delete` waits for the answer of a shim that it asks to end.
	shutdownLimit = 500 * time.Millisecond

	// endInterval is how often it is looked whether a killed shim has ended.
	endInterval = 5 * time.Millisecond
)

// shimProcess is what tells a shim process from all others, also from one that has got
// its pid later, even after a reboot.
type shimProcess struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks after boot: starttime of proc_pid_stat(5)
	Name  string `json:"name"`  // of the program, up to 15 bytes: comm of proc_pid_stat(5)
}

// recordProcess records in the bundle that this process serves what the bundle is of.
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

// forgetProcess takes the record back.
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
	if err == nil && p.Pid <= 1 { // kill(2) takes 0 and below for groups, and 1 is no shim.
		err = errors.New("it names no process")
	}
	if err != nil {
		return p, fmt.Errorf("cannot read shim process from %s: %w", path, err)
	}
	return p, nil
}

// findProcess returns the process pid, and whether anything of it runs yet. The error is
// [fs.ErrNotExist] if there is none.
func findProcess(pid int) (p shimProcess, runs bool, err error) {
	path := fmt.Sprintf("/proc/%d/stat", pid)
	stat, err := os.ReadFile(path)
	if errors.Is(err, unix.ESRCH) { // It has ended after the file was opened.
		err = fs.ErrNotExist
	}
	if err != nil {
		return p, false, err
	}
	// The name, in parentheses, may hold anything.
	from, to := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if from < 0 || to < from {
		return p, false, fmt.Errorf("cannot decode %s: %q", path, stat)
	}
	fields := strings.Fields(string(stat[to+1:]))
	const state, threads, start = 0, 17, 19 // their numbers in proc_pid_stat(5), less 3
	if len(fields) <= start {
		return p, false, fmt.Errorf("cannot decode %s: %q", path, stat)
	}
	ticks, err := strconv.ParseUint(fields[start], 10, 64)
	if err != nil {
		return p, false, fmt.Errorf("cannot decode %s: %w", path, err)
	}
	// A main thread that has ended is a zombie while others of the process run. A process
	// that is being reaped has no threads.
	ended := fields[threads] == "0" || fields[state] == "Z" && fields[threads] == "1"
	return shimProcess{Pid: pid, Start: ticks, Name: string(stat[from+1 : to])}, !ended, nil
}

// runs says whether the process has not ended.
func (p shimProcess) runs() (bool, error) {
	found, runs, err := findProcess(p.Pid)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return runs && found == p, err
}

// kill ends the process by SIGKILL and waits until nothing of it runs. It is no error if
// it has ended before.
func (p shimProcess) kill(ctx context.Context) error {
	handle, err := os.FindProcess(p.Pid) // a pidfd, which stays with the process
	if err != nil {
		return fmt.Errorf("cannot find shim process %d: %w", p.Pid, err)
	}
	defer func() { _ = handle.Release() }()
	// After the handle has been opened, as the pid may have become another's before.
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
			return fmt.Errorf("cannot end shim process %d: it runs on after SIGKILL", p.Pid)
		}
	}
}

// endGivenUp ends the shim that serves what the bundle is of, the task or sandbox id, if
// it has not removed that itself.
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

// askToEnd asks the shim whose socket the bundle names, if it serves, to end unless it serves
// others: containerd may have been killed after it had the last task deleted, before it
// could ask for that. A shim that does not answer may serve others.
func askToEnd(ctx context.Context, bundle, id string) error {
	path, err := readAddress(bundle)
	if err != nil || path == "" {
		return err
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil // It has ended.
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, shutdownLimit)
	defer cancel()
	_, err = taskapi.NewTTRPCTaskClient(client).Shutdown(ctx, &taskapi.ShutdownRequest{ID: id})
	if errors.Is(err, ttrpc.ErrClosed) || status.Code(err) == codes.Unimplemented {
		return nil // It ends by itself.
	}
	return err
}
