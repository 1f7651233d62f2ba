// Package node makes a private Kubernetes node for tests and the demo: containerd
// with CRI, a CNI network and images, in a temporary directory. It leaves the
// host's own containerd alone, needs no registry, and removes all that it made.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime types of the handlers that every node has.
const (
	StockType  = "io.containerd.runc.v2"
	PauseType  = "io.containerd.pause.v2"
	SharedType = "io.containerd.pause-shared.v2"
)

// CRINamespace is the containerd namespace of the pods.
const CRINamespace = "k8s.io"

// maxDir is the longest directory of a node: shim sockets are in a directory
// below it, which containerd wants to be at most 42 bytes long.
const maxDir = 42 - len("/s")

// Options says what kind of node Start makes. All fields may be zero.
type Options struct {
	// Path are directories in which containerd, ctr, crictl and the shims are
	// looked up, in this order and before those of $PATH.
	Path []string

	// Containerd is the directory of containerd, ctr and the stock shim, if it is
	// not one of Path. Those before 2.3 need a program that is isolated (Isolate).
	Containerd string

	// OCIRuntime is the BinaryName of the handlers "runc", "pause" and "pause-shared"; "runc"
	// by default.
	OCIRuntime string

	// Handlers are runtime handlers beside "runc", "pause" and "pause-shared", or instead of
	// one of these.
	Handlers []Handler

	// Programs are found by another name, before those of Path: paths by these names.
	Programs map[string]string

	// DefaultHandler is the one of pods that name none; "runc" by default.
	DefaultHandler string

	// Env is added to the daemon's environment, as "NAME=value".
	Env []string

	// SystemdCgroup has systemd make the cgroups of containers. The host's process
	// 1 must be systemd.
	SystemdCgroup bool

	// Patience is the factor of the time limits for the node's own start and end;
	// a slow machine wants more than 1.
	Patience time.Duration

	// NoPauseImage leaves the pause image out.
	NoPauseImage bool
}

// Handler is a runtime handler of CRI.
type Handler struct {
	Name       string
	Type       string // runtime type, such as PauseType
	Shim       string // name of the shim's program, if not the one that belongs to Type
	OCIRuntime string // BinaryName: a name in $PATH or a path
	Sandboxer  string // "podsandbox" (the default), or "shim", which needs no pause image
	NoOptions  bool   // leave out the table of options: the OCI runtime is runc, in its default place
	Options    string // more lines of the table of options, as TOML
}

// Node is a running node. Its methods may be called from many goroutines, but
// for those that start and stop things; CRI, and what calls it, also beside those.
type Node struct {
	// Dir holds all files of the node. Its base name is the ID.
	Dir string

	// ID is unique to the node: the name of its bridge and CNI network, of the
	// cgroup (with systemd, the slice) under which all pods and containers should
	// be, and of the containerd namespace for plain containers.
	ID string

	// Snapshotter is the one that CRI uses, and that can be used in Dir.
	Snapshotter string

	// BusyboxImage and PauseImage are the names of the images, which are there
	// in CRINamespace and in the namespace ID.
	BusyboxImage, PauseImage string

	// Version is that of containerd, and Release the same in full: "2.4.2".
	Version Version
	Release string

	options    Options
	path       string // $PATH of the daemon and the tools
	oldSockets bool   // shims' sockets are where containerd before 2.3 has them
	daemon     *exec.Cmd
	done       chan struct{} // closed when daemon has been waited for
	client     *containerd.Client
	conn       *grpc.ClientConn
	guard      *guard
	programs   []*Program      // beside the daemon; guarded by nodes
	reported   map[string]bool // by Leftovers
}

// nodes are those that this process has made and not closed yet.
var nodes struct {
	sync.Mutex
	running map[*Node]bool
}

func setRunning(n *Node, running bool) {
	nodes.Lock()
	defer nodes.Unlock()
	if nodes.running == nil {
		nodes.running = make(map[*Node]bool)
	}
	nodes.running[n] = running
}

