package integration

import (
	"regexp"
	"slices"
	"testing"
)

// The commands show the shim of each of two pods, and the network namespace of each.
func TestReadmeManyPodsInOneShim(t *testing.T) {
	if !slices.Contains(shims, sharedShim) {
		t.Skip("PAUSE_TEST_SHIMS is without the shim that this is about")
	}
	t.Run(sharedShim, func(t *testing.T) {
		t.Cleanup(func() { checkLeftovers(t, sharedShim) })
		out := nodeShell(t, readmeBlock(t, "### Many pods in one shim"))
		processes := regexp.MustCompile(`(?m)^Tgid:\t(\d+)$`).FindAllStringSubmatch(out, -1)
		networks := regexp.MustCompile(`(?m)^net:\[\d+\]$`).FindAllString(out, -1)
		if len(processes) != 2 || len(networks) != 2 {
			t.Fatalf("not two processes and two networks:\n%s", out)
		}
		expectEqual(t, "shim of the second pod", processes[1][1], processes[0][1])
		for i, network := range networks {
			if network == namespace(t, "self", "net") || slices.Contains(networks[:i], network) {
				t.Errorf("not each pod has a network of its own:\n%s", out)
			}
		}
	})
}
