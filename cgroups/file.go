package cgroups

// Reading and writing the kernel's files. By system call: package os would ask the runtime's poller to watch each
// cgroup file it opens, which costs more calls than the read.

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func readFile(path string) (string, error) {
	fd, err := openFile(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 2048)
	for {
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", &fs.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return string(buf), nil
		}
		buf = buf[:len(buf)+n]
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, cap(buf))
		}
	}
}

// writeFile writes a value in one call, as cgroup files want it. It never makes the file.
func writeFile(path, value string) error {
	fd, err := openFile(path, unix.O_WRONLY|unix.O_TRUNC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &fs.PathError{Op: "write", Path: path, Err: err}
		}
	}
}

func openFile(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

func exists(path string) bool {
	return unix.Access(path, unix.F_OK) == nil
}

// absent tells whether an error means that the file is not there: never was, or was opened before its cgroup was
// removed (ENODEV, from kernfs).
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// set writes the value of a resource. dir is empty if the controller is not mounted.
func set(dir, resource, file, value string) error {
	if dir == "" {
		return notMounted(resource, file, value)
	}
	if err := writeFile(filepath.Join(dir, file), value); err != nil {
		return fmt.Errorf("cannot set %s to %q: %w", resource, value, err)
	}
	return nil
}

// reader reads the files of one directory. It passes over files that are absent, and keeps the first error.
type reader struct {
	dir   string
	found bool // a file was there
	err   error
}

// text returns the content of a file, false if there is none.
func (r *reader) text(file string) (string, bool) {
	if r.dir == "" || r.err != nil {
		return "", false
	}
	text, err := readFile(filepath.Join(r.dir, file))
	if err != nil {
		if !absent(err) {
			r.err = err
		}
		return "", false
	}
	r.found = true
	return text, true
}

// uint reads a file of one number; "max" is unlimited.
func (r *reader) uint(file string, to *uint64, unlimited uint64) {
	text, ok := r.text(file)
	if !ok {
		return
	}
	text = strings.TrimSpace(text)
	if text == "max" {
		*to = unlimited
		return
	}
	v, err := parseUint(text)
	if err != nil {
		r.fail(file, text, err)
		return
	}
	*to = v
}

// keyed reads a file of "key number" lines into the numbers that are asked for.
func (r *reader) keyed(file string, to map[string]*uint64) {
	text, ok := r.text(file)
	if !ok {
		return
	}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			r.fail(file, line, errors.New("no value"))
			return
		}
		p, wanted := to[key]
		if !wanted {
			continue
		}
		v, err := parseUint(value)
		if err != nil {
			r.fail(file, line, err)
			return
		}
		*p = v
	}
}

func (r *reader) fail(file, line string, err error) {
	r.err = fmt.Errorf("cannot parse %s: line %q: %w", filepath.Join(r.dir, file), strings.TrimSpace(line), err)
}

// parseUint parses a number. Kernels print some counters as signed; a negative one counts as 0.
func parseUint(s string) (uint64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		if n, signed := strconv.ParseInt(s, 10, 64); signed == nil && n < 0 {
			return 0, nil
		}
	}
	return v, err
}

// keyedValue finds a key in lines of "key number"; false if it is not there.
func keyedValue(text, key string) (uint64, bool, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, key+" "); ok {
			v, err := parseUint(strings.TrimSpace(value))
			return v, err == nil, err
		}
	}
	return 0, false, nil
}

// limit formats a limit for v2, where no limit is called "max".
func limit(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

const unlimited = math.MaxUint64
