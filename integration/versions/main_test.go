// Package versions tests the shim with other releases of containerd than the one that
// the rest of the tests use: each with the configuration of its time, from the start
// of a container to the replacement of the daemon, and of the shim's program, under
// pods that run. The stock shim of the same release shows whether a test is right.
//
// `make versions` runs it for the oldest and the newest release, `make matrix` for all.
// `integration/setup.sh containerds` provides them. These variables say what is tested:
//
//	PAUSE_TEST_PATH        directories of the tools and the shims, as in $PATH, with the
//	                       releases of containerd in subdirectories: containerd-1.6, ...
//	PAUSE_TEST_CONTAINERDS which releases to test: "1.6,2.4"; by default all there are
//	PAUSE_TEST_NEWEST      the release to upgrade to: the last of all there are
//	PAUSE_TEST_RUNTIME     the OCI runtime: "runc"
//	PAUSE_TEST_CGROUPS     who makes cgroups: "cgroupfs", or "systemd"
//	PAUSE_TEST_PATIENCE    by how much the machine may be slower than usual: 1
//
// All tests are below TestContainerd/<release>/<column of docs/containerd-versions.md>.
package versions

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// sharedShim is the handler of the shim that takes in many pods.
const sharedShim = "pause-shared"

// onePodHandler is a handler of the same, by whose options each shim takes in one pod.
const onePodHandler = "pause-shared-one"

// The handlers that make pods through the Sandbox API.
const (
	sandboxHandler       = "pause-sandbox"
	sharedSandboxHandler = "pause-shared-sandbox"
)

// isSandboxAPI says whether a handler makes pods through the Sandbox API.
func isSandboxAPI(handler string) bool {
	return handler == sandboxHandler || handler == sharedSandboxHandler
}

// isShared says whether pods of a handler share a shim.
func isShared(handler string) bool { return handler == sharedShim || handler == sharedSandboxHandler }

// The names of the program under test: the second is a link to the first.
const (
	shimProgram   = "containerd-shim-pause-v2"
	sharedProgram = "containerd-shim-pause-shared-v2"
)

var (
	// theNode is where all tests of one release run, one after the other.
	theNode *node.Node

	// searchPath are the directories of PAUSE_TEST_PATH.
	searchPath []string

	// releases are those to test, newest is what all are upgraded to.
	releases []string
	newest   string

	ociRuntime    = "runc"
	systemdCgroup bool

	// patience is the factor of all time limits.
	patience = time.Duration(1)
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	err := node.Isolate()
	if err == nil {
		err = readEnvironment()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	go func() {
		<-interrupted
		os.Exit(130) // which lets the node's guard remove it
	}()
	return m.Run()
}

func readEnvironment() error {
	searchPath = filepath.SplitList(os.Getenv("PAUSE_TEST_PATH"))
	if len(searchPath) == 0 {
		return errors.New("these tests need a set-up of their own: run `make versions`")
	}
	releases = allReleases()
	if len(releases) == 0 {
		return errors.New("no containerd: run `integration/setup.sh containerds`")
	}
	newest = releases[len(releases)-1]
	if s := os.Getenv("PAUSE_TEST_NEWEST"); s != "" {
		newest = s
	}
	if s := os.Getenv("PAUSE_TEST_CONTAINERDS"); s != "" {
		releases = strings.Split(s, ",")
	}
	if s := os.Getenv("PAUSE_TEST_RUNTIME"); s != "" {
		ociRuntime = s
	}
	systemdCgroup = os.Getenv("PAUSE_TEST_CGROUPS") == "systemd"
	if s := os.Getenv("PAUSE_TEST_PATIENCE"); s != "" {
		factor, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("PAUSE_TEST_PATIENCE: %w", err)
		}
		patience = time.Duration(factor)
	}
	return nil
}

// allReleases are those in the directories of searchPath, the oldest first.
func allReleases() (all []string) {
	for _, dir := range searchPath {
		found, _ := filepath.Glob(filepath.Join(dir, "containerd-[0-9]*.[0-9]*", "containerd"))
		for _, f := range found {
			all = append(all, strings.TrimPrefix(filepath.Base(filepath.Dir(f)), "containerd-"))
		}
	}
	slices.SortFunc(all, func(a, b string) int { return slices.Compare(numbers(a), numbers(b)) })
	return all
}

func numbers(release string) (all []int) {
	for _, field := range strings.Split(release, ".") {
		n, _ := strconv.Atoi(field)
		all = append(all, n)
	}
	return all
}

