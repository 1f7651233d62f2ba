package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

// ShimSocket is the path of the socket of the shim that serves a task.
func (n *Node) ShimSocket(namespace, id string) (string, error) {
	b, err := os.ReadFile(filepath.Join(n.Bundle(namespace, id), "bootstrap.json"))
	if err != nil {
		return "", fmt.Errorf("cannot find the shim of %s: %w", id, err)
	}
	var bootstrap struct{ Address string }
	if err := json.Unmarshal(b, &bootstrap); err != nil {
		return "", fmt.Errorf("cannot find the shim of %s: %s: %w", id, b, err)
	}
	return strings.TrimPrefix(bootstrap.Address, "unix://"), nil
}

func (n *Node) removeContainers(ctx context.Context) error {
	ctx = n.Context(ctx)
	all, err := n.client.Containers(ctx)
	errs := []error{err}
	for _, c := range all {
		errs = append(errs, RemoveContainer(ctx, c))
	}
	return errors.Join(errs...)
}

// RemoveContainer kills and removes a container's task, and removes the container
// with its snapshot.
func RemoveContainer(ctx context.Context, c containerd.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("cannot delete task %s: %w", c.ID(), err)
	}
	err = c.Delete(ctx, containerd.WithSnapshotCleanup)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Shim connects to the shim that serves a task, past containerd, to ask what
// containerd would answer itself. ctx must have the task's namespace.
func (n *Node) Shim(namespace, id string) (taskv3.TTRPCTaskService, func(), error) {
	path, err := n.ShimSocket(namespace, id)
	if err != nil {
		return nil, nil, err
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot connect to the shim of %s: %w", id, err)
	}
	client := ttrpc.NewClient(conn)
	return taskv3.NewTTRPCTaskClient(client), func() { client.Close() }, nil
}

// Subscribe calls add for each event that one of the filters lets through, from now on and
// until ctx ends.
func (n *Node) Subscribe(ctx context.Context, add func(*events.Envelope), filters ...string) {
	envelopes, errs := n.client.Subscribe(ctx, filters...)
	go func() {
		for {
			select {
			case e := <-envelopes:
				add(e)
			case err := <-errs:
				if err != nil && ctx.Err() == nil {
					fmt.Fprintln(os.Stderr, "no more events will come:", err)
				}
				return
			}
		}
	}()
}

// TaskEvents is the filter for the events of tasks in the node's namespace.
func (n *Node) TaskEvents() string { return `namespace==` + n.ID + `,topic~="^/tasks/"` }
