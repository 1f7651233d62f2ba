package install

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Names are those by which containerd finds the shim: of the program, and of a link to it
// for pods that share a shim.
type Names struct{ Program, Shared string }

// Shim are the names of this shim.
var Shim = Names{Program: "containerd-shim-pause-v2", Shared: "containerd-shim-pause-shared-v2"}

// Mode is that of an installed program.
const Mode fs.FileMode = 0o755

// Program copies the program at source into the directory dir, which is made if it is
// missing, and links the second name to it. It writes one line to out about each of the two.
// What is already as it should be is left alone.
func Program(out io.Writer, source, dir string, names Names) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("cannot read the program to install: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cannot make the directory for the program: %w", err)
	}
	program, link := filepath.Join(dir, names.Program), filepath.Join(dir, names.Shared)
	switch same, err := has(program, data); {
	case err != nil:
		return err
	case same:
		fmt.Fprintf(out, "%s: is there already\n", program)
	default:
		_, err := os.Lstat(program)
		if err := WriteFile(program, data, Mode); err != nil {
			return err
		}
		if err == nil {
			fmt.Fprintf(out, "%s: replaced; shims that run keep the old one\n", program)
		} else {
			fmt.Fprintf(out, "%s: written\n", program)
		}
	}
	switch same, err := linksTo(link, names.Program); {
	case err != nil:
		return err
	case same:
		fmt.Fprintf(out, "%s: is there already\n", link)
	default:
		if err := Link(names.Program, link); err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: linked to %s\n", link, names.Program)
	}
	return nil
}

// RemoveProgram undoes Program: it removes the program if it is the same as the one at
// source, and the link that leads to it. Anything else is left, and is an error.
func RemoveProgram(out io.Writer, source, dir string, names Names) error {
	data, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("cannot read this program: %w", err)
	}
	program, link := filepath.Join(dir, names.Program), filepath.Join(dir, names.Shared)
	isProgram, err := has(program, data)
	if err != nil {
		return err
	}
	isLink, err := linksTo(link, names.Program)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(program); err == nil && !isProgram {
		isLink = false // it is the other program's
	}
	var left error
	for _, f := range []struct {
		path string
		ours bool
	}{{link, isLink}, {program, isProgram}} {
		switch _, err := os.Lstat(f.path); {
		case errors.Is(err, fs.ErrNotExist):
			fmt.Fprintf(out, "%s: was not there\n", f.path)
		case !f.ours:
			left = errors.Join(left, fmt.Errorf("%s is not what this program installs, and is left; remove it by hand, or with the program of its own version", f.path))
		default:
			if err := Remove(f.path); err != nil {
				return fmt.Errorf("cannot remove %s: %w", f.path, err)
			}
			fmt.Fprintf(out, "%s: removed\n", f.path)
		}
	}
	return left
}

// has says whether path is a regular file with these bytes that everybody may execute.
func has(path string, data []byte) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm() != Mode || info.Size() != int64(len(data)) {
		return false, nil
	}
	there, err := os.ReadFile(path)
	return bytes.Equal(there, data), err
}

// linksTo says whether path is a symbolic link to target.
func linksTo(path, target string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || info.Mode().Type() != fs.ModeSymlink {
		return false, err
	}
	to, err := os.Readlink(path)
	return to == target, err
}
