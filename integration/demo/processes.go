package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// kinds are the namespaces that are looked at, as they are named in /proc/<pid>/ns.
// The first ones are the pod's, the others are each container's own.
var (
	podKinds = []string{"net", "ipc", "uts"}
	ownKinds = []string{"pid", "mnt"}
	kinds    = slices.Concat(podKinds, ownKinds)
)

// namespaces are inodes by kind.
type namespaces map[string]string

// thread is a process, or one thread of it, and where it is.
type thread struct {
	name string
	id   int
	in   namespaces
}

// anatomy is what a running pod consists of.
type anatomy struct {
	shim   int
	pause  bool     // there is a pause process
	holder thread   // of the pod's namespaces: pause, or a thread of the shim
	other  thread   // another thread of the shim, or the shim if it is not the holder
	apps   []thread // the containers' inits, in the order of app

	tree    []node.Process // the shim and all below it, but for the containers of other pods
	strays  int            // threads of the shim, beside the holders, that are not in the host's namespaces
	threads map[int]int    // number, by pid
	memory  map[int]int64  // anonymous, in bytes, by pid
	mounts  []string       // on the host, for the sandbox: what they are
}

// overhead are the processes that are there for the pod, or for all pods of the shim.
func (a *anatomy) overhead() []node.Process {
	return slices.DeleteFunc(slices.Clone(a.tree), func(p node.Process) bool {
		return slices.ContainsFunc(a.apps, func(t thread) bool { return t.id == p.Pid })
	})
}

// dissect looks at a running pod. all are the pods of its shim, host are the namespaces of
// the host.
func dissect(ctx context.Context, p *pod, all []*pod, host namespaces) (*anatomy, error) {
	a := &anatomy{}
	var err error
	if a.shim, err = p.ShimPid(); err != nil {
		return nil, err
	}
	sandbox, err := p.SandboxPid(ctx)
	if err != nil {
		return nil, err
	}
	holders, others, err := neighbours(ctx, p, all, a.shim)
	if err != nil {
		return nil, err
	}
	if err := a.findThreads(sandbox, holders, host); err != nil {
		return nil, err
	}
	for i, id := range p.containers {
		pid, err := p.ContainerPid(ctx, id)
		if err != nil {
			return nil, err
		}
		t, err := readThread(app[i].name, pid, pid)
		if err != nil {
			return nil, err
		}
		a.apps = append(a.apps, t)
	}
	if err := a.findTree(others); err != nil {
		return nil, err
	}
	a.mounts, err = sandboxMounts(p, a.holder.in["net"])
	return a, err
}

// neighbours finds what the other pods of a shim have in it: the threads that hold their
// namespaces, and the inits of their containers.
func neighbours(ctx context.Context, p *pod, all []*pod, shim int) (holders, inits []int, err error) {
	for _, other := range all {
		if other == p {
			continue
		}
		if pid, err := other.ShimPid(); err != nil || pid != shim {
			return nil, nil, fmt.Errorf("pod %s is not in shim %d: %d, %w", other.ID, shim, pid, err)
		}
		pid, err := other.SandboxPid(ctx)
		if err != nil {
			return nil, nil, err
		}
		holders = append(holders, pid)
		for _, id := range other.containers {
			if pid, err = other.ContainerPid(ctx, id); err != nil {
				return nil, nil, err
			}
			inits = append(inits, pid)
		}
	}
	return holders, inits, nil
}

// findTree fills in the processes but for others, with what they take.
func (a *anatomy) findTree(others []int) error {
	a.tree = slices.DeleteFunc(descendants(a.shim), func(p node.Process) bool { return slices.Contains(others, p.Pid) })
	if len(a.tree) == 0 {
		return fmt.Errorf("shim %d has ended", a.shim)
	}
	slices.SortStableFunc(a.tree, func(p, q node.Process) int { return a.rank(p.Pid) - a.rank(q.Pid) })
	a.threads, a.memory = map[int]int{}, map[int]int64{}
	for _, p := range a.tree {
		threads, err := threadIDs(p.Pid)
		if err != nil {
			return err
		}
		a.threads[p.Pid] = len(threads)
		if a.memory[p.Pid], err = anonymous(p.Pid); err != nil {
			return err
		}
	}
	return nil
}

