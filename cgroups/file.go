package cgroups

// Reading and writing the kernel's files. By system call: package os would ask the runtime's poller to watch each
// cgroup file it opens, which costs more calls than the read.

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

func readFile(path string) (string, error) {
	text, err := appendFile(nil, append([]byte(path), 0))
	return string(text), err
}

// appendFile appends the content of a file to buf. The path ends with a NUL.
func appendFile(buf, path []byte) ([]byte, error) {
	fd, err := openPath(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		buf = slices.Grow(buf, 512)
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: string(path[:len(path)-1]), Err: err}
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// openFile opens a file for reading.
func openFile(path string) (int, error) {
	return openPath(append([]byte(path), 0))
}

// openPath opens a file for reading. It is unix.Open for a path that ends with a NUL already, and so makes no copy.
func openPath(path []byte) (int, error) {
	for {
		at := unix.AT_FDCWD
		fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(&path[0])),
			unix.O_RDONLY|unix.O_CLOEXEC, 0, 0, 0)
		if errno == 0 {
			return int(fd), nil
		}
		if errno != unix.EINTR {
			return -1, &fs.PathError{Op: "open", Path: string(path[:len(path)-1]), Err: errno}
		}
	}
}

// writeFile writes a value in one call, as cgroup files want it. It never makes the file.
func writeFile(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
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
func (r *reader) text(file string) (text string, ok bool) {
	ok = r.with(file, func(content []byte) { text = string(content) })
	return text, ok
}

// scratch is memory for one read, used again and again: containerd has the metrics of each task read each second.
type scratch struct{ path, content []byte }

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// with calls use with the content of a file, which must not be kept; false if there is none.
func (r *reader) with(file string, use func(content []byte)) bool {
	if r.dir == "" || r.err != nil {
		return false
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.path = append(append(append(append(s.path[:0], r.dir...), '/'), file...), 0)
	content, err := appendFile(s.content[:0], s.path)
	if err != nil {
		if !absent(err) {
			r.err = err
		}
		return false
	}
	s.content, r.found = content, true
	use(content)
	return true
}

// uint reads a file of one number; "max" is unlimited.
func (r *reader) uint(file string, to *uint64, unlimited uint64) {
	r.with(file, func(content []byte) {
		text := bytes.TrimSpace(content)
		if string(text) == "max" {
			*to = unlimited
			return
		}
		v, err := parseUint(text)
		if err != nil {
			r.fail(file, string(text), err)
			return
		}
		*to = v
	})
}

// field is where the number of a key goes.
type field struct {
	key string
	to  *uint64
}

// keyed reads a file of "key number" lines into the fields that are asked for.
func (r *reader) keyed(file string, fields []field) {
	r.with(file, func(content []byte) {
		for line := range bytes.Lines(content) {
			if err := setField(fields, bytes.TrimSpace(line)); err != nil {
				r.fail(file, string(line), err)
				return
			}
		}
	})
}

func setField(fields []field, line []byte) error {
	key, value, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return errors.New("no value")
	}
	i := slices.IndexFunc(fields, func(f field) bool { return f.key == string(key) })
	if i < 0 {
		return nil
	}
	v, err := parseUint(value)
	if err == nil {
		*fields[i].to = v
	}
	return err
}

func (r *reader) fail(file, line string, err error) {
	r.err = fmt.Errorf("cannot parse %s: line %q: %w", filepath.Join(r.dir, file), strings.TrimSpace(line), err)
}

// parseUint parses a number. Kernels print some counters as signed; a negative one counts as 0.
func parseUint[T string | []byte](s T) (uint64, error) {
	v, err := strconv.ParseUint(string(s), 10, 64)
	if err != nil {
		if n, signed := strconv.ParseInt(string(s), 10, 64); signed == nil && n < 0 {
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
