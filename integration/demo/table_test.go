package main

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func render(t *testing.T, tab *table, colour bool) []string {
	t.Helper()
	var b strings.Builder
	if err := tab.write(&b, colour); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

func example() *table {
	tab := &table{}
	tab.add("", styled(bold, "one"), styled(bold, "two"))
	tab.rule()
	tab.section("HEADING", "with a note that is longer than any label")
	tab.add("  label", styled(green, "├─ 1"), styled(red, "x"))
	tab.add("  l", styled(plain, "1"), styled(plain, "2"))
	return tab
}

func TestColumnsAreAligned(t *testing.T) {
	got := render(t, example(), false)
	want := []string{
		"          one    two",
		"────────────────────",
		"",
		"HEADING  with a note that is longer than any label",
		"  label   ├─ 1   x",
		"  l       1      2",
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("line %d:\n got %q\nwant %q", i, got[i], want[i])
		}
	}
}

func TestPlainHasNoEscapes(t *testing.T) {
	for _, line := range render(t, example(), false) {
		if strings.ContainsRune(line, '\x1b') {
			t.Errorf("escape in %q", line)
		}
	}
}

// Escape sequences take no room: but for them, a line is the same in colour.
func TestColourKeepsLayout(t *testing.T) {
	plainLines, coloured := render(t, example(), false), render(t, example(), true)
	for i, line := range coloured {
		for _, s := range []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m"} {
			line = strings.ReplaceAll(line, s, "")
		}
		if strings.TrimRight(line, " ") != plainLines[i] {
			t.Errorf("line %d: %q in colour, %q without", i, line, plainLines[i])
		}
	}
}

func TestMoreColumnsThanTwo(t *testing.T) {
	tab := &table{}
	tab.add("l", styled(plain, "a"), styled(plain, "bb"), styled(plain, "c"))
	tab.add("l", styled(plain, "aaa"), styled(plain, "b"), styled(plain, "c"))
	got := render(t, tab, false)
	if got[0] != "l   a     bb   c" || got[1] != "l   aaa   b    c" {
		t.Errorf("got %q", got)
	}
}

func TestBar(t *testing.T) {
	for _, tc := range []struct {
		value, longest float64
		want           string
	}{
		{0, 10, ""},
		{1, 0, ""},
		{10, 10, "████"},
		{5, 10, "██"},
		{7, 10, "██▊"},
		{0.001, 10, "▏"},
	} {
		if got := bar(tc.value, tc.longest, 4); got != tc.want {
			t.Errorf("bar(%v, %v) = %q, want %q", tc.value, tc.longest, got, tc.want)
		}
	}
	if n := utf8.RuneCountInString(bar(9.99, 10, 4)); n > 4 {
		t.Errorf("bar of %d characters in 4", n)
	}
}

func TestCompare(t *testing.T) {
	for _, tc := range []struct {
		value, base float64
		want        string
	}{
		{25, 75, "3.0 × less"},
		{30, 20, "1.5 × more"},
		{20, 20.5, "the same"},
		{0, 20, ""},
	} {
		if got := compare(tc.value, tc.base).render(false); got != tc.want {
			t.Errorf("compare(%v, %v) = %q, want %q", tc.value, tc.base, got, tc.want)
		}
	}
}
