package integration

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits, as they are seen and felt inside of containers, and the cgroups of
// sandboxes and pods outside.

const cgroupMount = "/sys/fs/cgroup"

func onV2() bool {
	_, err := os.Stat(filepath.Join(cgroupMount, "cgroup.controllers"))
	return err == nil
}

// needV2 skips a test of what cgroup v1 does not have.
func needV2(t *testing.T) {
	t.Helper()
	if !onV2() {
		t.Skip("this host has cgroup v1")
	}
}

// ownFile reads a file of a container's own cgroup from inside.
func (p *pod) ownFile(id, controller, v1, v2 string) string {
	p.t.Helper()
	if onV2() {
		return p.exec(id, "cat /sys/fs/cgroup/"+v2)
	}
	return p.exec(id, "cat /sys/fs/cgroup/"+controller+"/"+v1)
}

// cgroupDir is the directory of a process's cgroup in the hierarchy of a
// controller.
func cgroupDir(t *testing.T, pid int, controller string) string {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	must(t, err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.SplitN(s.Text(), ":", 3)
		switch {
		case onV2() && fields[1] == "":
			return filepath.Join(cgroupMount, fields[2])
		case !onV2() && slices.Contains(strings.Split(fields[1], ","), controller):
			return filepath.Join(cgroupMount, controller, fields[2])
		}
	}
	t.Fatalf("process %d is in no cgroup of %s", pid, controller)
	return ""
}

// allocate has a process in the container fill a buffer of some megabytes, and
// returns its exit code.
func (p *pod) allocate(id string, megabytes int) int32 {
	p.t.Helper()
	r, err := theNode.Exec(p.ctx, id, "dd", "if=/dev/zero", "of=/dev/null", "count=1", fmt.Sprintf("bs=%dM", megabytes))
	must(p.t, err)
	return r.ExitCode
}

func TestLimitsAreSeenFromInside(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.startAs("c", "sleep 1000", func(c *runtime.ContainerConfig) {
			c.Linux.Resources = &runtime.LinuxContainerResources{
				CpuPeriod: 50000, CpuQuota: 25000, CpuShares: 2048, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0",
			}
		})
		expectEqual(t, "memory", p.ownFile(id, "memory", "memory.limit_in_bytes", "memory.max"), "67108864")
		expectEqual(t, "cpus", p.ownFile(id, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0")
		expectEqual(t, "cpus of a process", p.exec(id, "sed -n 's/^Cpus_allowed_list:.//p' /proc/self/status"), "0")
		expectEqual(t, "processors", p.exec(id, "nproc"), "1")
		if onV2() {
			expectEqual(t, "quota and period", p.ownFile(id, "", "", "cpu.max"), "25000 50000")
			// The formula has changed, see sharesToWeight in cgroups/cpu.go.
			if weight := p.ownFile(id, "", "", "cpu.weight"); weight != "79" && weight != "174" {
				t.Errorf("weight is %s", weight)
			}
		} else {
			expectEqual(t, "quota", p.ownFile(id, "cpu", "cpu.cfs_quota_us", ""), "25000")
			expectEqual(t, "period", p.ownFile(id, "cpu", "cpu.cfs_period_us", ""), "50000")
			expectEqual(t, "shares", p.ownFile(id, "cpu", "cpu.shares", ""), "2048")
		}
	})
}

func TestMemoryLimitIsFelt(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.startAs("c", "sleep 1000", func(c *runtime.ContainerConfig) {
			c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}
		})
		expectEqual(t, "exit code with 24 MB", p.allocate(id, 24), 0)
		expectEqual(t, "exit code with 96 MB", p.allocate(id, 96), 137)
	})
}

// cpuUse are counters of a container's own: processor time in microseconds,
// periods of its quota, and those in which it was held back.
type cpuUse struct{ time, periods, throttled int }

func (p *pod) cpuUse(id string) (u cpuUse) {
	p.t.Helper()
	values := map[string]int{}
	script := "cat /sys/fs/cgroup/cpu.stat"
	if !onV2() {
		script = "cat /sys/fs/cgroup/cpu/cpu.stat; echo usage_nsec $(cat /sys/fs/cgroup/cpuacct/cpuacct.usage)"
	}
	for line := range strings.Lines(p.exec(id, script)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(value)
		must(p.t, err)
		values[key] = n
	}
	return cpuUse{values["usage_usec"] + values["usage_nsec"]/1000, values["nr_periods"], values["nr_throttled"]}
}

// By the container's own counters, not by a clock: 20 ms of each period of 100 ms.
func TestCPUQuotaIsFelt(t *testing.T) {
	const quota, period = 20000, 100000
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.startAs("c", "while :; do :; done", func(c *runtime.ContainerConfig) {
			c.Linux.Resources = &runtime.LinuxContainerResources{CpuQuota: quota, CpuPeriod: period}
		})
		first := p.cpuUse(id)
		var last cpuUse
		eventually(t, "it is held back in 10 periods", func() bool {
			last = p.cpuUse(id)
			return last.throttled >= first.throttled+10
		})
		// A period that has just begun is not counted, and the kernel looks but now
		// and then how much is used up. Without a quota it would be five times as much.
		used, allowed := last.time-first.time, (last.periods-first.periods+1)*quota
		if used > 2*allowed {
			t.Errorf("used %d µs of %d in %d periods", used, allowed, last.periods-first.periods)
		}
	})
}

