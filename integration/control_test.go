package integration

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	cgroupsv1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroupsv2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types/runc/options"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestSignalToOneAndToAll(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh(`
			(trap 'echo child' USR1; echo up; while :; do sleep 0.1; done) &
			trap 'echo init' USR1
			echo up
			while :; do sleep 0.1; done`))
		c.out.expect(t, "up\nup\n")
		must(t, c.task.Kill(c.ctx, syscall.SIGUSR1))
		c.out.expect(t, "init\n")
		if strings.Contains(c.out.String(), "child") {
			t.Error("a signal to init went to its child")
		}
	})
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh(`
			(trap 'echo child' USR1; trap '' TERM; echo up; while :; do sleep 1 & wait; done) &
			trap 'echo init' USR1
			echo up
			while :; do sleep 1 & wait; done`))
		c.out.expect(t, "up\nup\n")
		must(t, c.task.Kill(c.ctx, syscall.SIGUSR1, containerd.WithKillAll))
		c.out.expect(t, "init\n")
		c.out.expect(t, "child\n")
	})
}

func TestPauseAndResume(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("while :; do echo tick; sleep 0.05; done"))
		c.out.expect(t, "tick")
		must(t, c.task.Pause(c.ctx))
		status, err := c.task.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Paused)
		expectEqual(t, "frozen", frozen(t, c.task.Pid()), true)
		must(t, c.task.Resume(c.ctx))
		status, err = c.task.Status(c.ctx)
		must(t, err)
		expectEqual(t, "status", status.Status, containerd.Running)
		expectEqual(t, "frozen", frozen(t, c.task.Pid()), false)
		ticks := strings.Count(c.out.String(), "tick")
		eventually(t, "more ticks", func() bool { return strings.Count(c.out.String(), "tick") > ticks })
	})
}

func TestUpdate(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("sleep 1000")
		cfg.spec = []oci.SpecOpts{oci.WithMemoryLimit(64 << 20)}
		c := startContainer(t, shim, cfg)
		expectEqual(t, "limit", memoryLimit(t, c.task.Pid()), "67108864")
		limit, quota := int64(32<<20), int64(50000)
		must(t, c.task.Update(c.ctx, containerd.WithResources(&specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &limit},
			CPU:    &specs.LinuxCPU{Quota: &quota},
		})))
		expectEqual(t, "limit", memoryLimit(t, c.task.Pid()), "33554432")
		got := strings.Fields(cgroupFile(t, c.task.Pid(), "cpu", "cpu.cfs_quota_us", "cpu.max"))[0]
		expectEqual(t, "quota", got, "50000")
	})
}

func TestPids(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("sleep 1000 & sleep 1000 & wait"))
		p := c.exec("e1", nil, nil, "sleep", "1000")
		execs := map[uint32]string{}
		eventually(t, "4 processes", func() bool {
			infos, err := c.task.Pids(c.ctx)
			must(t, err)
			clear(execs)
			for _, i := range infos {
				execs[i.Pid] = execID(t, i)
			}
			return len(infos) == 4
		})
		if id, ok := execs[c.task.Pid()]; !ok || id != "" {
			t.Errorf("init: listed %v, as exec %q", ok, id)
		}
		expectEqual(t, "exec of the exec's pid", execs[p.Pid()], "e1")
	})
}

func execID(t *testing.T, i containerd.ProcessInfo) string {
	t.Helper()
	if i.Info == nil {
		return ""
	}
	v, err := typeurl.UnmarshalAny(i.Info)
	must(t, err)
	return v.(*options.ProcessDetails).ExecID
}

func TestMetrics(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		c := startContainer(t, shim, sh("while :; do :; done"))
		eventually(t, "metrics show processor time, memory and one process", func() bool {
			m, err := c.task.Metrics(c.ctx)
			must(t, err)
			v, err := typeurl.UnmarshalAny(m.Data)
			must(t, err)
			switch v := v.(type) {
			case *cgroupsv1.Metrics:
				return v.CPU.Usage.Total > 0 && v.Memory.Usage.Usage > 0 && v.Pids.Current == 1
			case *cgroupsv2.Metrics:
				return v.CPU.UsageUsec > 0 && v.Memory.Usage > 0 && v.Pids.Current == 1
			}
			t.Fatalf("metrics are a %T", v)
			return false
		})
	})
}

func TestTooMuchMemory(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("tail /dev/zero")
		cfg.spec = []oci.SpecOpts{oci.WithMemoryLimit(16 << 20)}
		c := newContainer(t, shim, cfg)
		events := subscribe(t, c)
		c.run(c.streams(nil))
		c.wait()
		events.expect("oom")
	})
}

// frozen says whether a process is in a frozen cgroup.
func frozen(t *testing.T, pid uint32) bool {
	t.Helper()
	state := strings.TrimSpace(cgroupFile(t, pid, "freezer", "freezer.state", "cgroup.freeze"))
	return state == "FROZEN" || state == "1"
}

func memoryLimit(t *testing.T, pid uint32) string {
	t.Helper()
	return strings.TrimSpace(cgroupFile(t, pid, "memory", "memory.limit_in_bytes", "memory.max"))
}

// cgroupFile reads a file in the cgroup of a process: v1 if the controller has a
// hierarchy there, else v2.
func cgroupFile(t *testing.T, pid uint32, controller, v1, v2 string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	defer f.Close()
	path := ""
	for s := bufio.NewScanner(f); s.Scan(); {
		field := strings.SplitN(s.Text(), ":", 3)
		switch field[1] {
		case controller:
			return readFile(t, filepath.Join("/sys/fs/cgroup", controller, field[2], v1))
		case "":
			path = filepath.Join("/sys/fs/cgroup", field[2], v2)
		}
	}
	return readFile(t, path)
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// A task's pid is that of its init, as the host sees it.
func TestPidAndExitTime(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		before := time.Now()
		c := startContainer(t, shim, sh("exec sleep 1000"))
		eventually(t, "init is sleep", func() bool {
			return strings.HasPrefix(readFile(t, fmt.Sprintf("/proc/%d/cmdline", c.task.Pid())), "sleep\x00")
		})
		must(t, c.task.Kill(c.ctx, syscall.SIGKILL))
		status := <-c.exited
		if at := status.ExitTime(); at.Before(before) || at.After(time.Now()) {
			t.Errorf("exit at %s, which is not between %s and now", at, before)
		}
	})
}
