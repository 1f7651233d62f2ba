package cgroups

import (
	"errors"
	"strconv"
	"strings"

	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"golang.org/x/sys/unix"
)

// pressure reads a file of pressure stall information (Documentation/accounting/psi.rst), two lines such as
//
//	some avg10=0.00 avg60=0.12 avg300=0.05 total=123456
//
// It returns nil if there is none: a kernel booted with psi=0 has the files but refuses to read them.
func (r *reader) pressure(file string) *v2.PSIStats {
	text, ok := r.text(file)
	if errors.Is(r.err, unix.EOPNOTSUPP) {
		r.err = nil
	}
	if !ok {
		return nil
	}
	stats := &v2.PSIStats{}
	for line := range strings.Lines(text) {
		kind, values, _ := strings.Cut(strings.TrimSpace(line), " ")
		data := &v2.PSIData{}
		switch kind {
		case "some":
			stats.Some = data
		case "full":
			stats.Full = data
		default:
			continue
		}
		if err := parsePressure(values, data); err != nil {
			r.fail(file, line, err)
			return nil
		}
	}
	return stats
}

func parsePressure(values string, data *v2.PSIData) error {
	for field := range strings.FieldsSeq(values) {
		var err error
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "avg10":
			data.Avg10, err = strconv.ParseFloat(value, 64)
		case "avg60":
			data.Avg60, err = strconv.ParseFloat(value, 64)
		case "avg300":
			data.Avg300, err = strconv.ParseFloat(value, 64)
		case "total":
			data.Total, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