func TestPidsLimitIsFelt(t *testing.T) {
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); echo fork $i; done")
		cfg.spec = []oci.SpecOpts{oci.WithPidsLimit(30)} // the threads of runc's init need some
		c := startContainer(t, shim, cfg)
		if code := c.wait(); code == 0 {
			t.Error("no fork has failed")
		}
		if !strings.HasSuffix(c.out.String(), "fork 28\nfork 29\n") || !strings.Contains(c.errOut.String(), "can't fork") {
			t.Errorf("output: %s\nerrors: %s", c.out.String(), c.errOut.String())
		}
	})
}

// Kubelet limits the number of processes by the pod's cgroup.
func TestPidsLimitOfPodIsFelt(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPodIn(t, handler, "pids")
		id := p.start("c", "sleep 1000")
		file := p.podFile(id, "pids", "pids", "pids.max", "pids.max")
		expectEqual(t, "limit at first", strings.TrimSpace(readFile(t, file)), "max")
		must(t, os.WriteFile(file, []byte("30"), 0))
		r, err := theNode.Exec(p.ctx, id, "sh", "-c", "i=0; while [ $i -lt 60 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done")
		must(t, err)
		if r.ExitCode == 0 || !strings.Contains(string(r.Stderr), "can't fork") {
			t.Errorf("exit code %d, %s", r.ExitCode, r.Stderr)
		}
	})
}

func hasHugetlb(t *testing.T) bool {
	t.Helper()
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		return false
	}
	if onV2() {
		return slices.Contains(strings.Fields(readFile(t, filepath.Join(cgroupMount, "cgroup.controllers"))), "hugetlb")
	}
	_, err := os.Stat(filepath.Join(cgroupMount, "hugetlb", "cgroup.procs"))
	return err == nil
}

// By a container outside of pods: containerd's CRI leaves these limits out, if it
// is not told otherwise (disable_hugetlb_controller).
func TestHugepageLimitIsSeenFromInside(t *testing.T) {
	if !hasHugetlb(t) {
		t.Skip("the kernel has no limit of huge pages of 2 MB")
	}
	eachShim(t, func(t *testing.T, shim string) {
		cfg := sh("cat /sys/fs/cgroup/hugetlb.2MB.max /sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes")
		cfg.spec = []oci.SpecOpts{
			oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.CgroupNamespace}),
			oci.WithMounts([]specs.Mount{{Type: "cgroup", Source: "cgroup", Destination: cgroupMount}}),
			func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
				s.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
				return nil
			},
		}
		c := startContainer(t, shim, cfg)
		c.wait()
		expectEqual(t, "limit", c.out.String(), "4194304\n")
	})
}

func TestUnifiedSettingsAreSeenFromInside(t *testing.T) {
	needV2(t)
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		want := map[string]string{"memory.high": "50331648", "memory.oom.group": "1", "pids.max": "40", "cpu.weight": "77"}
		id := p.startAs("c", "sleep 1000", func(c *runtime.ContainerConfig) {
			c.Linux.Resources = &runtime.LinuxContainerResources{Unified: want}
		})
		for file, value := range want {
			expectEqual(t, file, p.exec(id, "cat /sys/fs/cgroup/"+file), value)
		}
	})
}

func TestUpdatedLimitsAreSeenAndFeltInside(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		p := runPod(t, handler, nil)
		id := p.startAs("c", "sleep 1000", func(c *runtime.ContainerConfig) {
			c.Linux.Resources = &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 90000, CpuPeriod: 100000}
		})
		for _, u := range []struct {
			memory, quota int64
			code          int32 // of a process that takes 96 MB
		}{{160 << 20, 50000, 0}, {48 << 20, 70000, 137}} {
			_, err := theNode.CRI().UpdateContainerResources(p.ctx, &runtime.UpdateContainerResourcesRequest{
				ContainerId: id,
				Linux:       &runtime.LinuxContainerResources{MemoryLimitInBytes: u.memory, CpuQuota: u.quota, CpuPeriod: 100000},
			})
			must(t, err)
			expectEqual(t, "memory", p.ownFile(id, "memory", "memory.limit_in_bytes", "memory.max"), strconv.FormatInt(u.memory, 10))
			expectEqual(t, "quota", strings.Fields(p.ownFile(id, "cpu", "cpu.cfs_quota_us", "cpu.max"))[0], strconv.FormatInt(u.quota, 10))
			expectEqual(t, "exit code with 96 MB", p.allocate(id, 96), u.code)
		}
	})
}

