// Command up makes a private Kubernetes cluster of one node, says how to use it, and removes it at ^C.
//
//	up -path DIRS [-default HANDLER]
//
// `make kubernetes-node` runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/kubernetes/cluster"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "up:", err)
		os.Exit(1)
	}
}

func run() error {
	path := flag.String("path", "", "`directories` of all programs, as in $PATH")
	handler := flag.String("default", cluster.Stock, "the `handler` of pods without a RuntimeClass")
	flag.Parse()
	if err := cluster.Isolation.Enter(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	start := time.Now()
	c, err := cluster.Start(ctx, cluster.Options{
		Path:           filepath.SplitList(*path),
		DefaultHandler: *handler,
		Progress:       func(step string) { fmt.Printf("%4.1f s: %s\n", time.Since(start).Seconds(), step) },
	})
	if err != nil {
		return err
	}
	kubectl, err := c.WriteKubectl()
	if err == nil {
		fmt.Printf(usage, time.Since(start).Seconds(), kubectl, c.Node.Dir, strings.Join(cluster.Handlers, ", "), cluster.Busybox, cluster.Agnhost, os.Getpid())
		<-ctx.Done()
		fmt.Println("removing the cluster")
	}
	return errors.Join(err, c.Close())
}

const usage = `%4.1f s: ready

kubectl:             %s
logs and all files:  %s
runtime classes:     %s
images:              %s
                     %s
a shell on the node: nsenter -t %d -m -n

^C removes it all.
`
