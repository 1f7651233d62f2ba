package node

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// leftoverDeadline is how long things may take to vanish after the call that
// removes them: a shim ends after its answer to the last request.
const leftoverDeadline = 20 * time.Second

// Leftovers returns what there is on the machine beside the daemon itself: what
// is left if all pods and containers are said to be gone. It waits for what is
// about to vanish. What it has returned once, it does not return again, nor what
// is expected: some of what Present has returned.
func (n *Node) Leftovers(ctx context.Context, expected ...string) []string {
	ctx, cancel := context.WithTimeout(ctx, n.options.Patience*leftoverDeadline)
	defer cancel()
	for {
		left := slices.DeleteFunc(n.leftovers(), func(l string) bool {
			return slices.ContainsFunc(expected, func(e string) bool { return identity(e) == identity(l) })
		})
		if len(left) == 0 || ctx.Err() != nil {
			for _, l := range left {
				n.reported[l] = true
			}
			return left
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Present returns what Leftovers would return now, without waiting.
func (n *Node) Present() []string { return n.leftovers() }

// identity leaves out what changes in the description of a process that goes on.
func identity(left string) string {
	before, _, _ := strings.Cut(left, " (parent ")
	return before
}

func (n *Node) leftovers() (left []string) {
	add := func(what string, found ...string) {
		for _, f := range found {
			if l := what + " " + f; !n.reported[l] {
				left = append(left, l)
			}
		}
	}
	for _, p := range nodeProcesses(n.Dir, os.Getpid(), ownProcesses()...) {
		if p.State != "Z" || p.Parent != os.Getpid() { // those are about to be reaped
			add("process", p.String())
		}
	}
	add("mount", slices.DeleteFunc(mounts(n.Dir), func(m string) bool {
		return filepath.Dir(m) == n.Dir && slices.Contains(runDirs, filepath.Base(m))
	})...)
	for _, c := range cgroups(n.ID) {
		if base := filepath.Base(c); base != n.ID && base != sliceOf(n.ID) { // the parent of all; nobody promised to remove it
			add("cgroup", c)
		}
	}
	if isolated() {
		for _, pattern := range []string{"s/*", "fifo/*", "runc/*/*"} {
			found, _ := filepath.Glob(filepath.Join(runDir, pattern))
			add("file", found...)
		}
	}
	for what, pattern := range map[string]string{
		"socket":            "s/*",
		"bundle":            "state/io.containerd.runtime.v2.task/*/*",
		"work directory":    "root/io.containerd.runtime.v2.task/*/*",
		"sandbox directory": "*/io.containerd.grpc.v1.cri/sandboxes/*",
		"sandbox bundle":    "*/io.containerd.sandbox.controller.v1.*/*/*",
		"root of an init":   "state/io.containerd.pause.v2/*/*",
		"pinned namespace":  "state/netns/*",
		// crun keeps a cache in its root, for itself.
		"runtime state": "oci/*/[^.]*",
	} {
		found, _ := filepath.Glob(filepath.Join(n.Dir, pattern))
		add(what, found...)
	}
	add("interface", ports(n.ID)...)
	add("iptables rule", firewallRules(n.ID)...)
	return left
}

// mounts returns the mount points below dir, the last mounted first.
func mounts(dir string) []string {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return []string{err.Error()}
	}
	var points []string
	for _, i := range infos {
		points = append([]string{i.Mountpoint}, points...)
	}
	return points
}

// ports returns the interfaces that are attached to a bridge.
func ports(bridge string) []string {
	entries, _ := os.ReadDir(filepath.Join("/sys/class/net", bridge, "brif"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func hasInterface(name string) bool {
	_, err := net.InterfaceByName(name)
	return err == nil
}

// firewallRules returns the rules of a CNI network, as iptables-save shows them.
// The plugins name the network in a comment.
func firewallRules(network string) []string {
	var rules []string
	out, err := exec.Command("iptables-save", "-t", "nat").Output()
	if err != nil {
		return nil // no such program or table: no rule
	}
	s := bufio.NewScanner(strings.NewReader(string(out)))
	for s.Scan() {
		if strings.Contains(s.Text(), network) {
			rules = append(rules, s.Text())
		}
	}
	return rules
}

// OpenFiles counts the open files of a process by kind: "socket", "pipe", a
// path, and so on.
func OpenFiles(pid int) (map[string]int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	kinds := map[string]int{}
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed in the meantime
		}
		kind, _, _ := strings.Cut(target, ":[")
		kinds[kind]++
	}
	return kinds, nil
}
