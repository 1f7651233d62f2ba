package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// example is a run in which the stock shim takes 100 ms, in the median, podsandbox 28 and
// the Sandbox API 15: that is more than it may.
func example() *Result {
	r := &Result{Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Command: "make bench", Machine: []string{"a machine"}, Engines: []string{stock, podsandbox, sandboxAPI, shared, sharedSandboxAPI}}
	for engine, samples := range map[string][]float64{stock: {300, 100, 90, 110, 80}, podsandbox: {28}, sandboxAPI: {14, 16}} {
		for _, s := range samples {
			r.add(latencyGroup(hostNetwork, 1), stepSandbox, "ms", engine, s)
		}
	}
	r.add(memoryGroup(1), memoryPrivate+", of 20 pods", "kB", shared, 250)
	r.add(memoryGroup(1), memoryPrivate+", of 100 pods", "kB", shared, 151)
	r.add(memoryGroup(1), memoryPrivate+", of 100 pods", "kB", sharedSandboxAPI, 149)
	r.add(memoryGroup(1), memoryTogether+", of 100 pods", "", shared, 4)
	r.add(memoryGroup(1), memoryTogether+", of 20 pods", "", sharedSandboxAPI, 1)
	r.add(execGrowth, growthAfter(1, "exec"), "kB", podsandbox, 10)
	r.add(execGrowth, growthAfter(100, "exec"), "kB", podsandbox, 300)
	r.add(execGrowth, growthAfter(100, "exec"), "kB", stock, 50)
	return r
}

func TestMediansAndRatios(t *testing.T) {
	f := example().find(latencyGroup(hostNetwork, 1), stepSandbox)
	for engine, want := range map[string]float64{stock: 100, podsandbox: 28, sandboxAPI: 15, "another": 0} {
		if got := f.median(engine); got != want {
			t.Errorf("median of %s is %g, want %g", engine, got, want)
		}
	}
	if got := f.ratio(podsandbox, stock); got != 0.28 {
		t.Errorf("ratio %g", got)
	}
	if got := f.value(stock); !strings.HasPrefix(got, "100 (") {
		t.Errorf("value %q", got)
	}
	if got := f.value("another"); got != "-" {
		t.Errorf("value of what was not measured: %q", got)
	}
}

func TestAims(t *testing.T) {
	table := aimsTable(example())
	for _, want := range []struct{ label, engine, cells string }{
		{"RunPodSandbox, host network", podsandbox, "| ≤ 0.25 | 0.28 ✗ |"},
		{"RunPodSandbox, host network", sandboxAPI, "| ≤ 0.17 | 0.15 |"},
		{"growth by execs, in kB", podsandbox, "| ≤ 512 | 300 |"},
		{"growth by execs, in kB", sandboxAPI, "| ≤ 512 | - |"},
		{"throughput of output", podsandbox, "| ≥ 1.00 | - |"},
		{"private memory of each of 100 pods, idle, in kB", shared, "| ≤ 150 | 151 ✗ |"},
		{"private memory of each of 100 pods, idle, in kB", sharedSandboxAPI, "| ≤ 150 | 149 |"},
		{"processes of 100 pods", shared, "| ≤ 4 | 4 |"},
		{"processes of 100 pods", sharedSandboxAPI, "| ≤ 4 | - |"}, // of 20 pods is not of 100
	} {
		found := false
		for line := range strings.Lines(table) {
			if fields := strings.Join(strings.Fields(line), " "); strings.HasPrefix(fields, "| "+want.label+" | "+want.engine+" |") {
				found = strings.HasSuffix(fields, want.cells)
			}
		}
		if !found {
			t.Errorf("%s of %s: want %s in\n%s", want.label, want.engine, want.cells, table)
		}
	}
}

// A table has the engines that were measured, with ratios if there is something to compare
// them with.
func TestTableLeavesOutEnginesThatWereNotMeasured(t *testing.T) {
	r := example()
	for group, want := range map[string]string{
		latencyGroup(hostNetwork, 1): "| stock shim | podsandbox | ratio | Sandbox API | ratio |",
		memoryGroup(1):               "| shared | shared, Sandbox API |",
	} {
		header, _, _ := strings.Cut(r.table(r.group(group)), "\n")
		if got := strings.TrimPrefix(strings.Join(strings.Fields(header), " "), "| "); got != want {
			t.Errorf("%s: the header is %q, want %q", group, got, want)
		}
	}
}

// The memory is that of a real process, which is stopped so that it does not change.
func TestPodsThatShareAProcessHaveEqualPartsOfIt(t *testing.T) {
	cmd := exec.Command("sleep", "1000000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Wait4(cmd.Process.Pid, nil, unix.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	whole, err := usageOf([]int{cmd.Process.Pid}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if whole.processes != 1 || whole.threads != 1 || whole.private <= 0 || whole.kernel <= kernelStack {
		t.Errorf("a process is %+v", whole)
	}
	part, err := usageOf([]int{cmd.Process.Pid}, 4)
	if err != nil {
		t.Fatal(err)
	}
	part.pss = whole.pss / 4 // other users of the text come and go
	if want := (usage{whole.private / 4, whole.pss / 4, whole.kernel / 4, 0.25, 0.25}); part != want {
		t.Errorf("a fourth of %+v is %+v", whole, part)
	}
}

// A report has the last run alone.
func TestReport(t *testing.T) {
	dir := t.TempDir()
	first, second := example(), example()
	second.Time = second.Time.Add(24 * time.Hour)
	path := filepath.Join(dir, "report.md")
	if err := os.WriteFile(path, []byte("before\n"+reportBegin+"old\n"+reportEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Result{first, second} {
		if err := errors.Join(r.save(filepath.Join(dir, "run")), writeReport(path, filepath.Join(dir, "run"), r)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n", "after\n", "2026-01-03 03:04", "(run/latency.svg)"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in the report:\n%s", want, text)
		}
	}
	if strings.Contains(string(text), "old\n") || strings.Contains(string(text), "2026-01-02") || strings.Count(string(text), reportBegin) != 1 {
		t.Errorf("the old report is still there:\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, "run", "latency.svg")); err != nil {
		t.Error(err)
	}
}

func TestResultOfAnEarlierRunIsAdded(t *testing.T) {
	dir := t.TempDir()
	if err := example().save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "result.json")
	r := &Result{Engines: []string{stock, podsandbox, sandboxAPI, shared, sharedSandboxAPI}}
	if err := r.addFrom(path); err != nil {
		t.Fatal(err)
	}
	if got := r.find(execGrowth, growthAfter(100, "exec")).median(podsandbox); got != 300 {
		t.Errorf("growth is %g", got)
	}
	if !strings.Contains(strings.Join(r.Machine, "\n"), "2026-01-02 03:04 UTC: "+execGrowth) {
		t.Errorf("it does not say of which run: %q", r.Machine)
	}
	if err := r.addFrom(path); err == nil {
		t.Error("what has been measured was added again")
	}
	if err := (&Result{Engines: []string{stock}}).addFrom(path); err == nil {
		t.Error("a run with other engines was added")
	}
}

func TestNumbersInNames(t *testing.T) {
	for name, want := range map[string]float64{"after one exec": 1, "after 100 execs": 100, memoryPrivate + ", of 20 pods": 20, memoryPrivate + ", of one pod": 1} {
		if got := numberIn(name); got != want {
			t.Errorf("%q: %g, want %g", name, got, want)
		}
	}
}
