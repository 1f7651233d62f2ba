package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"containerd-shim-pause-v2/integration/node"
)

// Stock is the handler of containerd's own shim, which shows what a scenario is worth.
const Stock = "runc"

// Handlers are the runtime handlers of the node, each of which has a RuntimeClass of the same name: those of the
// shim by each way that containerd has to select it.
var Handlers = []string{Stock, "pause", "pause-path", "pause-sandbox", "pause-shared", "pause-shared-sandbox"}

// handlers are those of containerd's configuration. Those with a runtime type of the shim's have no table of options:
// with one, containerd cannot run pods with a user namespace (docs/differences.md), and the OCI runtime is the runc of
// containerd's $PATH.
func (c *Cluster) handlers() []node.Handler {
	return []node.Handler{
		{Name: "pause", Type: node.PauseType, NoOptions: true},
		{Name: "pause-path", Type: node.StockType, Shim: "containerd-shim-pause-v2", OCIRuntime: "runc"},
		{Name: "pause-sandbox", Type: node.PauseType, Sandboxer: "shim", NoOptions: true},
		{Name: "pause-shared", Type: node.SharedType, NoOptions: true},
		{Name: "pause-shared-sandbox", Type: node.SharedType, Sandboxer: "shim", NoOptions: true},
	}
}

// startNode starts containerd, with a current runc: that of Debian 12 knows no mounts with mapped IDs, which pods with
// a user namespace need.
func (c *Cluster) startNode(ctx context.Context) (err error) {
	programs := map[string]string{}
	for _, dir := range c.options.Path {
		if path, err := filepath.Abs(filepath.Join(dir, "runc-current")); err == nil && isFile(path) {
			programs["runc"] = path
			break
		}
	}
	c.Node, err = node.Start(ctx, node.Options{
		Path:           c.options.Path,
		Programs:       programs,
		Handlers:       c.handlers(),
		DefaultHandler: c.options.DefaultHandler,
	})
	if err != nil {
		return err
	}
	// cAdvisor, which is part of kubelet, looks for containerd nowhere else.
	return os.Symlink(c.Node.Socket(), "/run/containerd/containerd.sock")
}

// makeRuntimeClasses makes one for each handler, and waits until the node announces them all.
func (c *Cluster) makeRuntimeClasses(ctx context.Context) error {
	for _, name := range Handlers {
		class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: name}
		_, err := c.Client.NodeV1().RuntimeClasses().Create(ctx, class, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return until(ctx, c.programs["kubelet"], c.announced)
}

// announced fails as long as the node's status lacks a handler.
func (c *Cluster) announced(ctx context.Context) error {
	n, err := c.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	var names []string
	for _, h := range n.Status.RuntimeHandlers {
		names = append(names, h.Name)
	}
	for _, name := range Handlers {
		if !slices.Contains(names, name) {
			return fmt.Errorf("the node has the handlers %q, and lacks %s", names, name)
		}
	}
	return nil
}

func isFile(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}
