// Command containerd-shim-pause-install puts the shim onto a Kubernetes node, and takes it
// away again: see package node. It runs in a DaemonSet (deploy/), from an image that has nothing
// but this program and the shim, or by hand on the node.
//
// It is a program of its own because the shim would have to hold in memory, for each pod, what
// only this one needs: HTTP, TLS and gRPC.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"containerd-shim-pause-v2/cmd/containerd-shim-pause-install/cluster"
	"containerd-shim-pause-v2/cmd/containerd-shim-pause-install/node"
	"containerd-shim-pause-v2/shim/install"
)

const usage = `usage: containerd-shim-pause-install [flags] install | remove | check | wait

  install  install the shim and its second name, add the handlers pause and pause-shared to
           containerd's configuration, restart containerd if needed, label the node
  remove   undo all of that; refused while pods run in the shim
  check    fail if the node is not as install leaves it; change nothing
  wait     do nothing until a signal comes, as the container that a DaemonSet needs

flags:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "containerd-shim-pause-install:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o := &node.Options{Out: out}
	var restart, nodeName, label string
	set := flag.NewFlagSet("containerd-shim-pause-install", flag.ContinueOnError)
	set.StringVar(&o.Root, "root", "/", "`directory` below which the node's files are: where a container has its host path /")
	set.StringVar(&o.Program, "program", "", "`path` of the shim to install (default: beside this program)")
	set.StringVar(&o.Dir, "dir", "/usr/local/bin", "the node's `directory` for the shim")
	set.StringVar(&o.State, "state", "/var/lib/containerd-shim-pause-v2", "the node's `directory` for the record of what was changed")
	set.StringVar(&o.Config, "config", "", "the node's `path` of containerd's configuration (default: that of k3s, RKE2, or /etc/containerd/config.toml)")
	set.StringVar(&o.Containerd, "containerd", "", "the node's `path` of containerd (default: where distributions have it)")
	set.StringVar(&restart, "restart", "", "`command` of the node that restarts containerd, words separated by spaces, its absolute path first (default: systemctl restart)")
	set.StringVar(&o.Unit, "unit", "", "systemd `unit` that runs containerd (default: that of the distribution)")
	set.DurationVar(&o.Timeout, "timeout", 3*time.Minute, "how long containerd may take to work again after a restart")
	set.StringVar(&nodeName, "node", os.Getenv("NODE_NAME"), "`name` of the Kubernetes node to label, from within a pod; none if empty (default: $NODE_NAME)")
	set.StringVar(&label, "label", "containerd-shim-pause-v2=installed", "label of the node, `key=value`")
	set.Usage = func() { fmt.Fprint(set.Output(), usage); set.PrintDefaults() }
	if err := set.Parse(args); err != nil {
		return err
	}
	o.Restart = strings.Fields(restart)
	key, value, ok := strings.Cut(label, "=")
	if !ok || set.NArg() != 1 {
		set.Usage()
		return errors.New("give one of install, remove, check and wait, and a label as key=value")
	}
	if o.Program == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		o.Program = filepath.Join(filepath.Dir(self), install.Shim.Program)
	}
	mark := func(value *string) error {
		if nodeName == "" {
			return nil
		}
		api, err := cluster.InCluster(cluster.Account)
		if err != nil {
			return err
		}
		if err := api.Label(ctx, nodeName, key, value); err != nil {
			return err
		}
		fmt.Fprintf(out, "node %s: label %s is %s\n", nodeName, key, map[bool]string{true: "set", false: "removed"}[value != nil])
		return nil
	}
	switch set.Arg(0) {
	case "install":
		if err := node.Install(ctx, o); err != nil {
			return err
		}
		return mark(&value)
	case "remove":
		// First the label, so that no more pods come.
		if err := mark(nil); err != nil {
			return err
		}
		return node.Remove(ctx, o)
	case "check":
		return node.Check(ctx, o)
	case "wait":
		<-ctx.Done()
		return nil
	}
	return fmt.Errorf("unknown action %q: give install, remove, check or wait", set.Arg(0))
}
