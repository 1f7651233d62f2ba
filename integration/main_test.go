// Package integration tests the shim on real containerd, with real OCI runtimes,
// cgroups, namespaces and networks. What must be the same with the stock shim is
// tested with both, so that the stock shim shows whether a test is right.
//
// `make test` runs it; it sets these variables, of which only the first is needed:
//
//	PAUSE_TEST_PATH     directories of containerd, its tools and the shims, as in $PATH
//	PAUSE_TEST_SHIMS    which shims to test: "runc,pause,pause-shared"
//	PAUSE_TEST_RUNTIME  the OCI runtime: "runc"
//	PAUSE_TEST_CGROUPS  who makes cgroups: "cgroupfs", or "systemd"
//	PAUSE_TEST_PATIENCE by how much the machine may be slower than usual: 1
package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
	"containerd-shim-pause-v2/integration/nodetest"
)

var (
	// theNode is where all tests run, one after the other.
	theNode *node.Node

	// shims are the handlers of CRI that are tested.
	shims []string

	ociRuntime = "runc"

	// patience is the factor of all time limits.
	patience = time.Duration(1)

	// systemdCgroup says that systemd makes the cgroups of containers.
	systemdCgroup bool
)

// testDeadline is how long a test may take. A stuck one should fail, with the
// daemon's log, long before the whole run does.
func testDeadline() time.Duration { return patience * 3 * time.Minute }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	path := os.Getenv("PAUSE_TEST_PATH")
	if path == "" {
		fmt.Fprintln(os.Stderr, "These tests need a set-up of their own: run `make test`.")
		return 1
	}
	shims = []string{"runc", "pause", sharedShim}
	if s := os.Getenv("PAUSE_TEST_SHIMS"); s != "" {
		shims = strings.Split(s, ",")
	}
	if r := os.Getenv("PAUSE_TEST_RUNTIME"); r != "" {
		ociRuntime = r
	}
	systemdCgroup = os.Getenv("PAUSE_TEST_CGROUPS") == "systemd"
	if p := os.Getenv("PAUSE_TEST_PATIENCE"); p != "" {
		factor, err := strconv.Atoi(p)
		if err != nil {
			fmt.Fprintln(os.Stderr, "PAUSE_TEST_PATIENCE:", err)
			return 1
		}
		patience = time.Duration(factor)
	}
	if rootless() {
		if err := becomeRootless(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	ctx := context.Background()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	scratch, err := os.MkdirTemp("", "pause-test-runtimes-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	hung, err := hangingHandlers(scratch)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	troubled, err := troubledHandlers(scratch)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	theNode, err = node.Start(ctx, nodeOptions(filepath.SplitList(path), slices.Concat(handlers(), hung, troubled)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("node in %s: %s, snapshotter %s, shims %s\n", theNode.Dir, ociRuntime, theNode.Snapshotter, strings.Join(shims, " "))
	go func() {
		<-interrupted
		fmt.Fprintln(os.Stderr, "interrupted: removing the node")
		theNode.Close()
		os.RemoveAll(scratch)
		os.Exit(130)
	}()
	code := m.Run()
	if left := theNode.Leftovers(ctx); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left at the end:\n  %s\n", strings.Join(left, "\n  "))
		code = 1
	}
	if err := theNode.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// nodeOptions are those of a node of which the environment says how it should be.
func nodeOptions(path []string, handlers []node.Handler) node.Options {
	return node.Options{Path: path, OCIRuntime: ociRuntime, SystemdCgroup: systemdCgroup, Patience: patience, Handlers: handlers}
}

// handlers are those that the node has beside one for each shim.
func handlers() []node.Handler {
	list := slices.Concat(brokenHandlers(), currentHandlers(), boundedHandlers())
	return append(list,
		node.Handler{Name: sandboxHandler, Type: node.PauseType, OCIRuntime: ociRuntime, Sandboxer: "shim"},
		node.Handler{Name: sharedSandboxHandler, Type: node.SharedType, OCIRuntime: ociRuntime, Sandboxer: "shim"},
	)
}

// eachShim runs a test once with each shim, and fails it if something is left
// after its own clean-up.
func eachShim(t *testing.T, test func(t *testing.T, shim string)) {
	t.Helper()
	for _, shim := range shims {
		t.Run(shim, func(t *testing.T) {
			t.Cleanup(func() { checkLeftovers(t, shim) })
			test(t, shim)
		})
	}
}

// withPause runs a test with this project's shim only, where the stock one
// differs. It does nothing if that is not among the shims to be tested.
func withPause(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	if !slices.Contains(shims, "pause") {
		t.Skip("PAUSE_TEST_SHIMS is without the shim that this is about")
	}
	t.Run("pause", func(t *testing.T) {
		t.Cleanup(func() { checkLeftovers(t, "pause") })
		test(t)
	})
}

// sharedShim is the shim under test by the name under which pods share one.
const sharedShim = "pause-shared"

// The handlers by which the shim under test makes pods through the Sandbox API.
const (
	sandboxHandler       = "pause-sandbox"
	sharedSandboxHandler = "pause-shared-sandbox"
)

// sandboxHandlers are those of the Sandbox API, by the shim.
var sandboxHandlers = map[string]string{"pause": sandboxHandler, sharedShim: sharedSandboxHandler}

// isSandboxAPI says whether a handler makes pods through the Sandbox API.
func isSandboxAPI(handler string) bool {
	return handler == sandboxHandler || handler == sharedSandboxHandler
}

// isShared says whether pods of a handler share a shim.
func isShared(handler string) bool { return strings.HasPrefix(handler, sharedShim) }

// eachHandler is eachShim for tests of pods: those of the shim under test are made
// in both ways that containerd has.
func eachHandler(t *testing.T, test func(t *testing.T, handler string)) {
	t.Helper()
	eachShim(t, test)
	for _, shim := range shims {
		if handler, ok := sandboxHandlers[shim]; ok {
			t.Run(handler, func(t *testing.T) {
				t.Cleanup(func() { checkLeftovers(t, handler) })
				test(t, handler)
			})
		}
	}
}

// eachPauseHandler is eachHandler without the stock shim, where that differs.
func eachPauseHandler(t *testing.T, test func(t *testing.T, handler string)) {
	t.Helper()
	for _, shim := range shims {
		for _, handler := range []string{shim, sandboxHandlers[shim]} {
			if shim == "runc" {
				continue
			}
			t.Run(handler, func(t *testing.T) {
				t.Cleanup(func() { checkLeftovers(t, handler) })
				test(t, handler)
			})
		}
	}
}

// runtimeType is the runtime type of a handler.
func runtimeType(shim string) string {
	switch shim {
	case "runc":
		return node.StockType
	case sharedShim:
		return node.SharedType
	}
	return node.PauseType
}

// checkLeftovers is the last clean-up of a test.
func checkLeftovers(t *testing.T, shim string) {
	t.Helper()
	nodetest.CheckLeftovers(t, theNode, testDeadline(), func(left string) bool {
		return shim == "runc" && isStockSocket(t, left)
	})
}

// isStockSocket says whether what is left is the socket of a stock shim that has ended. That of
// containerd 2.4.2 leaves it now and then on a busy machine: in 2 of 40 pods whose init is killed,
// with PAUSE_TEST_SHIMS=runc and four busy processes beside. All else that it leaves is an error.
func isStockSocket(t *testing.T, left string) bool {
	t.Helper()
	path, ok := strings.CutPrefix(left, "socket ")
	if !ok {
		return false
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return false
	}
	t.Logf("the stock shim has left %s", left)
	return true
}

// testContext is a context of the node's namespace, which ends with the test.
func testContext(t *testing.T) context.Context {
	t.Helper()
	return nodetest.Context(t, theNode, testDeadline())
}

// atEnd runs a clean-up with a context that has not ended yet.
func atEnd(t *testing.T, f func(ctx context.Context) error) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(theNode.Context(context.Background()), patience*time.Minute)
		defer cancel()
		if err := f(ctx); err != nil {
			t.Error(err)
		}
	})
}

// must is [nodetest.Must].
var must = nodetest.Must

// eventually is [nodetest.Eventually] with this package's limit.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	nodetest.Eventually(t, patience*time.Minute, what, condition)
}

// expectEqual is [nodetest.ExpectEqual].
func expectEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	nodetest.ExpectEqual(t, what, got, want)
}
