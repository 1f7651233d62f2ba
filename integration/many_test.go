package integration

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// manyContainers is how many containers a test has in one shim: as many as PAUSE_TEST_MANY says, or what takes half a
// minute.
func manyContainers(t *testing.T) int {
	t.Helper()
	text := os.Getenv("PAUSE_TEST_MANY")
	if text == "" {
		return 60
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

// containerd calls `delete` for all containers of a shim that was killed at the same time, and gives each call 5 s.
func TestManyContainersOfAShimThatIsKilled(t *testing.T) {
	withPause(t, func(t *testing.T) {
		first := newContainer(t, "pause", sh("exec sleep 100000"))
		all := []*container{first}
		for range manyContainers(t) - 1 {
			cfg := sh("exec sleep 100000")
			cfg.spec = []oci.SpecOpts{oci.WithAnnotations(map[string]string{"io.containerd.runc.v2.group": first.ID()})}
			all = append(all, newContainer(t, "pause", cfg))
		}
		pids := make([]int, len(all))
		start := func(i int) error {
			c := all[i]
			task, err := c.NewTask(c.ctx, cio.NullIO)
			if err == nil {
				pids[i] = int(task.Pid())
				err = task.Start(c.ctx)
			}
			return err
		}
		must(t, start(0)) // the others join it
		sideBySide(t, len(all)-1, func(i int) error { return start(i + 1) })
		ids := make([]string, len(all))
		for i, c := range all {
			ids[i] = c.ID()
		}
		shim, err := theNode.ShimPid(theNode.ID, first.ID())
		must(t, err)
		must(t, unix.Kill(shim, unix.SIGKILL))
		expectNothingOf(t, ids, pids)
		for _, c := range all {
			eventually(t, "the task is gone", func() bool { _, err := c.Task(c.ctx, nil); return err != nil })
			must(t, c.Delete(c.ctx, containerd.WithSnapshotCleanup))
		}
	})
}

func TestManyContainersOfAPodWhoseShimIsKilled(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		n := min(manyContainers(t), 50)
		ids, pids := make([]string, n), make([]int, n)
		sideBySide(t, n, func(i int) (err error) {
			ids[i], err = p.CreateContainer(p.ctx, fmt.Sprintf("c%d", i), []string{"sleep", "100000"}, nil)
			if err == nil {
				err = theNode.StartContainer(p.ctx, ids[i])
			}
			return err
		})
		for i, id := range ids {
			pids[i] = p.containerPid(id)
		}
		shim, err := p.ShimPid()
		must(t, err)
		p.neighbourEndsWithShim()
		must(t, unix.Kill(shim, unix.SIGKILL))
		expectNothingOf(t, ids, pids)
		p.removeInTheEnd()
	})
}

// sideBySide calls f for each number below n, some at the same time.
func sideBySide(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, n)
	places := make(chan struct{}, 4)
	for i := range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			errs[i] = f(i)
		})
	}
	wg.Wait()
	for _, err := range errs {
		must(t, err)
	}
}

// expectNothingOf waits until nothing is left of containers: no process, no state of the OCI runtime, no cgroup.
func expectNothingOf(t *testing.T, ids []string, pids []int) {
	t.Helper()
	left := func() (found []string) {
		for _, p := range node.Processes() {
			if slices.Contains(pids, p.Pid) && p.State != "Z" {
				found = append(found, "process "+p.String())
			}
		}
		states, err := filepath.Glob(filepath.Join(theNode.RuntimeRoot(), "*", "*"))
		must(t, err)
		for _, path := range states {
			if slices.Contains(ids, filepath.Base(path)) {
				found = append(found, "state "+path)
			}
		}
		_ = filepath.WalkDir(cgroupMount, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && slices.Contains(ids, d.Name()) {
				found = append(found, "cgroup "+path)
			}
			return nil // it may have gone
		})
		return found
	}
	defer func() {
		if t.Failed() {
			t.Logf("left: %v", left())
		}
	}()
	eventually(t, "nothing is left of the containers", func() bool { return len(left()) == 0 })
}
