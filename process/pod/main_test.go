package pod

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"

	"golang.org/x/sys/unix"
)

// The tests' main thread never enters a pod, because tests take /proc/self/ns for the host's namespaces.
func init() { runtime.LockOSThread() }

// startThread starts a thread that lives for ever, as the main thread does, and returns it and its ID.
func startThread() (*Thread, int) {
	thread, tid := NewMainThread(), make(chan int)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		thread.Serve()
	}()
	return thread, <-tid
}

// hostPath returns a path of a namespace of the host, through a process that is not the shim.
func hostPath(t *testing.T, name string) string {
	t.Helper()
	return fmt.Sprintf("/proc/%d/ns/%s", proctest.Sleeper(t, nil), name)
}

// run runs a program to its end.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}
