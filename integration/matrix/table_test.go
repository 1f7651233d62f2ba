package main

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// output is what `go test -json` prints for a run in which one of two leaves fails.
const output = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/one"}
{"Action":"output","Package":"p","Test":"TestA/one","Output":"    a_test.go:1: text\n"}
{"Action":"pass","Package":"p","Test":"TestA/one","Elapsed":0.1}
{"Action":"run","Package":"p","Test":"TestA/two"}
{"Action":"fail","Package":"p","Test":"TestA/two","Elapsed":0.1}
{"Action":"fail","Package":"p","Test":"TestA","Elapsed":0.2}
{"Action":"fail","Package":"p","Elapsed":0.2}
`

func TestLeavesAreCounted(t *testing.T) {
	for _, tc := range []struct {
		name, output string
		want         map[string]outcome
	}{
		{"one of two has failed", output, map[string]outcome{"TestA/one": passed, "TestA/two": failed}},
		{
			"a test has failed after its subtests",
			strings.ReplaceAll(output, `"fail","Package":"p","Test":"TestA/two"`, `"skip","Package":"p","Test":"TestA/two"`),
			map[string]outcome{"TestA/one": passed, "TestA/two": skipped, "TestA": failed},
		},
		{
			"the run was cut off",
			output[:strings.Index(output, `{"Action":"fail"`)],
			map[string]outcome{"TestA/one": passed, "TestA/two": begun},
		},
		{
			"a name is the beginning of another",
			`{"Action":"pass","Test":"TestA"}{"Action":"pass","Test":"TestAB"}`,
			map[string]outcome{"TestA": passed, "TestAB": passed},
		},
	} {
		got, err := parse(strings.NewReader(tc.output))
		if err != nil || !maps.Equal(got, tc.want) {
			t.Errorf("%s: %v, %v; not %v", tc.name, got, err, tc.want)
		}
	}
}

func TestRunsThatAreNoneAreRefused(t *testing.T) {
	for _, output := range []string{"", `{"Action":"fail","Package":"p"}`, "FAIL: cannot build\n"} {
		if got, err := parse(strings.NewReader(output)); err == nil {
			t.Errorf("%q: %v, no error", output, got)
		}
	}
}

func TestTable(t *testing.T) {
	columns := []column{{"all", regexp.MustCompile("")}, {"x", regexp.MustCompile("/x$")}, {"none", regexp.MustCompile("/none$")}}
	rows := []row{
		{"good", map[string]outcome{"A/x": passed, "A/y": passed}},
		{"bad", map[string]outcome{"A/x": begun, "A/y": failed, "B/x": passed, "B/y": skipped}},
	}
	want := `| version | all | x | none |
| --- | --- | --- | --- |
| good | 2/2 | 1/1 | – |
| bad | 1/3, 1 skipped | 1/2 | – |
`
	if got := table("version", columns, rows); got != want {
		t.Errorf("table:\n%s\nnot:\n%s", got, want)
	}
}

func TestFailuresAreNamed(t *testing.T) {
	columns := []column{{"x", regexp.MustCompile("/x$")}}
	good := row{"good", map[string]outcome{"A/x": passed}}
	if err := failures(columns, []row{good}); err != nil {
		t.Errorf("all have passed: %v", err)
	}
	err := failures(columns, []row{good, {"bad", map[string]outcome{"A/x": passed, "A": failed, "B": begun}}, {"empty", map[string]outcome{"A": passed}}})
	want := "bad: failed: A\nbad: failed: B\nempty: no test is in a column"
	if err == nil || err.Error() != want {
		t.Errorf("%v, not %s", err, want)
	}
}

func TestTextBetweenTheMarksIsReplaced(t *testing.T) {
	got, err := replace("head\n"+begin+"old\n"+end+"foot\n", "new\n")
	if want := "head\n" + begin + "\nnew\n\n" + end + "foot\n"; err != nil || got != want {
		t.Errorf("%q, %v; not %q", got, err, want)
	}
	for _, document := range []string{"", "head\n" + begin, "head\n" + end + begin} {
		if got, err := replace(document, "new\n"); err == nil {
			t.Errorf("%q: %q, no error", document, got)
		}
	}
}

func TestDocumentIsWrittenAlsoIfTestsFail(t *testing.T) {
	dir := t.TempDir()
	document, results := filepath.Join(dir, "doc.md"), filepath.Join(dir, "run.json")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(document, "head\n"+begin+end)
	write(results, output)
	err := run([]string{"-into", document, "-by", "make it", "-on", "a machine", "-head", "row", "-column", "A=^TestA/", "label=" + results})
	if err == nil || err.Error() != "label: failed: TestA/two" {
		t.Errorf("error: %v", err)
	}
	got, err := os.ReadFile(document)
	want := "head\n" + begin + "\n| row | A |\n| --- | --- |\n| label | 1/2 |\n\nWritten by `make it` on a machine.\n\n" + end
	if err != nil || string(got) != want {
		t.Errorf("%s, %v; not %s", got, err, want)
	}
}

func TestSplitRows(t *testing.T) {
	run := row{"run", map[string]outcome{"TestB/x": failed, "TestA/x": passed, "TestA/y/1": passed, "TestC": skipped}}
	var got []string
	for _, r := range splitRows([]row{run}) {
		got = append(got, r.label+" "+cell(column{"x", regexp.MustCompile("/x(/|$)")}, r)+" "+cell(column{"y", regexp.MustCompile("/y(/|$)")}, r))
	}
	want := []string{"A 1/1 1/1", "B 0/1 –", "C – –"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
