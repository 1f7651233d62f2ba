package cgroups

import (
	"strconv"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (t *v1Tree) setPids(r *specs.LinuxResources) error { return setPids(t.dir("pids"), r) }

func (t *v2Tree) setPids(r *specs.LinuxResources) error { return setPids(t.dir, r) }

// setPids sets the limit of tasks, threads included. A limit of 0 becomes 1, as in runc: systemd knows no 0, and a
// process that is in the cgroup can fork by neither.
func setPids(dir string, r *specs.LinuxResources) error {
	if r.Pids == nil || r.Pids.Limit == nil {
		return nil
	}
	v := "max"
	if n := *r.Pids.Limit; n >= 0 {
		v = strconv.FormatInt(max(n, 1), 10)
	}
	return set(dir, "pids limit", "pids.max", v)
}

func (t *v1Tree) statPids(m *v1.Metrics) error {
	r := reader{dir: t.dir("pids")}
	pids := &v1.PidsStat{}
	r.uint("pids.current", &pids.Current, 0)
	r.uint("pids.max", &pids.Limit, 0)
	if r.found {
		m.Pids = pids
	}
	return r.err
}

func (t *v2Tree) statPids(m *v2.Metrics) error {
	r := reader{dir: t.dir}
	pids := &v2.PidsStat{}
	r.uint("pids.current", &pids.Current, unlimited)
	r.uint("pids.max", &pids.Limit, unlimited)
	if r.found {
		m.Pids = pids
	}
	return r.err
}