// ownProcesses are the pids of the daemons, and of what watches over the nodes.
func ownProcesses() (pids []int) {
	nodes.Lock()
	defer nodes.Unlock()
	for n, running := range nodes.running {
		if running {
			pids = append(pids, n.DaemonPid(), n.guard.pid())
			for _, p := range n.programs {
				pids = append(pids, p.Pid())
			}
		}
	}
	return pids
}

// Start makes a node and waits until pods can be run on it. If it fails, nothing
// is left.
func Start(ctx context.Context, o Options) (_ *Node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("cannot make a node: not root")
	}
	dir, err := os.MkdirTemp("", "csp-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a node: %w", err)
	}
	if len(dir) > maxDir {
		os.Remove(dir)
		return nil, fmt.Errorf("cannot make a node in %s: the path is too long for shim sockets; set TMPDIR", dir)
	}
	// The pause image has a user of its own, and is looked at by it.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	o.Patience = max(o.Patience, 1)
	if o.OCIRuntime == "" {
		o.OCIRuntime = "runc"
	}
	if o.DefaultHandler == "" {
		o.DefaultHandler = "runc"
	}
	n := &Node{
		Dir: dir, ID: filepath.Base(dir),
		BusyboxImage: "localhost/busybox:1", PauseImage: "localhost/pause:1",
		options:  o,
		reported: map[string]bool{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	if n.guard, err = startGuard(dir); err != nil {
		return nil, err
	}
	setRunning(n, true)
	if err = n.mountRun(); err != nil {
		return nil, err
	}
	if err = adoptOrphans(); err != nil {
		return nil, err
	}
	if o.SystemdCgroup {
		if err = startSlice(ctx, n.ID); err != nil {
			return nil, err
		}
	}
	n.Snapshotter = usableSnapshotter(dir)
	if err = n.writeNetwork(); err != nil {
		return nil, err
	}
	if err = n.linkPrograms(); err != nil {
		return nil, err
	}
	if err = n.useContainerd(o.Containerd); err != nil {
		return nil, err
	}
	if err = n.startDaemon(ctx); err != nil {
		return nil, err
	}
	return n, n.importImages(ctx)
}

// linkPrograms makes the links of Options.Programs.
func (n *Node) linkPrograms() error {
	if err := os.Mkdir(n.programDir(), 0o755); err != nil {
		return err
	}
	for name, path := range n.options.Programs {
		if err := os.Symlink(path, filepath.Join(n.programDir(), name)); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) programDir() string { return filepath.Join(n.Dir, "bin") }

// runDirs are what of a node is on a tmpfs, as /run of a host is: the state of containerd,
// with the bundles of its shims, and that of the OCI runtime.
var runDirs = []string{"state", "oci"}

func (n *Node) mountRun() error {
	for _, name := range runDirs {
		dir := filepath.Join(n.Dir, name)
		if err := os.Mkdir(dir, 0o711); err != nil {
			return err
		}
		if err := unix.Mount("run", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711"); err != nil {
			return fmt.Errorf("cannot mount %s: %w", dir, err)
		}
	}
	return nil
}

// InNamespaces runs a program of the host in the network, UTS and IPC namespaces of a
// process, and returns what it prints.
func (n *Node) InNamespaces(ctx context.Context, pid int, args ...string) (string, error) {
	return n.run(ctx, nil, "nsenter", append([]string{"-t", fmt.Sprint(pid), "-n", "-u", "-i"}, args...)...)
}

// Socket is the path of containerd's and CRI's socket.
func (n *Node) Socket() string { return filepath.Join(n.Dir, "containerd.sock") }

// NRISocket is the path of the socket for plugins of the Node Resource Interface, if containerd
// has that (since 1.7).
func (n *Node) NRISocket() string { return filepath.Join(n.Dir, "nri.sock") }

// RuntimeRoot is the Root that the handlers give to the OCI runtime; it keeps its
// state in subdirectories of it, one for each containerd namespace.
func (n *Node) RuntimeRoot() string { return filepath.Join(n.Dir, "oci") }

// FIFODir is where clients should make the FIFOs of their tasks.
func (n *Node) FIFODir() string { return filepath.Join(n.Dir, "fifo") }

// Bundle is the path of the bundle of a task.
func (n *Node) Bundle(namespace, id string) string {
	return filepath.Join(n.Dir, "state", "io.containerd.runtime.v2.task", namespace, id)
}

// sandboxBundle is the bundle of a sandbox of the Sandbox API.
func (n *Node) sandboxBundle(namespace, id string) string {
	return filepath.Join(n.Dir, "state", "io.containerd.sandbox.controller.v1.shim", namespace, id)
}

// Client is a client whose default namespace is ID.
func (n *Node) Client() *containerd.Client { return n.client }

// Context returns a context of the namespace that is ID.
func (n *Node) Context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, n.ID)
}

