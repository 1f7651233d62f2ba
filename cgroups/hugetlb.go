package cgroups

import (
	"errors"
	"os"
	"strconv"
	"strings"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hugepageSizes returns the sizes of huge pages that the kernel has, as hugetlb's files name them, from the entries
// "hugepages-<n>kB" of a directory (Documentation/admin-guide/mm/hugetlbpage.rst). A kernel without any has none.
func hugepageSizes(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "hugepages-")
		number, isKB := strings.CutSuffix(number, "kB")
		kb, err := strconv.ParseUint(number, 10, 64)
		switch {
		case !ok || !isKB || err != nil:
		case kb >= 1<<20:
			sizes = append(sizes, strconv.FormatUint(kb>>20, 10)+"GB")
		case kb >= 1<<10:
			sizes = append(sizes, strconv.FormatUint(kb>>10, 10)+"MB")
		default:
			sizes = append(sizes, number+"KB")
		}
	}
	return sizes
}

func (t *v1Tree) setHugetlb(r *specs.LinuxResources) error {
	return setHugetlb(t.dir("hugetlb"), "limit_in_bytes", r)
}

func (t *v2Tree) setHugetlb(r *specs.LinuxResources) error {
	return setHugetlb(t.dir, "max", r)
}

// setHugetlb limits the pages in use and, where the kernel can (5.7 and later), their reservation: without that, a
// process that reserved more than it may use is killed by SIGBUS on access.
func setHugetlb(dir, suffix string, r *specs.LinuxResources) error {
	for _, l := range r.HugepageLimits {
		resource, v := "hugepage limit of "+l.Pagesize, strconv.FormatUint(l.Limit, 10)
		if err := set(dir, resource, "hugetlb."+l.Pagesize+"."+suffix, v); err != nil {
			return err
		}
		err := set(dir, resource, "hugetlb."+l.Pagesize+".rsvd."+suffix, v)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

func (t *v1Tree) statHugetlb(m *v1.Metrics) error {
	for _, size := range t.hugepages {
		r := reader{dir: t.dir("hugetlb")}
		s := &v1.HugetlbStat{Pagesize: size}
		r.uint("hugetlb."+size+".usage_in_bytes", &s.Usage, 0)
		r.uint("hugetlb."+size+".max_usage_in_bytes", &s.Max, 0)
		r.uint("hugetlb."+size+".failcnt", &s.Failcnt, 0)
		if r.err != nil {
			return r.err
		}
		if r.found {
			m.Hugetlb = append(m.Hugetlb, s)
		}
	}
	return nil
}

func (t *v2Tree) statHugetlb(m *v2.Metrics) error {
	for _, size := range t.hugepages {
		r := reader{dir: t.dir}
		s := &v2.HugeTlbStat{Pagesize: size}
		r.uint("hugetlb."+size+".current", &s.Current, unlimited)
		r.uint("hugetlb."+size+".max", &s.Max, unlimited)
		r.keyed("hugetlb."+size+".events", []field{{"max", &s.Failcnt}})
		if r.err != nil {
			return r.err
		}
		if r.found {
			m.Hugetlb = append(m.Hugetlb, s)
		}
	}
	return nil
}
