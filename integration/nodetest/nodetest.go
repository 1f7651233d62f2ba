// Package nodetest has the checks and waits that all tests on a private node share, see package node.
package nodetest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/integration/node"
)

// Must ends the test at an error.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ExpectEqual fails the test, and lets it go on, if two values differ.
func ExpectEqual[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// Eventually waits for a condition, and ends the test if it does not hold within the limit.
func Eventually(t *testing.T, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	for start := time.Now(); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Since(start) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// Context returns a context of the node's containerd namespace. It ends with the test, or after the limit.
func Context(t *testing.T, n *node.Node, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(n.Context(t.Context()), limit)
	t.Cleanup(cancel)
	return ctx
}

// Namespace returns the identity of a process's namespace, such as "net:[4026531840]". pid may be "self"; kind is a
// name in /proc/<pid>/ns.
func Namespace(t *testing.T, pid any, kind string) string {
	t.Helper()
	link, err := os.Readlink(fmt.Sprintf("/proc/%v/ns/%s", pid, kind))
	Must(t, err)
	return link
}

// CheckLeftovers removes all pods and containers from the node, and fails the test if anything of them is left, unless
// ignore returns true for it; ignore may be nil. If the test has failed, the end of containerd's log is shown. Use it
// as a test's last clean-up.
func CheckLeftovers(t *testing.T, n *node.Node, limit time.Duration, ignore func(left string) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := n.RemoveAll(ctx); err != nil {
		t.Error(err)
	}
	left := n.Leftovers(ctx)
	if ignore != nil {
		left = slices.DeleteFunc(left, ignore)
	}
	if len(left) > 0 {
		t.Errorf("left:\n  %s", strings.Join(left, "\n  "))
	}
	ShowLog(t, n)
}

// ShowLog logs the end of containerd's log if the test has failed.
func ShowLog(t *testing.T, n *node.Node) {
	t.Helper()
	if t.Failed() {
		t.Logf("log of containerd:\n%s", n.LogTail(30))
	}
}
