package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var podNumber atomic.Int64

// PodConfig returns the configuration of a pod: on the CNI network, with a host
// name, cgroups and a log directory that belong to the node, and a name of its
// own. change, which may be nil, alters it.
func (n *Node) PodConfig(change func(*runtime.PodSandboxConfig)) *runtime.PodSandboxConfig {
	name := fmt.Sprintf("pod-%d", podNumber.Add(1))
	c := &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname:     name,
		LogDirectory: filepath.Join(n.Dir, "logs", name),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    n.cgroupParent(),
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{}},
		},
	}
	// As kubelet does: a pid namespace for each container is 1, 0 is a shared one.
	c.Linux.SecurityContext.NamespaceOptions.Pid = runtime.NamespaceMode_CONTAINER
	if change != nil {
		change(c)
	}
	return c
}

// HostNetwork gives a pod the host's network. Like kubelet, it gives such a pod no host
// name: its UTS namespace is the host's, too.
func HostNetwork(c *runtime.PodSandboxConfig) {
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = runtime.NamespaceMode_NODE
}

// Pod is a pod that was run.
type Pod struct {
	ID      string
	Handler string
	Config  *runtime.PodSandboxConfig
	node    *Node
}

// RunPod runs a pod by a runtime handler.
func (n *Node) RunPod(ctx context.Context, handler string, change func(*runtime.PodSandboxConfig)) (*Pod, error) {
	p := &Pod{Handler: handler, Config: n.PodConfig(change), node: n}
	r, err := n.CRI().RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.Config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	p.ID = r.PodSandboxId
	return p, nil
}

// Status is the status of the pod.
func (p *Pod) Status(ctx context.Context) (*runtime.PodSandboxStatus, error) {
	r, err := p.node.CRI().PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID})
	return r.GetStatus(), err
}

// SandboxPid is the pid that CRI knows the pod by.
func (p *Pod) SandboxPid(ctx context.Context) (int, error) {
	r, err := p.node.CRI().PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.ID, Verbose: true})
	if err != nil {
		return 0, err
	}
	return pidOf(r.Info)
}

// ContainerPid is the pid of a container's init.
func (p *Pod) ContainerPid(ctx context.Context, id string) (int, error) {
	return p.node.ContainerPid(ctx, id)
}

// ContainerPid is the pid of the init of a container of CRI.
func (n *Node) ContainerPid(ctx context.Context, id string) (int, error) {
	r, err := n.CRI().ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return 0, err
	}
	return pidOf(r.Info)
}

// pidOf takes the pid out of what containerd adds to a verbose status.
func pidOf(info map[string]string) (int, error) {
	var v struct{ Pid int }
	if err := json.Unmarshal([]byte(info["info"]), &v); err != nil {
		return 0, fmt.Errorf("cannot read the verbose status: %w", err)
	}
	if v.Pid == 0 {
		return 0, errors.New("no pid in the verbose status")
	}
	return v.Pid, nil
}

// Stop stops the pod and its containers.
func (p *Pod) Stop(ctx context.Context) error {
	_, err := p.node.CRI().StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// Remove removes the pod and its containers, whatever state they are in.
func (p *Pod) Remove(ctx context.Context) error {
	_, err := p.node.CRI().RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// ShimPid is the pid of the pod's shim.
func (p *Pod) ShimPid() (int, error) { return p.node.ShimPid(CRINamespace, p.ID) }

// CreateContainer creates a container of busybox in the pod, whose log is
// <name>.log in the pod's log directory. change, which may be nil, alters its
// configuration.
func (p *Pod) CreateContainer(ctx context.Context, name string, command []string, change func(*runtime.ContainerConfig)) (id string, err error) {
	c := &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: name},
		Image:    &runtime.ImageSpec{Image: p.node.BusyboxImage},
		Command:  command,
		LogPath:  name + ".log",
		Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
			NamespaceOptions: p.Config.Linux.SecurityContext.NamespaceOptions,
		}},
	}
	if change != nil {
		change(c)
	}
	r, err := p.node.CRI().CreateContainer(ctx, &runtime.CreateContainerRequest{PodSandboxId: p.ID, Config: c, SandboxConfig: p.Config})
	return r.GetContainerId(), err
}

// StartContainer starts a container.
func (n *Node) StartContainer(ctx context.Context, id string) error {
	_, err := n.CRI().StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: id})
	return err
}

// StopContainer stops a container; it has seconds to end after its stop signal.
func (n *Node) StopContainer(ctx context.Context, id string, seconds int64) error {
	_, err := n.CRI().StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id, Timeout: seconds})
	return err
}

// RemoveContainer removes a container.
func (n *Node) RemoveContainer(ctx context.Context, id string) error {
	_, err := n.CRI().RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id})
	return err
}

// ContainerStatus is the status of a container.
func (n *Node) ContainerStatus(ctx context.Context, id string) (*runtime.ContainerStatus, error) {
	r, err := n.CRI().ContainerStatus(ctx, &runtime.ContainerStatusRequest{ContainerId: id})
	return r.GetStatus(), err
}

// Exec runs a command in a container and waits for its end. A command that fails
// is no error.
func (n *Node) Exec(ctx context.Context, id string, command ...string) (*runtime.ExecSyncResponse, error) {
	return n.CRI().ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: 60})
}

// RemoveAll removes all pods and, in the namespace ID, all containers.
func (n *Node) RemoveAll(ctx context.Context) error {
	pods, err := n.CRI().ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	errs := []error{err}
	for _, p := range pods.GetItems() {
		pod := Pod{ID: p.Id, node: n}
		errs = append(errs, pod.Stop(ctx), pod.Remove(ctx))
	}
	return errors.Join(append(errs, n.removeContainers(ctx))...)
}
