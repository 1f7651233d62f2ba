package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// specSize is the size of a large OCI spec in bytes, more than ttrpc has in one message.
const specSize = 5 << 20

// masked has a container hide so many files that its spec is large. One of them is there.
func masked(c *runtime.ContainerConfig) {
	paths := []string{"/proc/version"}
	for size := 0; size < specSize; size += len(paths[len(paths)-1]) {
		paths = append(paths, fmt.Sprintf("/no/%d%s", len(paths), strings.Repeat("/such/file", 100)))
	}
	c.Linux.SecurityContext.MaskedPaths = paths
}

// annotated gives a container so many annotations that its spec is large.
func annotated() oci.SpecOpts {
	annotations := make(map[string]string)
	for size := 0; size < specSize; size += 1000 {
		annotations[fmt.Sprintf("large.example/%d", size)] = strings.Repeat("x", 1000)
	}
	return oci.WithAnnotations(annotations)
}

// expectLarge expects that the spec of a pod's container is large.
func expectLarge(t *testing.T, id string) {
	t.Helper()
	st, err := os.Stat(filepath.Join(theNode.Bundle(node.CRINamespace, id), "config.json"))
	must(t, err)
	if st.Size() < specSize {
		t.Errorf("the spec of %s has %d bytes", id, st.Size())
	}
}

// Many large specs are in the shim at the same time.
func TestLargeSpecsHoldUpNoOtherPod(t *testing.T) {
	for _, handler := range []string{"pause-shared-hanging", "pause-shared-sandbox-hanging"} {
		withShared(t, handler, func(t *testing.T) {
			const n = 4
			pods := tenants(t, handler, 2)
			large, other := pods[0], pods[1]
			hanging.hold(t)
			ids, calls := make([]string, n), make([]*later, n)
			for i := range ids {
				var err error
				ids[i], err = large.CreateContainer(large.ctx, fmt.Sprintf("large%d", i), []string{"sleep", "1000"}, masked)
				must(t, err)
				calls[i] = start(t, "the start of a container", func() error { return theNode.StartContainer(large.ctx, ids[i]) })
			}
			whileStuck(t, func() bool { return hanging.held() == n }, calls, func() {
				hanging.pass(t, func() { expectUndisturbed(t, handler, large.shim, other) })
				expectLives(t, large)
			})
			hanging.letGo(t)
			for i, id := range ids {
				must(t, calls[i].wait())
				expectLarge(t, id)
				expectEqual(t, "masked file", large.exec(id, "cat /proc/version"), "")
			}
			expectLives(t, pods...)
			large.remove()
			expectLives(t, other)
		})
	}
}

// What is done with a large spec takes processor time, but nothing else waits for it.
func TestContainersWithLargeSpecsComeAndGoBesideOthers(t *testing.T) {
	withShared(t, "containers", func(t *testing.T) {
		others := newOthers(t)
		const n = 3
		var lives atomic.Int64
		stop := make(chan struct{})
		var calls []*later
		for range n {
			c := newContainer(t, sharedShim, config{args: []string{"sleep", "1000"}, spec: []oci.SpecOpts{annotated()}})
			calls = append(calls, start(t, "the coming and going", func() error {
				for {
					if err := c.live(c.ctx); err != nil {
						return err
					}
					lives.Add(1)
					select {
					case <-stop:
						return nil
					default:
					}
				}
			}))
		}
		for range 3 {
			before := lives.Load()
			whileStuck(t, func() bool { return true }, calls, others.expectUndisturbed)
			eventually(t, "a container with a large spec has lived meanwhile", func() bool { return lives.Load() > before })
		}
		close(stop)
		for _, l := range calls {
			must(t, l.wait())
		}
		others.expectUndisturbed()
	})
}
