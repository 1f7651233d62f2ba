package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// running lists the shims on the host that run the program at one of the paths, or did before it
// was replaced: as pids with the id of the container or sandbox for which each was started.
func (r root) running(programs ...string) ([]string, error) {
	proc, err := r.resolve("/proc")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("cannot look for running shims: %w", err)
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join(proc, e.Name(), "exe"))
		if err != nil { // it has ended, or is a kernel thread
			continue
		}
		exe = strings.TrimSuffix(exe, " (deleted)")
		for _, p := range programs {
			// In a container, the path may begin with where the host's root is mounted.
			if exe == p || exe == filepath.Join(string(r), p) {
				found = append(found, describe(proc, pid))
				break
			}
		}
	}
	if len(entries) == 0 || found == nil && !hasProcesses(entries) {
		return nil, errors.New("cannot look for running shims: no /proc is mounted on the host")
	}
	return found, nil
}

func hasProcesses(entries []os.DirEntry) bool {
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			return true
		}
	}
	return false
}

func describe(proc string, pid int) string {
	line, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cmdline"))
	if err == nil {
		args := bytes.Split(line, []byte{0})
		for i, arg := range args[:max(len(args)-1, 0)] {
			if string(arg) == "-id" {
				return fmt.Sprintf("%d (%s, %s)", pid, path.Base(string(args[0])), args[i+1])
			}
		}
	}
	return strconv.Itoa(pid)
}
