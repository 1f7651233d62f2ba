package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"containerd-shim-pause-v2/integration/node"
)

// finding is all that is known of one column.
type finding struct {
	column
	pods     []*pod // all that run
	pod      *pod   // the one that is looked at
	anatomy  *anatomy
	fromB    reply
	fromHost reply
	times    []times
}

// report is what the screen shows. Its cells also say whether all is as it must
// be; faults counts those that do not.
type report struct {
	table
	findings []finding
	host     namespaces
	faults   int
}

// each makes a cell for each column.
func (r *report) each(cell func(finding) text) []text {
	var cells []text
	for _, f := range r.findings {
		cells = append(cells, cell(f))
	}
	return cells
}

// check is a tick or, for what must not be, a cross.
func (r *report) check(ok bool) text {
	if ok {
		return styled(green, "✓ ")
	}
	r.faults++
	return styled(red, "✗ ")
}

func (r *report) build(rounds int, idle time.Duration) {
	r.add("", r.each(func(f finding) text { return styled(bold, "%s", strings.ToUpper(f.title)) })...)
	r.add("", r.each(func(f finding) text { return styled(dim, "%s", f.runtime) })...)
	r.rule()
	r.processes()
	r.namespaces()
	r.network()
	r.overhead(idle)
	r.time(rounds)
	r.rule()
}

func (r *report) processes() {
	r.rows = append(r.rows, row{label: styled(bold, "PROCESSES"), cells: r.each(func(f finding) text {
		return processText("", f.anatomy.tree[0], f.anatomy)
	})})
	var branches [][]text
	longest := 0
	for _, f := range r.findings {
		b := branchTexts(f.anatomy, f.column)
		branches = append(branches, b)
		longest = max(longest, len(b))
	}
	for i := range longest {
		var cells []text
		for _, b := range branches {
			if i < len(b) {
				cells = append(cells, b[i])
			} else {
				cells = append(cells, nil)
			}
		}
		r.add("", cells...)
	}
}

// branchTexts are the processes below the shim. The place of pause is kept, so
// that its absence shows.
func branchTexts(a *anatomy, c column) []text {
	var lines []text
	if !a.pause {
		said := join(styled(dim, "│"), styled(green, "  no pause process"))
		if c.pods > 1 {
			said = join(said, styled(dim, ", and %d more pods", c.pods-1))
		}
		lines = append(lines, said)
	}
	for i, p := range a.tree[1:] {
		branch := "├─ "
		if i == len(a.tree)-2 {
			branch = "└─ "
		}
		lines = append(lines, processText(branch, p, a))
	}
	return lines
}

func processText(branch string, p node.Process, a *anatomy) text {
	args := strings.Join(append([]string{filepath.Base(p.Args[0])}, p.Args[1:]...), " ")
	if p.Pid == a.shim {
		args = filepath.Base(p.Args[0])
	}
	const room = 24
	if len(args) > room {
		args = args[:room-1] + "…"
	}
	line := join(styled(dim, "%s", branch), styled(plain, "%d ", p.Pid))
	for _, t := range a.apps {
		if t.id == p.Pid {
			return join(line, styled(plain, "%s  ", args), styled(dim, "(%s)", t.name))
		}
	}
	s := bold
	if a.pause && p.Pid == a.holder.id {
		s = red
	}
	return join(line, styled(s, "%s", args), styled(dim, "  %s", megabytes(a.memory[p.Pid])))
}

// A cell of this section has a column for each of these threads.
func (a *anatomy) cast() []thread { return append([]thread{a.other, a.holder}, a.apps...) }

const inodeWidth = len("30000") + 3

// short is the end of an inode's number: the beginning is the same for all namespaces.
func short(inode string) string { return "…" + inode[max(0, len(inode)-5):] }

func (r *report) namespaces() {
	line := func(f finding, cell func(thread) text) text {
		var all text
		for i, t := range f.anatomy.cast() {
			all = join(all.pad(i*inodeWidth), cell(t))
		}
		return all
	}
	r.section("NAMESPACES", "", r.each(func(f finding) text {
		return line(f, func(t thread) text { return styled(bold, "%s", t.name) })
	})...)
	r.add("  pid or thread id", r.each(func(f finding) text {
		return line(f, func(t thread) text { return styled(plain, "%d", t.id) })
	})...)
	for _, kind := range kinds {
		r.add(fmt.Sprintf("  %s  host %s", kind, short(r.host[kind])), r.each(func(f finding) text {
			return line(f, func(t thread) text { return r.inode(kind, t.in[kind], f.anatomy.holder.in[kind]) })
		})...)
	}
	r.add("  held by", r.each(r.heldBy)...)
	r.add("  containers", r.each(r.shared)...)
}

