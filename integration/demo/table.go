package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// style is the parameters of an SGR escape sequence (console_codes(4)).
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
	blue   style = "34"
)

// text is a line of text in several styles. No character of it may be wider or
// narrower than one column.
type text []span

type span struct {
	text  string
	style style
}

func styled(s style, format string, args ...any) text {
	return text{{fmt.Sprintf(format, args...), s}}
}

// join puts texts one after the other.
func join(texts ...text) text {
	var all text
	for _, t := range texts {
		all = append(all, t...)
	}
	return all
}

func (t text) width() int {
	w := 0
	for _, s := range t {
		w += utf8.RuneCountInString(s.text)
	}
	return w
}

// pad returns the text with blanks up to a width.
func (t text) pad(width int) text {
	return join(t, styled(plain, "%s", strings.Repeat(" ", max(0, width-t.width()))))
}

func (t text) render(colour bool) string {
	var b strings.Builder
	for _, s := range t {
		if colour && s.style != plain && s.text != "" {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", s.style, s.text)
		} else {
			b.WriteString(s.text)
		}
	}
	return b.String()
}

// table is rows of a label and a cell for each column. A column is as wide as its
// widest cell.
type table struct{ rows []row }

type row struct {
	label text
	cells []text
	line  bool // under all columns; label and cells are not used
}

const columnGap = 3

func (t *table) add(label string, cells ...text) {
	t.rows = append(t.rows, row{label: styled(plain, "%s", label), cells: cells})
}

// section starts a group of rows: an empty line and a heading, to which cells
// may belong. The note says what the heading leaves open.
func (t *table) section(heading, note string, cells ...text) {
	label := styled(bold, "%s", heading)
	if note != "" {
		label = join(label, styled(dim, "  %s", note))
	}
	t.rows = append(t.rows, row{}, row{label: label, cells: cells})
}

func (t *table) rule() { t.rows = append(t.rows, row{line: true}) }

// widths returns those of the label and of the cells of each column. A label
// without cells may run over all columns, and has no say in it.
func (t *table) widths() (label int, columns []int) {
	for _, r := range t.rows {
		if len(r.cells) > 0 {
			label = max(label, r.label.width())
		}
		for i, c := range r.cells {
			if i == len(columns) {
				columns = append(columns, 0)
			}
			columns[i] = max(columns[i], c.width())
		}
	}
	return label, columns
}

func (t *table) write(w io.Writer, colour bool) error {
	label, columns := t.widths()
	total := label
	for _, c := range columns {
		total += columnGap + c
	}
	var b strings.Builder
	for _, r := range t.rows {
		line := r.label
		if r.line {
			line = styled(dim, "%s", strings.Repeat("─", total))
		}
		end := label
		for i, c := range r.cells {
			end += columnGap
			line = join(line.pad(end), c)
			end += columns[i]
		}
		b.WriteString(strings.TrimRight(line.render(colour), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// bar draws a part of the longest bar, to an eighth of a character. What is not
// nothing can be seen.
func bar(value, longest float64, width int) string {
	if value <= 0 || longest <= 0 {
		return ""
	}
	eighths := max(1, int(math.Round(value/longest*float64(width)*8)))
	s := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return s
}

// compare says how a value stands to that of the first column, where less is
// better.
func compare(value, base float64) text {
	const noise = 1.05
	switch {
	case value <= 0 || base <= 0:
		return nil
	case base/value >= noise:
		return styled(green, "%.1f × less", base/value)
	case value/base >= noise:
		return styled(red, "%.1f × more", value/base)
	}
	return styled(dim, "the same")
}