// rank orders processes: the shim, pause, those of the containers, others. Their
// pids need not be in any order.
func (a *anatomy) rank(pid int) int {
	order := []int{a.shim, a.holder.id}
	for _, t := range a.apps {
		order = append(order, t.id)
	}
	if i := slices.Index(order, pid); i >= 0 {
		return i
	}
	return len(order)
}

// findThreads fills in who holds the pod's namespaces, and where the shim's other
// threads are, but for those that hold other pods'.
func (a *anatomy) findThreads(sandbox int, holders []int, host namespaces) (err error) {
	ids, err := threadIDs(a.shim)
	if err != nil {
		return err
	}
	a.pause = !slices.Contains(ids, sandbox)
	name := "pod's"
	switch {
	case a.pause:
		name = "pause"
	case sandbox == a.shim:
		name = "main"
	}
	if a.holder, err = readThread(name, sandbox, sandbox); err != nil {
		return err
	}
	for _, id := range ids {
		if id == sandbox || slices.Contains(holders, id) {
			continue
		}
		t, err := readThread("other", a.shim, id)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			return err
		}
		if a.other.id == 0 {
			a.other = t
		}
		if !same(t.in, host, kinds) {
			a.strays++
		}
	}
	switch {
	case a.pause:
		a.other.name = "shim"
	case a.other.id == a.shim:
		a.other.name = "main"
	}
	return nil
}

func readThread(name string, pid, tid int) (thread, error) {
	in, err := readNamespaces(fmt.Sprintf("/proc/%d/task/%d", pid, tid))
	return thread{name: name, id: tid, in: in}, err
}

func readNamespaces(proc string) (namespaces, error) {
	in := namespaces{}
	for _, kind := range kinds {
		link, err := os.Readlink(filepath.Join(proc, "ns", kind))
		if err != nil {
			return nil, err
		}
		in[kind] = strings.Trim(strings.TrimPrefix(link, kind+":"), "[]")
	}
	return in, nil
}

// same tells whether two threads are in the same namespaces.
func same(a, b namespaces, kinds []string) bool {
	return !slices.ContainsFunc(kinds, func(k string) bool { return a[k] != b[k] })
}

// distinct tells whether two threads share no namespace.
func distinct(a, b namespaces, kinds []string) bool {
	return !slices.ContainsFunc(kinds, func(k string) bool { return a[k] == b[k] })
}

// threadIDs starts with the main thread.
func threadIDs(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, e := range entries {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	// Numbers begin anew when they have reached their limit.
	main := slices.Index(ids, pid)
	if main < 0 {
		return nil, fmt.Errorf("process %d has no main thread", pid)
	}
	ids = slices.Insert(slices.Delete(ids, main, main+1), 0, pid)
	return ids, nil
}

// descendants returns a process and all below it, by pid.
func descendants(root int) []node.Process {
	all := node.Processes()
	slices.SortFunc(all, func(a, b node.Process) int { return a.Pid - b.Pid })
	var tree []node.Process
	in := map[int]bool{root: true}
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if in[p.Parent] && !in[p.Pid] {
				in[p.Pid], grown = true, true
			}
		}
	}
	for _, p := range all {
		if in[p.Pid] {
			tree = append(tree, p)
		}
	}
	return tree
}

// anonymous is the memory of a process, in bytes, that no file backs and that
// nobody else has: "Anonymous" of proc_pid_smaps(5). The text of programs, which
// the pods share, is not in it.
func anonymous(pid int) (int64, error) {
	path := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) == 3 && fields[0] == "Anonymous:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no Anonymous in %s", path)
}

// sandboxMounts says what is mounted on the host for a sandbox: what is below a
// directory of its id, and the file that pins its network namespace.
func sandboxMounts(p *pod, netns string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(p.node.Dir))
	if err != nil {
		return nil, fmt.Errorf("cannot list the mounts: %w", err)
	}
	var found []string
	for _, i := range infos {
		switch {
		case i.FSType == "nsfs" && i.Root == "net:["+netns+"]":
			found = append(found, "netns")
		case strings.Contains(i.Mountpoint, "/"+p.ID+"/"):
			found = append(found, filepath.Base(i.Mountpoint))
		}
	}
	slices.Sort(found)
	return found, nil
}