// cgroupsCalled are the cgroups with such a name below the node's, in all
// hierarchies, children first.
func cgroupsCalled(t *testing.T, match func(name string) bool) (dirs []string) {
	t.Helper()
	err := filepath.WalkDir(cgroupMount, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && match(d.Name()) && strings.Contains(path, theNode.ID) {
			dirs = append(dirs, path)
		}
		return nil // a cgroup may go during the walk
	})
	must(t, err)
	slices.Reverse(dirs)
	return dirs
}

func systemctl(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("systemctl", args...).CombinedOutput(); err != nil {
		t.Errorf("systemctl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// sandboxCgroups are the cgroups called after a sandbox, in all hierarchies.
func (p *pod) sandboxCgroups() []string {
	p.t.Helper()
	return cgroupsCalled(p.t, func(name string) bool { return strings.Contains(name, p.ID) })
}

// cAdvisor finds a pod's network counters through the sandbox's cgroup, which is
// to be there for as long as the sandbox, though no process is in it: systemd
// removes units without processes, and OCI runtimes the cgroups of containers.
func TestCgroupOfSandboxLivesAsLongAsTheSandbox(t *testing.T) {
	for name, m := range map[string]mode{"plain": {pid: modeContainer}, "shared PID": {pid: modePod}} {
		t.Run(name, func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, handler string) {
				p := runPod(t, handler, m.apply)
				first := p.sandboxCgroups()
				if len(first) == 0 {
					t.Fatal("the sandbox has no cgroup")
				}
				check := func(when string) {
					t.Helper()
					for _, dir := range first {
						if _, err := os.Stat(dir); err != nil {
							t.Errorf("%s: %v", when, err)
						}
					}
					if handler != "runc" && m.pid == modeContainer {
						expectNoProcess(t, when, first)
					}
				}
				check("at first")
				for attempt := range uint32(2) {
					id, err := p.CreateContainer(p.ctx, "c", []string{"sleep", "1000"}, func(c *runtime.ContainerConfig) { c.Metadata.Attempt = attempt })
					must(t, err)
					must(t, theNode.StartContainer(p.ctx, id))
					check("while a container runs")
					// The container is beside it.
					expectEqual(t, "the pod's cgroup", parentOf(cgroupDir(t, p.containerPid(id), "memory"), id), parentOf(first[0], p.ID))
					must(t, theNode.StopContainer(p.ctx, id, 0))
					must(t, theNode.RemoveContainer(p.ctx, id))
					check("after the container")
					if systemdCgroup {
						systemctl(t, "daemon-reload")
						check("after a reload of systemd")
					}
				}
				must(t, p.Stop(p.ctx))
				must(t, p.Remove(p.ctx))
				if left := p.sandboxCgroups(); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
}

func expectNoProcess(t *testing.T, when string, dirs []string) {
	t.Helper()
	for _, dir := range dirs {
		if procs := readFile(t, filepath.Join(dir, "cgroup.procs")); procs != "" {
			t.Errorf("%s: processes in %s: %s", when, dir, procs)
		}
	}
}

// parentOf is the path, in its hierarchy, of the cgroup that the one called after
// id is in.
func parentOf(dir, id string) string {
	for ; len(dir) > len(cgroupMount); dir = filepath.Dir(dir) {
		if strings.Contains(filepath.Base(dir), id) {
			dir = strings.TrimPrefix(filepath.Dir(dir), cgroupMount)
			if !onV2() {
				_, dir, _ = strings.Cut(strings.TrimPrefix(dir, "/"), "/")
			}
			return strings.Trim(dir, "/")
		}
	}
	return ""
}

// By CRI the cgroup parent alone decides about the form of the sandbox's path,
// whether or not the runtime's options fit.
func TestCgroupOfSandboxOfTheOtherForm(t *testing.T) {
	withPause(t, func(t *testing.T) {
		for _, handler := range []string{"pause", sandboxHandler} {
			parent, dir, name := theNode.ID+"-other.slice", theNode.ID+".slice/"+theNode.ID+"-other.slice", "cri-containerd-%s.scope"
			if systemdCgroup {
				parent, dir, name = "/"+theNode.ID+"/other", theNode.ID+"/other", "%s"
			}
			t.Cleanup(func() {
				removeCgroups(t, filepath.Base(dir))
				removeCgroups(t, filepath.Dir(dir))
			})
			p := runPod(t, handler, func(c *runtime.PodSandboxConfig) { c.Linux.CgroupParent = parent })
			found := p.sandboxCgroups()
			want := dir + "/" + fmt.Sprintf(name, p.ID)
			if len(found) == 0 || !strings.HasSuffix(found[0], "/"+want) {
				t.Errorf("cgroups of the sandbox are %v, want %s", found, want)
			}
			must(t, p.Stop(p.ctx))
			must(t, p.Remove(p.ctx))
			if left := p.sandboxCgroups(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		}
	})
}