// directory is that of a release.
func directory(t *testing.T, release string) string {
	t.Helper()
	for _, dir := range searchPath {
		dir = filepath.Join(dir, "containerd-"+release)
		if _, err := os.Stat(filepath.Join(dir, "containerd")); err == nil {
			return dir
		}
	}
	t.Fatalf("no containerd %s: run `integration/setup.sh containerds %s`", release, release)
	return ""
}

func TestContainerd(t *testing.T) {
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			programs := startNode(t, release)
			t.Run("ctr run", testCtrRun)
			t.Run("podsandbox", func(t *testing.T) {
				testPods(t, "runc", "pause", sharedShim)
				testManyPods(t, sharedShim)
				runCases(t, []testCase{{"one pod a shim", testOnePodAShim}}, onePodHandler)
			})
			if theNode.Version.AtLeast(2, 0) {
				t.Run("Sandbox API", testPodsBySandboxAPI)
			}
			t.Run("shim replaced", func(t *testing.T) { testReplacedShim(t, programs) })
			if release != newest {
				t.Run("upgrade", testUpgrade)
			}
		})
	}
}

// startNode makes theNode with a release of containerd. The shim under test is in a
// directory of its own, which is returned, to be replaced there.
func startNode(t *testing.T, release string) (programs string) {
	t.Helper()
	programs = t.TempDir()
	copyProgram(t, findProgram(t, shimProgram), filepath.Join(programs, shimProgram))
	must(t, os.Symlink(shimProgram, filepath.Join(programs, sharedProgram)))
	var err error
	theNode, err = node.Start(t.Context(), node.Options{
		Path:          append([]string{programs}, searchPath...),
		Containerd:    directory(t, release),
		OCIRuntime:    ociRuntime,
		SystemdCgroup: systemdCgroup,
		Patience:      patience,
		Handlers: []node.Handler{
			sandboxAPI(release, sandboxHandler, node.PauseType),
			sandboxAPI(release, sharedSandboxHandler, node.SharedType),
			{Name: onePodHandler, Type: node.SharedType, OCIRuntime: ociRuntime, Options: "  PodsPerShim = 1\n"},
		},
	})
	must(t, err)
	t.Cleanup(func() { must(t, theNode.Close()) })
	fmt.Printf("node in %s: containerd %s, %s, snapshotter %s\n", theNode.Dir, theNode.Release, ociRuntime, theNode.Snapshotter)
	expectEqual(t, "release", theNode.Version.String(), release)
	return programs
}

// sandboxAPI is a handler that makes pods through the Sandbox API. Up to 2.2,
// containerd then writes into the options of a container, and can do so only with
// those of the stock shim's type (WithTaskAPIEndpoint in client/task_opts_unix.go).
func sandboxAPI(release, name, runtimeType string) node.Handler {
	return node.Handler{
		Name: name, Type: runtimeType, OCIRuntime: ociRuntime, Sandboxer: "shim",
		NoOptions: slices.Compare(numbers(release), []int{2, 3}) < 0,
	}
}

func findProgram(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range searchPath {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	t.Fatalf("no %s in %s", name, strings.Join(searchPath, ":"))
	return ""
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	source, err := os.Open(from)
	must(t, err)
	defer source.Close()
	target, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(target, source)
	must(t, errors.Join(err, target.Close()))
}

// testCase is one test, run with each of some shims or handlers.
type testCase struct {
	name string
	test func(t *testing.T, handler string)
}

func runCases(t *testing.T, cases []testCase, handlers ...string) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, handler := range handlers {
				t.Run(handler, func(t *testing.T) {
					t.Cleanup(func() { checkLeftovers(t) })
					c.test(t, handler)
				})
			}
		})
	}
}

// checkLeftovers is the last clean-up of a test.
func checkLeftovers(t *testing.T) {
	t.Helper()
	if theNode.DaemonPid() == 0 { // a test has failed before it has started it again
		must(t, theNode.Restart(context.Background()))
	}
	nodetest.CheckLeftovers(t, theNode, testDeadline(), nil)
}

// testDeadline is how long a test may take. A stuck one should fail, with the
// daemon's log, long before the whole run does.
func testDeadline() time.Duration { return patience * 3 * time.Minute }

// testContext is a context of the node's namespace, which ends with the test.
func testContext(t *testing.T) context.Context {
	t.Helper()
	return nodetest.Context(t, theNode, testDeadline())
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
