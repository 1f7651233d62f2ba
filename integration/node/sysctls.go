package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctlsFile is where a node keeps the values that the host had.
const sysctlsFile = "sysctls"

// KeepSysctls has the host's values of sysctls, given as paths below /proc/sys, written back when
// the node is closed, or removed by its guard. It is for what programs of the node change.
func (n *Node) KeepSysctls(names ...string) error {
	var kept strings.Builder
	for _, name := range names {
		value, err := os.ReadFile(filepath.Join("/proc/sys", name))
		if err != nil {
			return fmt.Errorf("cannot keep the host's sysctls: %w", err)
		}
		fmt.Fprintf(&kept, "%s %s\n", name, strings.TrimSpace(string(value)))
	}
	return os.WriteFile(filepath.Join(n.Dir, sysctlsFile), []byte(kept.String()), 0o600)
}

// restoreSysctls writes back what the node in dir has kept, if it differs.
func restoreSysctls(dir string) error {
	kept, err := os.ReadFile(filepath.Join(dir, sysctlsFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for line := range strings.Lines(string(kept)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		path := filepath.Join("/proc/sys", name)
		now, err := os.ReadFile(path)
		if err == nil && strings.TrimSpace(string(now)) != value {
			err = os.WriteFile(path, []byte(value), 0)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot restore the host's sysctl: %w", err))
		}
	}
	return errors.Join(errs...)
}
