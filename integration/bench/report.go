package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// text is the result as Markdown that can be read on a terminal as well.
func (r *Result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n%s\n", strings.Join(r.Machine, "\n"), aimsTable(r))
	r.writeGroups(&b)
	return b.String()
}

// writeGroups writes a table for each group of figures.
func (r *Result) writeGroups(b *strings.Builder) {
	for _, name := range r.groups() {
		fmt.Fprintf(b, "\n### %s\n\n%s", name, r.table(r.group(name)))
	}
}

// table has a line for each figure: the value of each engine that has any of them, and its
// ratio to the first.
func (r *Result) table(figures []*Figure) string {
	measured := func(engine string) bool {
		return slices.ContainsFunc(figures, func(f *Figure) bool { return len(f.Samples[engine]) > 0 })
	}
	base := r.Engines[0]
	var engines []string
	header := []string{""}
	for _, e := range r.Engines {
		if !measured(e) {
			continue
		}
		engines = append(engines, e)
		header = append(header, e)
		if e != base && measured(base) {
			header = append(header, "ratio")
		}
	}
	rows := [][]string{header}
	for _, f := range figures {
		row := []string{f.Name}
		if f.Unit != "" {
			row[0] += ", " + f.Unit
		}
		for _, e := range engines {
			row = append(row, f.value(e))
			if e != base && measured(base) {
				row = append(row, ratioText(f.ratio(e, base)))
			}
		}
		rows = append(rows, row)
	}
	return markdown(rows)
}

// value is the median; of some samples with the middle half of them; of many with
// p95 and p99.
func (f *Figure) value(engine string) string {
	const some, many = 4, 20
	n := len(f.Samples[engine])
	number := func(x float64) string {
		switch size := math.Abs(x); {
		case size >= 100 || x == math.Trunc(x):
			return fmt.Sprintf("%.0f", x)
		case size < 1:
			return fmt.Sprintf("%.2f", x)
		}
		return fmt.Sprintf("%.1f", x)
	}
	if n == 0 {
		return "-"
	}
	text := number(f.median(engine))
	spread := number(f.quantile(0.25, engine)) + "–" + number(f.quantile(0.75, engine))
	switch {
	case n >= many && f.Unit == "ms":
		return fmt.Sprintf("%s (%s; p95 %s, p99 %s)", text, spread, number(f.quantile(0.95, engine)), number(f.quantile(0.99, engine)))
	case n >= some && f.Unit != "":
		return fmt.Sprintf("%s (%s)", text, spread)
	}
	return text
}

func ratioText(ratio float64) string {
	if ratio == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", ratio)
}

