// Package install puts programs and files onto a machine so that nobody ever sees
// half of one, and takes them away again. It links nothing that the shim does not
// link anyway.
package install

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// temporaryPrefix begins the names of files that are being written. What is left of them
// after a crash is removed by the next write into the directory.
const temporaryPrefix = ".containerd-shim-pause-"

// WriteFile replaces the file at path, or makes it, in one step: a new file is written
// beside it, synced to the disk, and renamed. A program that runs keeps the old file.
// mode is that of the new file, whatever the umask is. The directory must exist.
func WriteFile(path string, data []byte, mode fs.FileMode) error {
	return replace(path, func(temporary string) error {
		f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(data); err != nil {
			return err
		}
		if err := f.Chmod(mode); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		return f.Close()
	})
}

// Link makes a symbolic link at path in one step, in place of what is there.
func Link(target, path string) error {
	return replace(path, func(temporary string) error { return os.Symlink(target, temporary) })
}

// Remove removes the file at path, and makes sure that it is still gone after a crash of the
// machine. A file that is not there is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := syncDir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func replace(path string, write func(temporary string) error) error {
	dir := filepath.Dir(path)
	if err := removeTemporary(dir); err != nil {
		return err
	}
	random := make([]byte, 6)
	rand.Read(random) // It never fails.
	temporary := filepath.Join(dir, temporaryPrefix+hex.EncodeToString(random))
	if err := write(temporary); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return syncDir(dir)
}

// removeTemporary removes what a write that was killed has left in dir.
func removeTemporary(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, temporaryPrefix+"????????????"))
	if err != nil {
		return err
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// syncDir writes the names in a directory to the disk, without which a rename or a removal
// may be undone by a crash (fsync(2)).
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
