package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// The handlers of the private node, as they are called in the results.
const (
	stock            = "stock shim"
	podsandbox       = "podsandbox"
	sandboxAPI       = "Sandbox API"
	shared           = "shared"
	sharedSandboxAPI = "shared, Sandbox API"
)

// Handlers by which containerd leaves the sandbox to the shim.
const (
	sandboxHandler       = "pause-sandbox"
	sharedSandboxHandler = "pause-shared-sandbox"
)

// podsPerShim is how many pods a shared shim takes in, unless it is told otherwise.
const podsPerShim = 32

// handlers are those that the node has not got by itself.
func handlers(ociRuntime string) []node.Handler {
	return []node.Handler{
		{Name: sandboxHandler, Type: node.PauseType, OCIRuntime: ociRuntime, Sandboxer: "shim"},
		{
			Name: sharedSandboxHandler, Type: node.SharedType, OCIRuntime: ociRuntime, Sandboxer: "shim",
			// The default, said aloud: pods of handlers with the same options would be in the same shims.
			Options: fmt.Sprintf("  PodsPerShim = %d\n", podsPerShim),
		},
	}
}

// engine is one way to run pods: a socket of CRI, and a handler there.
type engine struct {
	name    string
	handler string // of CRI; "" is the engine's default
	image   string // of busybox
	parent  string // cgroup of the pods, "" for the engine's default
	logs    string // directory

	// cgroups are those that have used the CPU time of the engine and its pods
	// together. There are none if that cannot be told.
	cgroups []string

	shim string // runtime type for plain containers; "" if there are none
	conn *grpc.ClientConn

	// shimOf finds the shim of a pod where pods share shims; it is nil where each has its own.
	shimOf func(pod string) (pid int, err error)
}

func (e *engine) cri() runtime.RuntimeServiceClient { return runtime.NewRuntimeServiceClient(e.conn) }

// engineFlags is the value of the flag -engine.
type engineFlags []struct{ name, socket, handler, image string }

func (f *engineFlags) String() string { return "" }

func (f *engineFlags) Set(s string) error {
	name, rest, ok := strings.Cut(s, "=")
	fields := strings.Split(rest, ",")
	if !ok || name == "" || fields[0] == "" || len(fields) > 3 {
		return errors.New("want NAME=SOCKET[,HANDLER[,IMAGE]]")
	}
	fields = append(fields, "", "")
	*f = append(*f, struct{ name, socket, handler, image string }{name, fields[0], fields[1], fields[2]})
	return nil
}

// findEngines puts the daemon of the private node into a cgroup below that of its
// pods, so that one cgroup has used all the CPU time there is to count: that of
// the daemon, of all that it starts, and of the containers.
func (b *bench) findEngines() error {
	root, err := accountingRoot()
	if err != nil {
		return err
	}
	all := filepath.Join(root, b.node.ID)
	daemon := filepath.Join(all, "daemon")
	if err := os.MkdirAll(daemon, 0o755); err != nil {
		return fmt.Errorf("cannot make a cgroup for containerd: %w", err)
	}
	pid := fmt.Sprint(b.node.DaemonPid())
	if err := os.WriteFile(filepath.Join(daemon, "cgroup.procs"), []byte(pid), 0); err != nil {
		return fmt.Errorf("cannot put containerd into a cgroup: %w", err)
	}
	shimOf := func(pod string) (int, error) { return b.node.ShimPid(node.CRINamespace, pod) }
	for _, e := range []*engine{
		{name: stock, handler: "runc", shim: node.StockType},
		{name: podsandbox, handler: "pause", shim: node.PauseType},
		{name: sandboxAPI, handler: sandboxHandler},
		{name: shared, handler: "pause-shared", shim: node.SharedType, shimOf: shimOf},
		{name: sharedSandboxAPI, handler: sharedSandboxHandler, shimOf: shimOf},
	} {
		e.image, e.parent, e.cgroups = b.node.BusyboxImage, "/"+b.node.ID, []string{all}
		if err := b.addEngine(e, b.node.Socket()); err != nil {
			return err
		}
	}
	for _, o := range b.others {
		e := &engine{name: o.name, handler: o.handler, image: o.image}
		if e.image == "" {
			e.image = b.node.BusyboxImage
		}
		if err := b.addEngine(e, o.socket); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) addEngine(e *engine, socket string) (err error) {
	e.logs = filepath.Join(b.node.Dir, "logs", e.name)
	if err := os.MkdirAll(e.logs, 0o711); err != nil {
		return err
	}
	e.conn, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("cannot use engine %s: %w", e.name, err)
	}
	b.engines = append(b.engines, e)
	return nil
}

func (b *bench) closeEngines() {
	for _, e := range b.engines {
		e.conn.Close()
	}
}

// removeAll removes the pods that a failure has left. Those of other engines are
// told from strangers by their name.
func (b *bench) removeAll(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for _, e := range b.engines {
		pods, err := e.cri().ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
		errs = append(errs, err)
		for _, p := range pods.GetItems() {
			if strings.HasPrefix(p.Metadata.GetUid(), podPrefix) {
				errs = append(errs, (&pod{engine: e, id: p.Id}).remove(ctx))
			}
		}
	}
	return errors.Join(errs...)
}

// each calls f for each engine, in an order that another turn of the caller's
// changes: nobody is always the first.
func (b *bench) each(turn int, f func(*engine) error) error {
	for i := range b.engines {
		e := b.engines[(i+turn)%len(b.engines)]
		if err := f(e); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return nil
}

// besideOthers returns f with a pod beside those that it makes, for each engine whose pods
// share shims: as on a node, it is another pod that has started the shim, and that keeps it.
func (b *bench) besideOthers(f func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		var others []*pod
		for _, e := range b.engines {
			if e.shimOf == nil {
				continue
			}
			p, err := e.runPodWithContainer(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			others = append(others, p)
		}
		if err := f(ctx); err != nil {
			return err
		}
		return removePods(ctx, others)
	}
}

// accountingRoot is where the hierarchy of cgroups is mounted that counts CPU time:
// that of cgroup v1's cpuacct, or cgroup v2.
func accountingRoot() (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return "", fmt.Errorf("cannot find the cgroups: %w", err)
	}
	unified := ""
	for _, m := range mounts {
		for _, option := range strings.Split(m.VFSOptions, ",") {
			if option == "cpuacct" {
				return m.Mountpoint, nil
			}
		}
		if m.FSType == "cgroup2" {
			unified = m.Mountpoint
		}
	}
	if unified == "" {
		return "", errors.New("cannot find a hierarchy of cgroups that counts CPU time")
	}
	return unified, nil
}

// cpuTime is the CPU time, user and system, that the engine has used so far, in ms.
func (e *engine) cpuTime() (ms float64, err error) {
	for _, dir := range e.cgroups {
		t, err := cgroupCPUTime(dir)
		if err != nil {
			return 0, err
		}
		ms += t
	}
	return ms, nil
}

func cgroupCPUTime(dir string) (ms float64, err error) {
	path, format, unit := filepath.Join(dir, "cpuacct.usage"), "%d", 1e6
	if unix.Access(path, unix.R_OK) != nil {
		path, format, unit = filepath.Join(dir, "cpu.stat"), "usage_usec %d", 1e3
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("cannot read CPU time: %w", err)
	}
	var t int64
	if _, err := fmt.Sscanf(string(text), format, &t); err != nil {
		return 0, fmt.Errorf("cannot read CPU time in %s: %w", path, err)
	}
	return float64(t) / unit, nil
}