// markdown is a table whose first row is its header, with columns as wide as they
// have to be.
func markdown(rows [][]string) string {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell), len("---"))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			b.WriteString("| " + cell + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+1))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range widths {
				b.WriteString("| " + strings.Repeat("-", w) + " ")
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// aim is what a figure of an engine should be: at most limit, as a ratio to the stock
// shim or, if it is absolute, in the unit of the figure.
type aim struct {
	label    string
	group    string
	name     string // begins the name of the figure; the last one counts
	engine   string
	limit    float64
	absolute bool
	more     bool // at least limit
}

// aims are the project's.
func aims() (all []aim) {
	host := latencyGroup(hostNetwork, 1)
	each := func(label, group, name string, podsandboxLimit, sandboxAPILimit float64) {
		all = append(all,
			aim{label: label, group: group, name: name, engine: podsandbox, limit: podsandboxLimit},
			aim{label: label, group: group, name: name, engine: sandboxAPI, limit: sandboxAPILimit})
	}
	each("RunPodSandbox, host network", host, stepSandbox, 0.25, 0.17)
	each("pod ready: sandbox and one container", host, stepReady, 0.50, 0.47)
	each("stop and remove the sandbox", host, stepRemoveSandbox, 0.27, 0.20)
	each("exec", host, stepExec, 0.75, 0.75)
	each("CPU time of a pod up", cpuGroup, cpuUp, 0.50, 0.50)
	each("CPU time of a pod down", cpuGroup, cpuDown, 0.28, 0.28)
	each("private memory, one container, idle", memoryGroup(1), memoryPrivate, 0.58, 0.58)
	all = append(all,
		aim{label: "CPU time of the shim per GB of output", group: readerGroup, name: outputShim, engine: podsandbox, limit: 0.50},
		aim{label: "throughput of output", group: readerGroup, name: outputRate, engine: podsandbox, limit: 1, more: true})
	each("the same into a log, CPU time", logGroup, outputShim, 0.50, 0.50)
	each("the same into a log, throughput", logGroup, outputRate, 1, 1)
	all[len(all)-1].more, all[len(all)-2].more = true, true
	each("growth by execs, in kB", execGrowth, "after ", 512, 512)
	all[len(all)-1].absolute, all[len(all)-2].absolute = true, true
	return append(all, sharedAims()...)
}

// sharedAims are those for pods that share shims. Their parts in a shim depend on how many
// they are.
func sharedAims() (all []aim) {
	host, memory := latencyGroup(hostNetwork, 1), memoryGroup(1)
	all = []aim{
		{label: "RunPodSandbox, host network", group: host, name: stepSandbox, engine: shared, limit: 0.20},
		{label: "RunPodSandbox, host network", group: host, name: stepSandbox, engine: sharedSandboxAPI, limit: 0.12},
	}
	const of = ", of 100 pods"
	for _, a := range []aim{
		{label: "private memory of each of 100 pods, idle", name: memoryPrivate + of, limit: 0.03},
		{label: "private memory of each of 100 pods, idle, in kB", name: memoryPrivate + of, limit: 150, absolute: true},
		{label: "PSS of each of 100 pods, idle, in kB", name: memoryPSS + of, limit: 350, absolute: true},
		{label: "processes of 100 pods", name: memoryTogether + of, limit: 4, absolute: true},
	} {
		for _, engine := range []string{shared, sharedSandboxAPI} {
			a.group, a.engine = memory, engine
			all = append(all, a)
		}
	}
	return all
}

// value is what a run has measured for the aim; ok is false if it has not.
func (a aim) value(r *Result) (value float64, ok bool) {
	var f *Figure
	for _, candidate := range r.group(a.group) {
		if strings.HasPrefix(candidate.Name, a.name) {
			f = candidate
		}
	}
	if f == nil || len(f.Samples[a.engine]) == 0 {
		return 0, false
	}
	if a.absolute {
		return f.median(a.engine), true
	}
	value = f.ratio(a.engine, r.Engines[0])
	return value, value > 0
}

// aimsTable compares a run with the aims.
func aimsTable(r *Result) string {
	rows := [][]string{{"ratio to the stock shim, medians", "", "aim", "measured"}}
	for _, a := range aims() {
		format, relation := "%.2f", "≤ "
		switch {
		case a.absolute:
			format = "%.0f"
		case a.limit < 0.1:
			format = "%.3f"
		}
		if a.more {
			relation = "≥ "
		}
		cell := "-"
		if value, ok := a.value(r); ok {
			cell = fmt.Sprintf(format, value)
			if a.more != (value > a.limit) && value != a.limit {
				cell += " ✗"
			}
		}
		rows = append(rows, []string{a.label, a.engine, relation + fmt.Sprintf(format, a.limit), cell})
	}
	return markdown(rows)
}

// Lines of the report between which all is replaced.
const reportBegin, reportEnd = "<!-- bench: begin -->\n", "<!-- bench: end -->\n"

// writeReport puts a result, whose files are in a directory, into a Markdown file that exists.
func writeReport(path, dir string, r *Result) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), reportBegin)
	_, after, found := strings.Cut(rest, reportEnd)
	if !ok || !found {
		return fmt.Errorf("cannot find the place for the results in %s", path)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n## Aims\n\n%s\n✗: the aim is missed.\n", before, reportBegin, aimsTable(r))
	fmt.Fprintf(&b, "\n## Run of %s\n\nMade by `%s` on:\n\n- %s\n", r.Time.Format("2006-01-02 15:04 MST"), r.Command, strings.Join(r.Machine, "\n- "))
	images, err := filepath.Rel(filepath.Dir(path), dir)
	if err != nil {
		return err
	}
	for _, name := range r.plots() {
		fmt.Fprintf(&b, "\n![%s](%s)\n", name, filepath.ToSlash(filepath.Join(images, name+".svg")))
	}
	r.writeGroups(&b)
	fmt.Fprintf(&b, "\n%s%s", reportEnd, after)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
