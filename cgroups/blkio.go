package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (t *v1Tree) setBlkio(r *specs.LinuxResources) error {
	b := r.BlockIO
	if b == nil {
		return nil
	}
	dir := t.dir("blkio")
	// The CFQ scheduler left with Linux 5.0; BFQ has the same weights under its own name.
	weight := "blkio.weight"
	if dir != "" && !exists(filepath.Join(dir, weight)) {
		weight = "blkio.bfq.weight"
	}
	if err := setWeight(dir, "block io weight", weight, "", b.Weight); err != nil {
		return err
	}
	if err := setWeight(dir, "block io leaf weight", "blkio.leaf_weight", "", b.LeafWeight); err != nil {
		return err
	}
	for _, d := range b.WeightDevice {
		device := deviceName(d.Major, d.Minor) + " "
		if err := setWeight(dir, "block io weight", weight+"_device", device, d.Weight); err != nil {
			return err
		}
		if err := setWeight(dir, "block io leaf weight", "blkio.leaf_weight_device", device, d.LeafWeight); err != nil {
			return err
		}
	}
	for _, throttle := range throttles(b) {
		for _, d := range throttle.devices {
			v := deviceName(d.Major, d.Minor) + " " + strconv.FormatUint(d.Rate, 10)
			if err := set(dir, "block io throttle", throttle.v1File, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *v2Tree) setIO(r *specs.LinuxResources) error {
	b := r.BlockIO
	if b == nil {
		return nil
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		return onV2("block io leaf weight", *b.LeafWeight)
	}
	// BFQ takes the spec's range of 10 to 1000 as it is, io.weight wants 1 to 10000.
	file, convert := "io.bfq.weight", func(w uint16) uint16 { return w }
	if !exists(filepath.Join(t.dir, file)) {
		file, convert = "io.weight", blkioToIOWeight
	}
	setWeightV2 := func(prefix string, w *uint16) error {
		if w == nil {
			return nil
		}
		converted := convert(*w)
		return setWeight(t.dir, "block io weight", file, prefix, &converted)
	}
	if err := setWeightV2("", b.Weight); err != nil {
		return err
	}
	for _, d := range b.WeightDevice {
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			return onV2("block io leaf weight", *d.LeafWeight)
		}
		if err := setWeightV2(deviceName(d.Major, d.Minor)+" ", d.Weight); err != nil {
			return err
		}
	}
	for _, throttle := range throttles(b) {
		for _, d := range throttle.devices {
			rate := "max"
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			v := deviceName(d.Major, d.Minor) + " " + throttle.v2Key + "=" + rate
			if err := set(t.dir, "block io throttle", "io.max", v); err != nil {
				return err
			}
		}
	}
	return nil
}

// blkioToIOWeight converts the spec's weight linearly, as runc and crun do. Source: crun.1.md, "IO controller".
func blkioToIOWeight(w uint16) uint16 {
	if w == 0 {
		return 0
	}
	return uint16(1 + (uint32(max(w, 10))-10)*9999/990)
}

func setWeight(dir, resource, file, prefix string, w *uint16) error {
	if w == nil || *w == 0 {
		return nil
	}
	return set(dir, resource, file, prefix+strconv.FormatUint(uint64(*w), 10))
}

func deviceName(major, minor int64) string {
	return fmt.Sprintf("%d:%d", major, minor)
}

type throttle struct {
	v1File, v2Key string
	devices       []specs.LinuxThrottleDevice
}

func throttles(b *specs.LinuxBlockIO) []throttle {
	return []throttle{
		{"blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}

// statBlkio reads the counters of the scheduler that has any for this cgroup: CFQ's (before Linux 5.0), BFQ's, else
// those of the throttling layer, which sees every request.
func (t *v1Tree) statBlkio(m *v1.Metrics) error {
	r := reader{dir: t.dir("blkio")}
	b := &v1.BlkIOStat{}
	type source struct {
		file string
		to   *[]*v1.BlkIOEntry
	}
	for _, sources := range [][]source{
		{
			{"blkio.io_service_bytes_recursive", &b.IoServiceBytesRecursive},
			{"blkio.io_serviced_recursive", &b.IoServicedRecursive},
			{"blkio.io_queued_recursive", &b.IoQueuedRecursive},
			{"blkio.io_service_time_recursive", &b.IoServiceTimeRecursive},
			{"blkio.io_wait_time_recursive", &b.IoWaitTimeRecursive},
			{"blkio.io_merged_recursive", &b.IoMergedRecursive},
			{"blkio.time_recursive", &b.IoTimeRecursive},
			{"blkio.sectors_recursive", &b.SectorsRecursive},
		},
		{
			{"blkio.bfq.io_service_bytes_recursive", &b.IoServiceBytesRecursive},
			{"blkio.bfq.io_serviced_recursive", &b.IoServicedRecursive},
		},
		{
			{"blkio.throttle.io_service_bytes_recursive", &b.IoServiceBytesRecursive},
			{"blkio.throttle.io_serviced_recursive", &b.IoServicedRecursive},
		},
		{
			{"blkio.throttle.io_service_bytes", &b.IoServiceBytesRecursive},
			{"blkio.throttle.io_serviced", &b.IoServicedRecursive},
		},
	} {
		var entries []*v1.BlkIOEntry
		for _, s := range sources {
			*s.to = r.blkio(s.file)
			entries = append(entries, *s.to...)
		}
		if len(entries) > 0 && r.err == nil {
			r.err = nameDevices(filepath.Join(t.proc, "partitions"), entries)
			break
		}
	}
	if r.found {
		m.Blkio = b
	}
	return r.err
}

// blkio reads lines such as "8:0 Read 1282048" or "8:0 6792"; the last line is a total of all devices.
func (r *reader) blkio(file string) []*v1.BlkIOEntry {
	text, ok := r.text(file)
	if !ok {
		return nil
	}
	var entries []*v1.BlkIOEntry
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 2 && fields[0] == "Total" {
			continue
		}
		e := &v1.BlkIOEntry{}
		var err error
		switch len(fields) {
		case 3:
			e.Op = fields[1]
		case 2:
		default:
			r.fail(file, line, errors.New("not 2 or 3 fields"))
			return nil
		}
		if e.Major, e.Minor, err = parseDevice(fields[0]); err == nil {
			e.Value, err = parseUint(fields[len(fields)-1])
		}
		if err != nil {
			r.fail(file, line, err)
			return nil
		}
		entries = append(entries, e)
	}
	return entries
}

func parseDevice(s string) (major, minor uint64, err error) {
	first, second, _ := strings.Cut(s, ":")
	if major, err = strconv.ParseUint(first, 10, 32); err != nil {
		return 0, 0, err
	}
	minor, err = strconv.ParseUint(second, 10, 32)
	return major, minor, err
}

// nameDevices adds the device nodes' paths, from the lines "major minor #blocks name" of /proc/partitions. A device
// that is not there, as it was pulled out, has no name.
func nameDevices(file string, entries []*v1.BlkIOEntry) error {
	text, err := readFile(file)
	if err != nil {
		return err
	}
	names := make(map[string]string)
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 4 {
			device := fields[0] + ":" + fields[1]
			if _, ok := names[device]; !ok {
				names[device] = "/dev/" + fields[3]
			}
		}
	}
	for _, e := range entries {
		e.Device = names[deviceName(int64(e.Major), int64(e.Minor))]
	}
	return nil
}

// statIO reads lines such as "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0".
func (t *v2Tree) statIO(m *v2.Metrics) error {
	r := reader{dir: t.dir}
	text, ok := r.text("io.stat")
	if !ok {
		return r.err
	}
	io := &v2.IOStat{}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue // a device without counters
		}
		e := &v2.IOEntry{}
		var err error
		if e.Major, e.Minor, err = parseDevice(fields[0]); err != nil {
			r.fail("io.stat", line, err)
			return r.err
		}
		counters := map[string]*uint64{"rbytes": &e.Rbytes, "wbytes": &e.Wbytes, "rios": &e.Rios, "wios": &e.Wios}
		for _, field := range fields[1:] {
			key, value, _ := strings.Cut(field, "=")
			if p := counters[key]; p != nil {
				if *p, err = parseUint(value); err != nil {
					r.fail("io.stat", line, err)
					return r.err
				}
			}
		}
		io.Usage = append(io.Usage, e)
	}
	io.PSI = r.pressure("io.pressure")
	m.Io = io
	return r.err
}
