package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// row is one test run: how each of its tests ended, by name.
type row struct {
	label string
	tests map[string]outcome
}

// column are the tests whose names match.
type column struct {
	label string
	tests *regexp.Regexp
}

// outcome is how a test ended, as test2json has it; "run" if it did not.
type outcome string

const (
	begun   outcome = "run"
	passed  outcome = "pass"
	failed  outcome = "fail"
	skipped outcome = "skip"
)

// parse reads the output of `go test -json` (go doc test2json). The result has the
// tests without subtests; one with some is there if it has failed though they have not.
func parse(r io.Reader) (map[string]outcome, error) {
	all := map[string]outcome{}
	for d := json.NewDecoder(r); ; {
		var event struct {
			Action outcome
			Test   string
		}
		err := d.Decode(&event)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		switch event.Action {
		case begun, passed, failed, skipped:
			if event.Test != "" {
				all[event.Test] = event.Action
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no test has run")
	}
	return leaves(all), nil
}

func leaves(all map[string]outcome) map[string]outcome {
	kept := map[string]outcome{}
	for name, o := range all {
		below, bad := 0, 0
		for other, o := range all {
			if strings.HasPrefix(other, name+"/") {
				below++
				if o.isBad() {
					bad++
				}
			}
		}
		if below == 0 || o.isBad() && bad == 0 {
			kept[name] = o
		}
	}
	return kept
}

// splitRows makes a row of each test at the top of a run, labelled by its name.
func splitRows(runs []row) (rows []row) {
	for _, run := range runs {
		tests := map[string]map[string]outcome{} // by the name at the top
		for name, o := range run.tests {
			top, _, _ := strings.Cut(name, "/")
			if tests[top] == nil {
				tests[top] = map[string]outcome{}
			}
			tests[top][name] = o
		}
		for _, top := range slices.Sorted(maps.Keys(tests)) {
			rows = append(rows, row{strings.TrimPrefix(top, "Test"), tests[top]})
		}
	}
	return rows
}

// isBad says whether a test has failed. One that did not end has.
func (o outcome) isBad() bool { return o == failed || o == begun }

// cell says how many of the tests in a column have passed, of those that were not
// skipped: "11/12", "12/12, 1 skipped", "–" if there are none.
func cell(c column, r row) string {
	count := map[outcome]int{}
	for name, o := range r.tests {
		if c.tests.MatchString(name) {
			count[o]++
		}
	}
	ran := count[passed] + count[failed] + count[begun]
	if ran+count[skipped] == 0 {
		return "–"
	}
	text := fmt.Sprintf("%d/%d", count[passed], ran)
	if count[skipped] > 0 {
		text += fmt.Sprintf(", %d skipped", count[skipped])
	}
	return text
}

// table is the table as Markdown.
func table(head string, columns []column, rows []row) string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	cells := []string{head}
	for _, c := range columns {
		cells = append(cells, c.label)
	}
	line(cells)
	line(slices.Repeat([]string{"---"}, len(cells)))
	for _, r := range rows {
		cells := []string{r.label}
		for _, c := range columns {
			cells = append(cells, cell(c, r))
		}
		line(cells)
	}
	return b.String()
}

// failures names the tests that have failed, also those of no column, and the runs
// that have no test in any.
func failures(columns []column, rows []row) error {
	var errs []error
	for _, r := range rows {
		shown := 0
		for _, name := range slices.Sorted(maps.Keys(r.tests)) {
			if slices.ContainsFunc(columns, func(c column) bool { return c.tests.MatchString(name) }) {
				shown++
			}
			if r.tests[name].isBad() {
				errs = append(errs, fmt.Errorf("%s: failed: %s", r.label, name))
			}
		}
		if shown == 0 {
			errs = append(errs, fmt.Errorf("%s: no test is in a column", r.label))
		}
	}
	return errors.Join(errs...)
}

// The table is between these lines of a document.
const (
	begin = "<!-- matrix: begin -->\n"
	end   = "<!-- matrix: end -->\n"
)

// replace puts text between the marks of a document.
func replace(document, text string) (string, error) {
	before, rest, found := strings.Cut(document, begin)
	_, after, ends := strings.Cut(rest, end)
	if !found || !ends {
		return "", fmt.Errorf("no lines %q and %q", strings.TrimSpace(begin), strings.TrimSpace(end))
	}
	return before + begin + "\n" + text + "\n" + end + after, nil
}