// CRI is the runtime service of CRI.
func (n *Node) CRI() runtime.RuntimeServiceClient { return runtime.NewRuntimeServiceClient(n.conn) }

// Images is the image service of CRI.
func (n *Node) Images() runtime.ImageServiceClient { return runtime.NewImageServiceClient(n.conn) }

// Ctr runs ctr in a namespace and returns what it prints on stdout. What it
// prints on stderr is in the error.
func (n *Node) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	return n.run(ctx, nil, "ctr", append([]string{"-a", n.Socket(), "-n", namespace}, args...)...)
}

// Crictl runs crictl and returns what it prints on stdout. What it prints on
// stderr is in the error. stdin may be nil.
func (n *Node) Crictl(ctx context.Context, stdin io.Reader, args ...string) (string, error) {
	endpoint := "unix://" + n.Socket()
	return n.run(ctx, stdin, "crictl", append([]string{"-r", endpoint, "-i", endpoint, "-t", "60s"}, args...)...)
}

func (n *Node) run(ctx context.Context, stdin io.Reader, name string, args ...string) (string, error) {
	path, err := n.LookPath(name)
	if err != nil {
		return "", err
	}
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = n.env()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// LookPath finds a program as the daemon finds it.
func (n *Node) LookPath(name string) (string, error) {
	for _, dir := range filepath.SplitList(n.path) {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("cannot find %s in %s", name, n.path)
}

// env is the environment of all programs of the node. Those that have it, and
// those that they start, are recognized by it when processes are looked for.
func (n *Node) env() []string {
	env := append(os.Environ(), "PATH="+n.path, nodeEnv+n.Dir)
	return append(env, n.options.Env...)
}

func (n *Node) connect(ctx context.Context) (err error) {
	n.client, err = containerd.New(n.Socket(), containerd.WithDefaultNamespace(n.ID), containerd.WithTimeout(time.Minute))
	if err != nil {
		return err
	}
	if n.conn == nil {
		n.conn, err = grpc.NewClient("unix://"+n.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(reconnect))
		if err != nil {
			return err
		}
	}
	for {
		_, err = n.CRI().Version(ctx, &runtime.VersionRequest{}, grpc.WaitForReady(true))
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond) // 1.7 refuses calls until CRI is initialized
	}
}

// reconnect is how soon CRI's connection is there again after the start of the daemon.
var reconnect = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.6, MaxDelay: 100 * time.Millisecond},
	MinConnectTimeout: time.Second,
}

// disconnect leaves CRI's connection alone. Like kubelet's, it outlives the daemon: who calls while
// there is none gets an error, and may call again.
func (n *Node) disconnect() {
	if n.client != nil {
		n.client.Close()
	}
	n.client = nil
}

// Close stops the daemon and removes the node with all that there is of it,
// pods that run included. To know what a test left, call Leftovers before.
func (n *Node) Close() error {
	err := n.Stop()
	if n.conn != nil {
		n.conn.Close()
	}
	err = errors.Join(err, purge(n.Dir))
	if err == nil {
		n.guard.dismiss()
		setRunning(n, false)
	}
	return err
}
