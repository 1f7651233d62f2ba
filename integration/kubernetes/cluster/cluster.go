// Package cluster makes a private Kubernetes cluster of one node: etcd, the control plane, and package node's
// containerd with kubelet and kube-proxy, built from the published Go modules. Everything is in one temporary
// directory, in a mount and a network namespace of the program's own, and below one cgroup, so that a node of the
// host's and other clusters stay as they are, and nothing is left at the end.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"containerd-shim-pause-v2/integration/node"
)

// Addresses of the cluster. They are in its own network, where nothing else is.
const (
	nodeIP       = "10.198.0.2"
	gateway      = "10.198.0.1"
	serviceRange = "10.96.0.0/16"
	apiServiceIP = "10.96.0.1" // the first of serviceRange, which kube-apiserver takes for itself
	dnsIP        = "10.96.0.10"
	etcdURL      = "http://127.0.0.1:2379"
	apiURL       = "https://" + nodeIP + ":6443"
)

// NodeName is the name of the node.
const NodeName = "node-1"

// startDeadline is how long each program may take to become ready.
const startDeadline = 3 * time.Minute

// Isolation is what a program that makes clusters needs: a network of its own, and no view of what kubelet and
// containerd keep at places that cannot be configured. Its Enter is to be called first of all.
var Isolation = node.Isolation{Hide: []string{"/run/containerd", "/var/log/containers", "/var/log/pods"}, Network: true}

// Options says what kind of cluster Start makes. All fields may be zero.
type Options struct {
	// Path are directories in which all programs are looked up, before those of $PATH.
	Path []string

	// DefaultHandler is the runtime handler of pods without a RuntimeClass; "runc" by default.
	DefaultHandler string

	// KubeletGates are feature gates of kubelet, as in "Name: true, Other: false".
	KubeletGates string

	// Progress is called with what is done next.
	Progress func(step string)
}

// Cluster is a running cluster. Its methods may be called from many goroutines, but for those that start and stop
// programs.
type Cluster struct {
	// Node is the node's containerd.
	Node *node.Node

	// Client and Config are those of an administrator. The limit of requests is that of a program which does many.
	Client *kubernetes.Clientset
	Config *rest.Config

	options  Options
	keys     *authority
	programs map[string]*node.Program
	present  []string // what there is without pods
	registry *http.Server
}

// Start makes a cluster and waits until pods can be run by all runtime classes. If it fails, nothing is left.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.DefaultHandler == "" {
		o.DefaultHandler = "runc"
	}
	c := &Cluster{options: o, programs: map[string]*node.Program{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"network", c.makeNetwork},
		{"containerd", c.startNode},
		{"keys and configuration", c.writeFiles},
		{"images and their registry", c.serveImages},
		{"etcd", c.startEtcd},
		{"kube-apiserver", c.startAPIServer},
		{"kube-controller-manager and kube-scheduler", c.startControllers},
		{"kubelet and kube-proxy", c.startNodePrograms},
		{"runtime classes", c.makeRuntimeClasses},
		{"DNS", c.startDNS},
	} {
		o.Progress(step.what)
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("cannot start the cluster: %s: %w", step.what, err)
		}
	}
	return c, nil
}

// Close removes the cluster with all that runs in it. To know what was left before, call Node.Leftovers.
func (c *Cluster) Close() error {
	var errs []error
	// Kubelet first: it would start again what ends.
	for _, name := range []string{"kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"} {
		if p := c.programs[name]; p != nil {
			errs = append(errs, p.End(endSignal))
		}
	}
	if c.registry != nil {
		errs = append(errs, c.registry.Close())
	}
	if c.Node != nil {
		errs = append(errs, c.Node.Close())
	}
	return errors.Join(errs...)
}

// Kubeconfig is the path of the administrator's kubeconfig.
func (c *Cluster) Kubeconfig() string { return c.file("admin.kubeconfig") }

// file is the path of a file of the cluster.
func (c *Cluster) file(name string) string { return filepath.Join(c.Node.Dir, name) }

// makeNetwork gives the cluster's network an address to be the node's, and a default route.
func (c *Cluster) makeNetwork(ctx context.Context) error {
	// What is sent to the gateway gets lost: there is nothing outside.
	for _, command := range []string{
		"ip link set lo up",
		"ip link add uplink type veth peer name nowhere",
		"ip address add " + nodeIP + "/24 dev uplink",
		"ip link set uplink up",
		"ip link set nowhere up",
		"ip route add default via " + gateway,
	} {
		args := strings.Fields(command)
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}

// until calls condition until it returns nil, the deadline has passed, or the program has ended, the end of whose log
// is then in the error.
func until(ctx context.Context, p *node.Program, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(100 * time.Millisecond):
			continue
		case <-p.Done():
			err = errors.New("it has ended")
		case <-ctx.Done():
			err = fmt.Errorf("not within %s: %w", startDeadline, err)
		}
		return fmt.Errorf("%w; the end of its log:\n%s", err, p.LogTail(20))
	}
}
