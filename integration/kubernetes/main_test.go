// Package kubernetes runs pods of all kinds on a real Kubernetes node, see package cluster. Each scenario runs with
// each runtime handler, the stock one among them: what it expects is the same for all.
//
// `make kubernetes` runs it; it sets these variables, of which only the first is needed:
//
//	PAUSE_TEST_PATH      directories of all programs, as in $PATH
//	PAUSE_TEST_HANDLERS  which handlers to test, of those in cluster.Handlers; all if it is empty
//	PAUSE_TEST_GATES     feature gates of kubelet, as in "PodAndContainerStatsFromCRI: true"; none if it is empty
//	PAUSE_TEST_PATIENCE  by how much the machine may be slower than usual: 1
package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
	"containerd-shim-pause-v2/integration/nodetest"
)

var (
	// theCluster is where all scenarios run.
	theCluster *cluster.Cluster

	// handlers are those that are tested.
	handlers = cluster.Handlers

	// patience is the factor of all time limits.
	patience = time.Duration(1)
)

// waitDeadline is how long anything may take that a scenario waits for. What they wait for is there within seconds; a
// stuck one should fail with the pod's state long before the whole run does.
func waitDeadline() time.Duration { return patience * 3 * time.Minute }

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	path := os.Getenv("PAUSE_TEST_PATH")
	if path == "" {
		fmt.Fprintln(os.Stderr, "These tests need a set-up of their own: run `make kubernetes`.")
		return 1
	}
	if err := configure(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := cluster.Isolation.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	klog.LogToStderr(false) // client-go reports there what the tests make happen
	ctx := context.Background()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	start := time.Now()
	var err error
	theCluster, err = cluster.Start(ctx, cluster.Options{
		Path:         filepath.SplitList(path),
		KubeletGates: os.Getenv("PAUSE_TEST_GATES"),
		Progress:     func(step string) { fmt.Printf("cluster: %4.1f s: %s\n", time.Since(start).Seconds(), step) },
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Printf("cluster: %4.1f s: ready, in %s\n", time.Since(start).Seconds(), theCluster.Node.Dir)
	go func() {
		<-interrupted
		fmt.Fprintln(os.Stderr, "interrupted: removing the cluster")
		theCluster.Close() // the guard tries again
		os.Exit(130)
	}()
	code := 1
	if err := makeNamespaces(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	} else {
		code = m.Run()
	}
	return max(code, takeDown(ctx))
}

// configure reads the environment.
func configure() error {
	if s := os.Getenv("PAUSE_TEST_HANDLERS"); s != "" {
		handlers = strings.Split(s, ",")
		for _, h := range handlers {
			if !slices.Contains(cluster.Handlers, h) {
				return fmt.Errorf("PAUSE_TEST_HANDLERS: no such handler: %s; there are %s", h, strings.Join(cluster.Handlers, ","))
			}
		}
	}
	if p := os.Getenv("PAUSE_TEST_PATIENCE"); p != "" {
		factor, err := strconv.Atoi(p)
		if err != nil {
			return fmt.Errorf("PAUSE_TEST_PATIENCE: %w", err)
		}
		patience = time.Duration(factor)
	}
	return nil
}

// makeNamespaces makes one for the pods of each handler, and waits until pods may be made in it.
func makeNamespaces(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, waitDeadline())
	defer cancel()
	for _, name := range handlers {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := theCluster.Client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	for _, name := range handlers {
		for {
			_, err := theCluster.Client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("namespace %s: no service account: %w", name, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// takeDown removes the cluster. It returns an exit code: 1 if the scenarios have left something behind.
func takeDown(ctx context.Context) (code int) {
	left, err := theCluster.Leftovers(ctx)
	left = slices.DeleteFunc(left, func(l string) bool {
		path, isSocket := strings.CutPrefix(l, "socket ")
		return isSocket && slices.Contains(stockSockets.paths, path)
	})
	if len(left) > 0 || err != nil {
		fmt.Fprintf(os.Stderr, "left at the end, error %v:\n  %s\n", err, strings.Join(left, "\n  "))
		code = 1
	}
	if err := theCluster.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// each runs a scenario with each handler, side by side, and beside those of other tests that call it. The scenario
// must not disturb pods of others.
func each(t *testing.T, do func(s *scenario)) {
	t.Helper()
	t.Parallel()
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) {
			t.Parallel()
			do(newScenario(t, handler))
		})
	}
}

// eachAlone runs a scenario with each handler, one after the other and with no other test beside it.
func eachAlone(t *testing.T, do func(s *scenario)) {
	t.Helper()
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { do(newScenario(t, handler)) })
	}
}

// together makes a pod with each handler, does something to the node they are all on, and then checks each of them, with
// no other test beside it.
func together(t *testing.T, prepare func(s *scenario) *corev1.Pod, do func(ctx context.Context), check func(s *scenario, pod *corev1.Pod)) {
	t.Helper()
	pods := map[string]*corev1.Pod{}
	for _, handler := range handlers {
		pods[handler] = prepare(newScenario(t, handler))
	}
	do(t.Context())
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) { check(newScenario(t, handler), pods[handler]) })
	}
}

// isSandboxAPI says whether a handler makes pods through the Sandbox API.
func isSandboxAPI(handler string) bool { return strings.HasSuffix(handler, "-sandbox") }

// must is [nodetest.Must].
var must = nodetest.Must
