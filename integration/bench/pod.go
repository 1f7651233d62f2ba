package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// network is the network of a pod.
type network string

const (
	hostNetwork network = "host network" // so that only the engine and its shim are measured
	cniNetwork  network = "bridge CNI"
)

// pod is a pod that runs.
type pod struct {
	engine     *engine
	id         string
	config     *runtime.PodSandboxConfig
	containers []string // ids
	shim       int      // pid of a shared shim, once it is known
}

// podPrefix begins the uid of all pods.
const podPrefix = "csp-bench-"

var podNumber atomic.Int64

// runPod runs the sandbox of a pod.
func (e *engine) runPod(ctx context.Context, n network) (*pod, error) {
	name := fmt.Sprintf("%s%d-%d", podPrefix, os.Getpid(), podNumber.Add(1))
	namespaces := &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER} // as kubelet has it
	p := &pod{engine: e, config: &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname:     name,
		LogDirectory: filepath.Join(e.logs, name),
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    e.parent,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: namespaces},
		},
	}}
	if n == hostNetwork {
		// Kubelet gives such a pod no host name: it has that of the host.
		p.config.Hostname, namespaces.Network = "", runtime.NamespaceMode_NODE
	}
	r, err := e.cri().RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: p.config, RuntimeHandler: e.handler})
	if err != nil {
		return nil, fmt.Errorf("cannot run a pod: %w", err)
	}
	p.id = r.PodSandboxId
	return p, nil
}

// runPodWithContainer runs a pod with a container that does nothing.
func (e *engine) runPodWithContainer(ctx context.Context) (*pod, error) {
	p, err := e.runPod(ctx, hostNetwork)
	if err != nil {
		return nil, err
	}
	return p, p.addContainer(ctx, sleep...)
}

func removePods(ctx context.Context, pods []*pod) error {
	for _, p := range pods {
		if err := p.remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// sleep is what a container runs that does nothing.
var sleep = []string{"sleep", "1000000"}

// addContainer creates and starts a container.
func (p *pod) addContainer(ctx context.Context, command ...string) error {
	name := fmt.Sprintf("c%d", len(p.containers))
	created, err := p.engine.cri().CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.id,
		Config: &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: name},
			Image:    &runtime.ImageSpec{Image: p.engine.image},
			Command:  command,
			LogPath:  name + ".log",
			Linux: &runtime.LinuxContainerConfig{SecurityContext: &runtime.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
			}},
		},
		SandboxConfig: p.config,
	})
	if err == nil {
		p.containers = append(p.containers, created.ContainerId)
		_, err = p.engine.cri().StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: created.ContainerId})
	}
	if err != nil {
		return fmt.Errorf("cannot start a container: %w", err)
	}
	return nil
}

// exec runs a command that succeeds.
func (p *pod) exec(ctx context.Context, command ...string) error {
	r, err := p.engine.cri().ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.containers[0], Cmd: command, Timeout: 60})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d", r.ExitCode)
	}
	if err != nil {
		return fmt.Errorf("cannot exec %s: %w", strings.Join(command, " "), err)
	}
	return nil
}

// removeContainers kills and removes the containers.
func (p *pod) removeContainers(ctx context.Context) error {
	for _, id := range p.containers {
		if _, err := p.engine.cri().StopContainer(ctx, &runtime.StopContainerRequest{ContainerId: id}); err != nil {
			return fmt.Errorf("cannot stop a container: %w", err)
		}
		if _, err := p.engine.cri().RemoveContainer(ctx, &runtime.RemoveContainerRequest{ContainerId: id}); err != nil {
			return fmt.Errorf("cannot remove a container: %w", err)
		}
	}
	p.containers = nil
	return nil
}

// remove stops and removes the pod with what is in it.
func (p *pod) remove(ctx context.Context) error {
	_, stopped := p.engine.cri().StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.id})
	_, removed := p.engine.cri().RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.id})
	if err := errors.Join(stopped, removed); err != nil {
		return fmt.Errorf("cannot remove a pod: %w", err)
	}
	return nil
}

// overhead returns, of all processes of the machine, those that are there for the
// pod beside its containers' own: whose command line has the id of the sandbox (shims)
// or of a container (monitors), and the one that CRI says is the sandbox's. A shared shim
// is there for other pods as well.
func (p *pod) overhead(ctx context.Context, all []node.Process) ([]node.Process, error) {
	sandbox, err := p.sandboxProcess(ctx)
	if err != nil {
		return nil, err
	}
	ids := append([]string{p.id}, p.containers...)
	var found []node.Process
	for _, process := range all {
		if process.State == "Z" {
			continue
		}
		if process.Pid == sandbox || slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(process.Args, id) }) {
			found = append(found, process)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("cannot find the processes of pod %s", p.id)
	}
	return found, nil
}

// sandboxProcess is the pid of the process that is, or holds, the sandbox. In a shared shim,
// what CRI says is the id of a thread.
func (p *pod) sandboxProcess(ctx context.Context) (_ int, err error) {
	if p.engine.shimOf == nil {
		return p.sandboxPid(ctx)
	}
	if p.shim == 0 {
		p.shim, err = p.engine.shimOf(p.id)
	}
	return p.shim, err
}

// sandboxPid is the pid that the engine reports for the sandbox, 0 if it has none.
func (p *pod) sandboxPid(ctx context.Context) (int, error) {
	r, err := p.engine.cri().PodSandboxStatus(ctx, &runtime.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		return 0, fmt.Errorf("cannot find the sandbox's process: %w", err)
	}
	var info struct{ Pid int }
	if text, ok := r.Info["info"]; ok {
		if err := json.Unmarshal([]byte(text), &info); err != nil {
			return 0, fmt.Errorf("cannot read the sandbox's verbose status: %w", err)
		}
	}
	return info.Pid, nil
}
