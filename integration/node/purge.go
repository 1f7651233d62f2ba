package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// purge removes the node in dir, whatever state it is in. It works from nothing
// but the name, so that a guard can do it as well.
func purge(dir string) error {
	id := filepath.Base(dir)
	errs := []error{killProcesses(dir), restoreSysctls(dir)}
	for _, m := range mounts(dir) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("cannot unmount %s: %w", m, err))
		}
	}
	errs = append(errs, stopSlice(context.Background(), id))
	for _, c := range cgroups(id) {
		if err := removeCgroup(c); err != nil {
			errs = append(errs, err)
		}
	}
	if hasInterface(id) {
		if out, err := exec.Command("ip", "link", "delete", id).CombinedOutput(); err != nil {
			errs = append(errs, fmt.Errorf("cannot delete the bridge: %w: %s", err, out))
		}
	}
	errs = append(errs, removeFirewallRules(id), os.RemoveAll(dir))
	return errors.Join(errs...)
}

func killProcesses(dir string) error {
	var left []Process
	for start := time.Now(); time.Since(start) < 30*time.Second; time.Sleep(10 * time.Millisecond) {
		for _, c := range cgroups(filepath.Base(dir)) {
			thaw(c)
		}
		left = left[:0]
		for _, p := range nodeProcesses(dir, 0) {
			if p.State != "Z" { // those are for their parents
				left = append(left, p)
				unix.Kill(p.Pid, unix.SIGKILL) //nolint:errcheck // another try follows
			}
		}
		if len(left) == 0 {
			return nil
		}
	}
	return fmt.Errorf("cannot kill %v", left)
}

// removeFirewallRules removes the rules of a CNI network, and the chain of each
// container that they jump to.
func removeFirewallRules(network string) error {
	rules := firewallRules(network)
	if len(rules) == 0 {
		return nil
	}
	var deletions, flushes, chains strings.Builder
	seen := map[string]bool{}
	for _, r := range rules {
		fields := strings.Fields(r)
		fmt.Fprintln(&deletions, strings.Replace(r, "-A ", "-D ", 1))
		if chain := fields[len(fields)-1]; strings.HasPrefix(chain, "CNI-") && !seen[chain] {
			seen[chain] = true
			fmt.Fprintln(&flushes, "-F "+chain)
			fmt.Fprintln(&chains, "-X "+chain)
		}
	}
	cmd := exec.Command("iptables-restore", "--noflush")
	cmd.Stdin = strings.NewReader("*nat\n" + deletions.String() + flushes.String() + chains.String() + "COMMIT\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot remove the iptables rules of %s: %w: %s", network, err, out)
	}
	return nil
}
