// Command matrix writes what test runs have shown into a document, as a table: a row
// for each run, a column for each kind of test, in a cell how many have passed.
//
//	matrix [-into FILE] -by COMMAND [-on MACHINE] [-with WHAT] [-split] -head LABEL -column LABEL=REGEXP... LABEL=RUN...
//
// RUN is a file with the output of `go test -json`, REGEXP matches the full names of
// tests, and COMMAND is what makes the table again. With -split there is a row for each
// test of a run, whose subtests are in the columns. The table replaces what is between
// two lines of FILE, the rest of which is written by hand:
//
//	<!-- matrix: begin -->
//	<!-- matrix: end -->
//
// Without a FILE it is printed.
//
// A failed test, one without an end, or a run without tests gives exit code 1, after
// the table has been written with it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "matrix:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var columns []column
	flags := flag.NewFlagSet("matrix", flag.ExitOnError)
	into := flags.String("into", "", "write into this `file` instead of printing")
	by := flags.String("by", "", "the `command` that makes the table")
	on := flags.String("on", "", "the `machine` of the runs, if it is not this one")
	with := flags.String("with", "", "`what` else they depend on")
	split := flags.Bool("split", false, "make a row for each test of a run")
	head := flags.String("head", "", "`label` of the rows")
	flags.Func("column", "`label=regexp` of a column", func(s string) error {
		label, expression, found := strings.Cut(s, "=")
		if !found {
			return errors.New("no label")
		}
		tests, err := regexp.Compile(expression)
		columns = append(columns, column{label, tests})
		return err
	})
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *on == "" {
		*on = machine()
	}
	if *with != "" {
		*on += ", " + *with
	}
	rows, err := readRows(flags.Args())
	if err != nil {
		return err
	}
	if *split {
		rows = splitRows(rows)
	}
	text := fmt.Sprintf("%s\nWritten by `%s` on %s.\n", table(*head, columns, rows), *by, *on)
	if *into == "" {
		fmt.Print(text)
	} else if err := replaceIn(*into, text); err != nil {
		return err
	}
	return failures(columns, rows)
}

// readRows reads the runs of LABEL=RUN arguments.
func readRows(args []string) (rows []row, err error) {
	for _, arg := range args {
		label, path, found := strings.Cut(arg, "=")
		if !found {
			return nil, fmt.Errorf("cannot read %s: no label", arg)
		}
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		tests, err := parse(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", path, err)
		}
		rows = append(rows, row{label, tests})
	}
	return rows, nil
}

// replaceIn puts text between the marks in a file.
func replaceIn(path, text string) error {
	document, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	changed, err := replace(string(document), text)
	if err != nil {
		return fmt.Errorf("cannot write into %s: %w", path, err)
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

// machine says what containers depend on: the kernel and the cgroups.
func machine() string {
	var u unix.Utsname
	release := "an unknown release"
	if unix.Uname(&u) == nil {
		release, _, _ = strings.Cut(unix.ByteSliceToString(u.Release[:]), "-") // without who has built it
	}
	return fmt.Sprintf("Linux %s, %s, %s", release, runtime.GOARCH, cgroups("/sys/fs/cgroup"))
}

// cgroups is the version of the cgroups that are mounted at root (cgroups(7)).
func cgroups(root string) string {
	unified := func(dir string) bool {
		var s unix.Statfs_t
		return unix.Statfs(dir, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC
	}
	switch {
	case unified(root):
		return "cgroup v2"
	case unified(filepath.Join(root, "unified")):
		return "cgroup v1 (hybrid)"
	}
	return "cgroup v1"
}