func (r *report) inode(kind, inode, held string) text {
	switch {
	case inode == r.host[kind]:
		return styled(dim, "host's")
	case inode == held && slices.Contains(podKinds, kind):
		return styled(green, "%s", short(inode))
	}
	return styled(blue, "%s", short(inode))
}

func (r *report) heldBy(f finding) text {
	a := f.anatomy
	who := "the pause process"
	switch {
	case a.holder.id == a.shim:
		who = fmt.Sprintf("the main thread, not the other %d", a.threads[a.shim]-1)
	case !a.pause:
		who = "a thread of the shim for each pod"
	}
	return join(r.check(a.strays == 0 && distinct(a.holder.in, r.host, podKinds)), styled(plain, "%s", who))
}

func (r *report) shared(f finding) text {
	ok := true
	for i, t := range f.anatomy.apps {
		ok = ok && same(t.in, f.anatomy.holder.in, podKinds) && distinct(t.in, r.host, ownKinds)
		for _, other := range f.anatomy.apps[:i] {
			ok = ok && distinct(t.in, other.in, ownKinds)
		}
	}
	return join(r.check(ok), styled(plain, "share %s; own %s", strings.Join(podKinds, ", "), strings.Join(ownKinds, ", ")))
}

func (r *report) network() {
	line := func(f finding, reply reply) text {
		said := styled(plain, "%s: %s", strings.TrimPrefix(reply.url, "http://"), reply.body)
		if reply.err != nil {
			said = styled(red, "%s: %v", reply.url, reply.err)
		}
		return join(r.check(reply.answered(f.pod)), said)
	}
	r.section("NETWORK", "", r.each(func(finding) text { return nil })...)
	r.add("  b to a, localhost", r.each(func(f finding) text { return line(f, f.fromB) })...)
	r.add("  host to a", r.each(func(f finding) text { return line(f, f.fromHost) })...)
}

func (r *report) overhead(idle time.Duration) {
	r.section("BESIDE THE APP", fmt.Sprintf("memory: Anonymous in smaps_rollup, after %.0f s idle but for containerd's statistics", idle.Seconds()))
	r.add("  private memory a pod", bars(r, megabytes, func(f finding) int64 {
		var sum int64
		for _, p := range f.anatomy.overhead() {
			sum += f.anatomy.memory[p.Pid]
		}
		return sum / int64(f.column.pods)
	})...)
	r.add("  processes", r.each(func(f finding) text {
		threads := 0
		processes := f.anatomy.overhead()
		for _, p := range processes {
			threads += f.anatomy.threads[p.Pid]
		}
		note := fmt.Sprintf("with %d threads", threads)
		if f.column.pods > 1 {
			note += fmt.Sprintf(", for %d pods", f.column.pods)
		}
		return number(len(processes), note)
	})...)
	r.add("  mounts on the host", r.each(func(f finding) text {
		return number(len(f.anatomy.mounts), strings.Join(f.anatomy.mounts, ", "))
	})...)
}

func (r *report) time(rounds int) {
	r.section("TIME", fmt.Sprintf("medians of %d pods each, run by turns", rounds))
	for _, step := range []struct {
		label string
		of    func(times) time.Duration
	}{
		{"  RunPodSandbox", func(t times) time.Duration { return t.sandbox }},
		{"  same, without CNI", func(t times) time.Duration { return t.bare }},
		{"  both containers run", func(t times) time.Duration { return t.ready }},
		{"  stop and remove", func(t times) time.Duration { return t.gone }},
	} {
		r.add(step.label, bars(r, milliseconds, func(f finding) time.Duration { return median(f.times, step.of) })...)
	}
}

const (
	valueWidth = len("0.00 MB")
	barWidth   = 12
)

func megabytes(bytes int64) string { return fmt.Sprintf("%.2f MB", float64(bytes)/1e6) }

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.0f ms", float64(d)/float64(time.Millisecond))
}

func number(n int, note string) text {
	return join(styled(bold, "%*d", valueWidth, n), styled(dim, "  %s", note))
}

// bars shows a value of each finding, as a number and a bar, and how it compares
// with the first.
func bars[T ~int64](r *report, format func(T) string, value func(finding) T) []text {
	var values []T
	for _, f := range r.findings {
		values = append(values, value(f))
	}
	longest := float64(slices.Max(values))
	var cells []text
	for i, v := range values {
		colour, comparison := yellow, text(nil)
		if i > 0 {
			colour, comparison = green, compare(float64(v), float64(values[0]))
		}
		cells = append(cells, join(
			styled(bold, "%*s", valueWidth, format(v)),
			styled(colour, "  %s  ", bar(float64(v), longest, barWidth)),
			comparison))
	}
	return cells
}
