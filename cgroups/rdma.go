package cgroups

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (t *v1Tree) setRdma(r *specs.LinuxResources) error { return setRdma(t.dir("rdma"), r) }

func (t *v2Tree) setRdma(r *specs.LinuxResources) error { return setRdma(t.dir, r) }

func setRdma(dir string, r *specs.LinuxResources) error {
	for _, device := range slices.Sorted(maps.Keys(r.Rdma)) {
		v := device
		if n := r.Rdma[device].HcaHandles; n != nil {
			v += " hca_handle=" + strconv.FormatUint(uint64(*n), 10)
		}
		if n := r.Rdma[device].HcaObjects; n != nil {
			v += " hca_object=" + strconv.FormatUint(uint64(*n), 10)
		}
		if v == device {
			continue
		}
		if err := set(dir, "rdma limit", "rdma.max", v); err != nil {
			return err
		}
	}
	return nil
}

// rdmaEntry is a line of rdma.current or rdma.max.
type rdmaEntry struct {
	device           string
	handles, objects uint32
}

// rdma reads lines such as "mlx4_0 hca_handle=2 hca_object=max".
func (r *reader) rdma(file string) []rdmaEntry {
	text, ok := r.text(file)
	if !ok {
		return nil
	}
	var entries []rdmaEntry
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		e := rdmaEntry{device: fields[0]}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			n, err := uint64(math.MaxUint32), error(nil)
			if value != "max" {
				n, err = strconv.ParseUint(value, 10, 32)
			}
			if err != nil {
				r.fail(file, line, err)
				return nil
			}
			switch key {
			case "hca_handle":
				e.handles = uint32(n)
			case "hca_object":
				e.objects = uint32(n)
			}
		}
		entries = append(entries, e)
	}
	return entries
}

func (t *v1Tree) statRdma(m *v1.Metrics) error {
	r := reader{dir: t.dir("rdma")}
	convert := func(entries []rdmaEntry) (list []*v1.RdmaEntry) {
		for _, e := range entries {
			list = append(list, &v1.RdmaEntry{Device: e.device, HcaHandles: e.handles, HcaObjects: e.objects})
		}
		return list
	}
	rdma := &v1.RdmaStat{Current: convert(r.rdma("rdma.current")), Limit: convert(r.rdma("rdma.max"))}
	if r.found {
		m.Rdma = rdma
	}
	return r.err
}

func (t *v2Tree) statRdma(m *v2.Metrics) error {
	r := reader{dir: t.dir}
	convert := func(entries []rdmaEntry) (list []*v2.RdmaEntry) {
		for _, e := range entries {
			list = append(list, &v2.RdmaEntry{Device: e.device, HcaHandles: e.handles, HcaObjects: e.objects})
		}
		return list
	}
	rdma := &v2.RdmaStat{Current: convert(r.rdma("rdma.current")), Limit: convert(r.rdma("rdma.max"))}
	if r.found {
		m.Rdma = rdma
	}
	return r.err
}
