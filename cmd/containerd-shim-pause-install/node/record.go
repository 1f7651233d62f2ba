package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"containerd-shim-pause-v2/shim/install"
)

// A record is what the installer leaves on the host to know what it has done: it is written
// before each change, so that a change that was begun is known even if it was not completed.
type record struct {
	// Files are those that were written, or were about to be.
	Files []*file `json:"files"`

	// Dirs are the directories that were made for them, outer ones first.
	Dirs []string `json:"directories,omitempty"`

	// Made are texts that were inserted into a template and are out of it again. Until containerd
	// is restarted, they are still in what k3s made of it.
	Made []string `json:"made,omitempty"`

	// Restart says that containerd does not run with the configuration that is there.
	Restart bool `json:"restart,omitempty"`
}

// file is one file of the host.
type file struct {
	Path    string `json:"path"`
	Program bool   `json:"program,omitempty"` // not configuration

	// Before is what was there; nil if nothing was.
	Before *state `json:"before,omitempty"`

	// Wrote are the digests of what may be there now: the last one, or, after a crash, the
	// one before.
	Wrote []string `json:"wrote"`

	// Inserted are the texts that were inserted into a file that is not ours, likewise.
	Inserted []string `json:"inserted,omitempty"`
}

// state is what a path leads to: a symbolic link or a regular file.
type state struct {
	Digest  string      `json:"digest"`
	Link    string      `json:"link,omitempty"`
	Mode    fs.FileMode `json:"mode,omitempty"`
	UID     int         `json:"uid,omitempty"`
	GID     int         `json:"gid,omitempty"`
	ModTime time.Time   `json:"modified,omitzero"`
	Backup  string      `json:"backup,omitempty"` // name in the directory of the record

	data []byte
}

func regular(data []byte, mode fs.FileMode) *state {
	sum := sha256.Sum256(data)
	return &state{Digest: "sha256:" + hex.EncodeToString(sum[:]), Mode: mode, data: data}
}

func link(target string) *state { return &state{Digest: "link:" + target, Link: target} }

// read returns what is at a path of the host; nil if nothing is.
func (r root) read(name string) (*state, error) {
	resolved, err := r.resolve(name)
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(resolved)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	switch info.Mode().Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(resolved)
		if err != nil {
			return nil, err
		}
		return link(target), nil
	case 0:
	default:
		return nil, fmt.Errorf("cannot use %s of the host: it is no regular file (%v)", name, info.Mode().Type())
	}
	data, err := os.ReadFile(resolved)
	if err != nil {
		return nil, err
	}
	s := regular(data, info.Mode().Perm())
	s.ModTime = info.ModTime()
	if owner, ok := info.Sys().(*syscall.Stat_t); ok {
		s.UID, s.GID = int(owner.Uid), int(owner.Gid)
	}
	return s, nil
}

// write puts a state at a path of the host, in one step.
func (r root) write(name string, s *state) error {
	resolved, err := r.resolve(name)
	if err != nil {
		return err
	}
	if s.Link != "" {
		return install.Link(s.Link, resolved)
	}
	if err := install.WriteFile(resolved, s.data, s.Mode); err != nil {
		return err
	}
	if err := os.Chown(resolved, s.UID, s.GID); err != nil {
		return err
	}
	if !s.ModTime.IsZero() {
		return os.Chtimes(resolved, time.Time{}, s.ModTime)
	}
	return nil
}

// journal changes files of the host, with a record of each change in a directory of the host.
type journal struct {
	record
	root    root
	dir     string // the host's path of the directory
	reached func(point string)
}

const recordFile = "record.json"

// openJournal reads the record of what was done before, if there is one.
func openJournal(r root, dir string, reached func(string)) (*journal, error) {
	j := &journal{root: r, dir: dir, reached: reached}
	saved, err := r.read(path.Join(dir, recordFile))
	if err != nil {
		return nil, fmt.Errorf("cannot read the record of the installation: %w", err)
	}
	if saved == nil {
		return j, nil
	}
	if err := json.Unmarshal(saved.data, &j.record); err != nil {
		return nil, fmt.Errorf("cannot read the record of the installation, %s: %w; it is needed to undo the installation", path.Join(dir, recordFile), err)
	}
	return j, nil
}

