package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gonum.org/v1/gonum/stat"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Result is what a run has measured; the JSON file holds it.
type Result struct {
	Time    time.Time `json:"time"`
	Command string    `json:"command"`
	Machine []string  `json:"machine"` // what it is and what runs on it
	Engines []string  `json:"engines"` // the first is what others are compared with
	Figures []*Figure `json:"figures"`

	mu sync.Mutex // guards Figures
}

// Figure is something that was measured with each engine, many times or once.
type Figure struct {
	Group   string               `json:"group"`
	Name    string               `json:"name"`
	Unit    string               `json:"unit,omitempty"`
	Samples map[string][]float64 `json:"samples"` // by engine, in the order of time
}

// add is called by many goroutines.
func (r *Result) add(group, name, unit, engine string, value float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := r.find(group, name)
	if f == nil {
		f = &Figure{Group: group, Name: name, Unit: unit, Samples: map[string][]float64{}}
		r.Figures = append(r.Figures, f)
	}
	f.Samples[engine] = append(f.Samples[engine], value)
}

// find returns nil for what was not measured.
func (r *Result) find(group, name string) *Figure {
	for _, f := range r.Figures {
		if f.Group == group && f.Name == name {
			return f
		}
	}
	return nil
}

// groups are the groups of the figures, in their order.
func (r *Result) groups() (names []string) {
	for _, f := range r.Figures {
		if !slices.Contains(names, f.Group) {
			names = append(names, f.Group)
		}
	}
	return names
}

func (r *Result) group(name string) (figures []*Figure) {
	for _, f := range r.Figures {
		if f.Group == name {
			figures = append(figures, f)
		}
	}
	return figures
}

// quantile is 0 of no samples.
func (f *Figure) quantile(p float64, engine string) float64 {
	sorted := slices.Sorted(slices.Values(f.Samples[engine]))
	if len(sorted) == 0 {
		return 0
	}
	return stat.Quantile(p, stat.LinInterp, sorted, nil)
}

func (f *Figure) median(engine string) float64 {
	sorted := slices.Sorted(slices.Values(f.Samples[engine]))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// ratio compares the medians of an engine and of another; 0 if one is missing.
func (f *Figure) ratio(engine, base string) float64 {
	if f == nil || f.median(base) <= 0 || len(f.Samples[engine]) == 0 {
		return 0
	}
	return f.median(engine) / f.median(base)
}

func (b *bench) newResult(ctx context.Context) (*Result, error) {
	r := &Result{Time: time.Now().UTC().Truncate(time.Second), Command: b.command}
	for _, e := range b.engines {
		r.Engines = append(r.Engines, e.name)
		v, err := e.cri().Version(ctx, &cri.VersionRequest{})
		if err != nil {
			return nil, fmt.Errorf("cannot use engine %s: %w", e.name, err)
		}
		if e.name == stock || !slices.Contains([]string{podsandbox, sandboxAPI, shared, sharedSandboxAPI}, e.name) {
			r.Machine = append(r.Machine, fmt.Sprintf("%s: %s %s", e.name, v.RuntimeName, v.RuntimeVersion))
		}
	}
	oci, err := b.ociVersion(ctx)
	if err != nil {
		return nil, err
	}
	r.Machine = append(append(machine(), oci), r.Machine...)
	return r, nil
}

// ociVersion is the first line that the OCI runtime says of itself.
func (b *bench) ociVersion(ctx context.Context) (string, error) {
	path := b.ociRuntime
	if !filepath.IsAbs(path) {
		var err error
		if path, err = b.node.LookPath(path); err != nil {
			return "", err
		}
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return "OCI runtime: " + strings.Replace(first, " version", "", 1), nil
}

// machine describes the machine.
func machine() []string {
	var u unix.Utsname
	_ = unix.Uname(&u) // it has no errors but EFAULT
	processor := ""
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(cpuinfo)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			processor = strings.TrimSpace(value)
			break
		}
	}
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info) // likewise
	cgroup := "v2"
	if root, err := accountingRoot(); err == nil && unix.Access(filepath.Join(root, "cgroup.controllers"), unix.R_OK) != nil {
		cgroup = "v1"
	}
	return []string{
		fmt.Sprintf("%d CPUs: %s, %s; %d GiB of memory", runtime.NumCPU(), processor, runtime.GOARCH, (info.Totalram*uint64(info.Unit)+1<<29)>>30),
		fmt.Sprintf("Linux %s, cgroup %s", unix.ByteSliceToString(u.Release[:]), cgroup),
	}
}

// save writes the result and its plots into a directory, in the place of those before.
func (r *Result) save(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "result.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return r.plot(dir)
}

// addFrom adds the figures of an earlier run with the same engines, and says so.
func (r *Result) addFrom(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	earlier := &Result{}
	if err := json.Unmarshal(text, earlier); err != nil {
		return fmt.Errorf("cannot read %s: %w", path, err)
	}
	if !slices.Equal(earlier.Engines, r.Engines) {
		return fmt.Errorf("cannot add %s: it is of the engines %q, not %q", path, earlier.Engines, r.Engines)
	}
	for _, group := range earlier.groups() {
		if slices.Contains(r.groups(), group) {
			return fmt.Errorf("cannot add %s: this run has measured %q, too", path, group)
		}
	}
	for _, group := range earlier.groups() {
		r.Machine = append(r.Machine, fmt.Sprintf("of a run at %s: %s", earlier.Time.Format("2006-01-02 15:04 MST"), group))
	}
	r.Figures = append(r.Figures, earlier.Figures...)
	return nil
}
