// Package cadvisor tests that cAdvisor, the library that is part of kubelet, finds the
// network counters of a pod whose sandbox has no process, as it finds those of a
// pause container. It is a module of its own, so that the shim's does not require
// cAdvisor.
//
// After `make setup build`, as root, in this directory:
//
//	PAUSE_TEST_PATH=$PWD/../../bin:$PWD/../../bin/tools go test -v -count=1
//
// These variables are as for the other integration tests:
//
//	PAUSE_TEST_PATH     directories of containerd, its tools and the shims, as in $PATH
//	PAUSE_TEST_RUNTIME  the OCI runtime: "runc"
package cadvisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/integration/nodetest"
)

// theNode is where all tests run, one after the other.
var theNode *node.Node

// The handler by which pods share a shim, and those by which the shim makes pods through the
// Sandbox API.
const (
	sharedShim           = "pause-shared"
	sandboxHandler       = "pause-sandbox"
	sharedSandboxHandler = "pause-shared-sandbox"
)

const (
	// A stuck test should fail, with the daemon's log, long before the whole run does.
	testDeadline = 5 * time.Minute

	// What a test waits for comes within a second, but in a machine that is emulated.
	waitDeadline = 2 * time.Minute
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	path := os.Getenv("PAUSE_TEST_PATH")
	if path == "" {
		fmt.Fprintln(os.Stderr, "These tests need a set-up of their own: run `make setup build`, and set PAUSE_TEST_PATH.")
		return 1
	}
	ociRuntime := os.Getenv("PAUSE_TEST_RUNTIME")
	if ociRuntime == "" {
		ociRuntime = "runc"
	}
	ctx := context.Background()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	var err error
	theNode, err = node.Start(ctx, node.Options{
		Path:       filepath.SplitList(path),
		OCIRuntime: ociRuntime,
		Handlers: []node.Handler{
			{Name: sandboxHandler, Type: node.PauseType, OCIRuntime: ociRuntime, Sandboxer: "shim"},
			{Name: sharedSandboxHandler, Type: node.SharedType, OCIRuntime: ociRuntime, Sandboxer: "shim"},
		},
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("node in %s: %s, snapshotter %s\n", theNode.Dir, ociRuntime, theNode.Snapshotter)
	go func() {
		<-interrupted
		fmt.Fprintln(os.Stderr, "interrupted: removing the node")
		theNode.Close()
		os.Exit(130)
	}()
	code := 1
	if err = configure(); err == nil {
		code = m.Run()
	}
	if left := theNode.Leftovers(ctx); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left at the end:\n  %s\n", strings.Join(left, "\n  "))
		code = 1
	}
	if err := errors.Join(err, theNode.Close()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// checkLeftovers is the last clean-up of a test. If the test has failed, the logs of
// containerd and of cAdvisor are shown.
func checkLeftovers(t *testing.T) {
	t.Helper()
	nodetest.CheckLeftovers(t, theNode, testDeadline, nil)
	if t.Failed() {
		if log, err := os.ReadFile(logFile()); err == nil {
			t.Logf("log of cAdvisor:\n%s", log)
		}
	}
}

// must is [nodetest.Must].
var must = nodetest.Must

// eventually is [nodetest.Eventually] with this package's limit.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	nodetest.Eventually(t, waitDeadline, what, condition)
}

// expectEqual is [nodetest.ExpectEqual].
func expectEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	nodetest.ExpectEqual(t, what, got, want)
}