// isEmpty says whether nothing has been done, or all of it was undone.
func (j *journal) isEmpty() bool { return len(j.Files)+len(j.Dirs) == 0 && !j.Restart }

func (j *journal) save() error {
	data, err := json.MarshalIndent(j.record, "", "  ")
	if err != nil {
		return err
	}
	if err := j.root.makeDir(j.dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the record: %w", err)
	}
	if err := j.root.write(path.Join(j.dir, recordFile), regular(append(data, '\n'), 0o600)); err != nil {
		return fmt.Errorf("cannot write the record of the installation: %w", err)
	}
	j.reached("record")
	return nil
}

func (r root) makeDir(name string, mode fs.FileMode) error {
	resolved, err := r.follow(name)
	if err != nil {
		return err
	}
	return os.MkdirAll(resolved, mode)
}

// find returns the record of a file; nil if there is none.
func (j *journal) find(name string) *file {
	for _, f := range j.Files {
		if f.Path == name {
			return f
		}
	}
	return nil
}

// put has a file of the host be as wanted, and says whether it was not. inserted is what
// was inserted into a file that is not ours.
func (j *journal) put(name string, wanted *state, inserted string, program bool) (changed bool, err error) {
	now, err := j.root.read(name)
	if err != nil {
		return false, err
	}
	same := now != nil && now.Digest == wanted.Digest && now.Mode == wanted.Mode
	f := j.find(name)
	if f == nil {
		if same && inserted == "" {
			return false, nil // Somebody else has installed it; it is not ours to remove.
		}
		f = &file{Path: name, Program: program, Before: now}
		if err := j.backUp(name, now); err != nil {
			return false, err
		}
		j.Files = append(j.Files, f)
	}
	if same && len(f.Wrote) == 1 && f.Wrote[0] == wanted.Digest {
		return false, nil
	}
	f.Wrote = appendNew(f.Wrote, wanted.Digest)
	if inserted != "" {
		f.Inserted = appendNew(f.Inserted, inserted)
	}
	if err := j.makeDirs(path.Dir(name)); err != nil {
		return false, err
	}
	if err := j.save(); err != nil {
		return false, err
	}
	if !same {
		if err := j.root.write(name, wanted); err != nil {
			return false, err
		}
		j.reached(name)
	}
	f.Wrote = []string{wanted.Digest}
	if inserted != "" {
		f.Inserted = []string{inserted}
	}
	return !same, j.save()
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// backUp keeps a file that is about to be replaced.
func (j *journal) backUp(name string, s *state) error {
	if s == nil || s.Link != "" {
		return nil
	}
	sum := sha256.Sum256([]byte(name))
	s.Backup = "before-" + hex.EncodeToString(sum[:8])
	if err := j.root.makeDir(j.dir, 0o700); err != nil {
		return fmt.Errorf("cannot make the directory of the record: %w", err)
	}
	if err := j.root.write(path.Join(j.dir, s.Backup), regular(s.data, 0o600)); err != nil {
		return fmt.Errorf("cannot keep a copy of %s: %w", name, err)
	}
	j.reached("copy of " + name)
	return nil
}

// makeDirs makes a directory of the host, and those that it is in.
func (j *journal) makeDirs(dir string) error {
	if j.root.isDir(dir) || dir == "/" {
		return nil
	}
	if err := j.makeDirs(path.Dir(dir)); err != nil {
		return err
	}
	j.Dirs = appendNew(j.Dirs, dir)
	if err := j.save(); err != nil {
		return err
	}
	if err := j.root.makeDir(dir, 0o755); err != nil {
		return err
	}
	j.reached(dir)
	return nil
}

// undo has a file be again what it was before. What somebody else has changed since is not
// touched, but for the text that was inserted into it. It returns what is to be told of it.
func (j *journal) undo(f *file) (told string, err error) {
	now, err := j.root.read(f.Path)
	if err != nil {
		return "", err
	}
	told, wanted, err := j.before(f, now)
	if err != nil {
		return "", err
	}
	switch {
	case wanted == nil && now != nil:
		resolved, err := j.root.resolve(f.Path)
		if err != nil {
			return "", err
		}
		if err := install.Remove(resolved); err != nil {
			return "", fmt.Errorf("cannot remove %s: %w", f.Path, err)
		}
		j.reached("removal of " + f.Path)
	case wanted != nil && wanted != now:
		if err := j.root.write(f.Path, wanted); err != nil {
			return "", err
		}
		j.reached("restoration of " + f.Path)
	}
	j.Files = slices.DeleteFunc(j.Files, func(other *file) bool { return other == f })
	for _, text := range f.Inserted {
		j.Made = appendNew(j.Made, text)
	}
	if err := j.save(); err != nil {
		return "", err
	}
	if f.Before != nil && f.Before.Backup != "" {
		return told, j.removeOwn(f.Before.Backup)
	}
	return told, nil
}

// before returns what should be in place of a file that is as now when it is undone.
func (j *journal) before(f *file, now *state) (told string, wanted *state, err error) {
	original := f.Before
	if original != nil && original.Link == "" {
		saved, err := j.root.read(path.Join(j.dir, original.Backup))
		if err != nil || saved == nil || saved.Digest != original.Digest {
			return "", nil, errors.Join(fmt.Errorf("cannot restore %s: its copy in %s is missing or damaged", f.Path, j.dir), err)
		}
		original.data = saved.data
	}
	switch {
	case now == nil && original == nil:
		return "was removed already", nil, nil
	case now == nil:
		return "was removed by somebody else, and is left so", nil, nil
	case original != nil && now.Digest == original.Digest:
		return "is as it was before", now, nil
	case slices.Contains(f.Wrote, now.Digest) && original == nil:
		return "removed", nil, nil
	case slices.Contains(f.Wrote, now.Digest):
		return "restored", original, nil
	case len(f.Inserted) == 0:
		return "was changed by somebody else, and is left so", now, nil
	}
	text, whole := without(now.data, f.Inserted)
	wanted = regular(text, now.Mode)
	wanted.UID, wanted.GID = now.UID, now.GID
	if original != nil && wanted.Digest == original.Digest {
		return "restored", original, nil
	}
	if !whole {
		return "was changed by somebody else, also in the lines marked " + mark + "; look for these and remove them", wanted, nil
	}
	return "was changed by somebody else; only what was added to it is removed", wanted, nil
}

// removeOwn removes a file of the record's directory.
func (j *journal) removeOwn(name string) error {
	resolved, err := j.root.resolve(path.Join(j.dir, name))
	if err != nil {
		return err
	}
	if err := install.Remove(resolved); err != nil {
		return err
	}
	j.reached("removal of " + name)
	return nil
}

// close removes the directories that were made, unless somebody else uses them, and the record,
// if there is nothing else in it.
func (j *journal) close() error {
	for _, dir := range slices.Backward(j.Dirs) {
		resolved, err := j.root.resolve(dir)
		if err != nil {
			return err
		}
		if err := os.Remove(resolved); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) {
			return fmt.Errorf("cannot remove %s: %w", dir, err)
		}
		j.reached("removal of " + dir)
	}
	// A copy of a file that was never replaced, and files that were being written.
	resolved, err := j.root.follow(j.dir)
	if err != nil {
		return err
	}
	left, err := filepath.Glob(filepath.Join(resolved, "before-*"))
	if err != nil {
		return err
	}
	hidden, err := filepath.Glob(filepath.Join(resolved, ".containerd-shim-pause-*"))
	if err != nil {
		return err
	}
	for _, p := range append(left, hidden...) {
		if err := install.Remove(p); err != nil {
			return err
		}
	}
	if err := j.removeOwn(recordFile); err != nil {
		return err
	}
	if err := os.Remove(resolved); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot remove the directory of the record: %w", err)
	}
	return nil
}
