package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// endSignal is what the programs end at.
const endSignal = unix.SIGTERM

// start starts a program of the cluster.
func (c *Cluster) start(name string, args ...string) error {
	p, err := c.Node.StartProgram(name, args...)
	if err != nil {
		return err
	}
	c.programs[name] = p
	return nil
}

// Stop ends a program of the cluster by a signal: "kubelet", "kube-proxy" and so on.
func (c *Cluster) Stop(name string, signal unix.Signal) error {
	p := c.programs[name]
	if p == nil {
		return fmt.Errorf("cannot stop %s: it was not started", name)
	}
	return p.End(signal)
}

// LogTail returns the last lines of a program's log.
func (c *Cluster) LogTail(name string, lines int) string {
	if p := c.programs[name]; p != nil {
		return p.LogTail(lines)
	}
	return ""
}

func (c *Cluster) startEtcd(ctx context.Context) error {
	err := c.start("etcd",
		"--name=etcd",
		"--data-dir="+c.file("etcd"),
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=etcd=http://127.0.0.1:2380",
		"--unsafe-no-fsync", "--log-level=warn")
	if err != nil {
		return err
	}
	return until(ctx, c.programs["etcd"], func(ctx context.Context) error { return get(ctx, etcdURL+"/health") })
}

// get fails unless the answer is 200 OK.
func get(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body)
		return fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return nil
}

func (c *Cluster) startAPIServer(ctx context.Context) error {
	err := c.start("kube-apiserver",
		"--etcd-servers="+etcdURL,
		"--bind-address="+nodeIP, "--advertise-address="+nodeIP, "--secure-port=6443",
		"--cert-dir="+c.file("empty"),
		"--tls-cert-file="+c.file("kube-apiserver.crt"), "--tls-private-key-file="+c.file("kube-apiserver.key"),
		"--client-ca-file="+c.file("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--service-cluster-ip-range="+serviceRange,
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+c.file("service-accounts.key"),
		"--service-account-signing-key-file="+c.file("service-accounts.key"),
		"--kubelet-certificate-authority="+c.file("ca.crt"),
		"--kubelet-client-certificate="+c.file("kube-apiserver-kubelet-client.crt"),
		"--kubelet-client-key="+c.file("kube-apiserver-kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged=true")
	if err != nil {
		return err
	}
	return until(ctx, c.programs["kube-apiserver"], func(ctx context.Context) error {
		return c.Client.RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

func (c *Cluster) startControllers(ctx context.Context) error {
	authenticated := func(name string) []string {
		config := c.file(name + ".kubeconfig")
		return []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--cert-dir=" + c.file(name), "--leader-elect=false",
		}
	}
	err := c.start("kube-controller-manager", append(authenticated("kube-controller-manager"),
		"--root-ca-file="+c.file("ca.crt"),
		"--service-account-private-key-file="+c.file("service-accounts.key"),
		"--use-service-account-credentials=true",
		"--flex-volume-plugin-dir="+c.file("empty"))...)
	if err != nil {
		return err
	}
	if err := c.start("kube-scheduler", authenticated("kube-scheduler")...); err != nil {
		return err
	}
	// Without it the API server refuses pods.
	return until(ctx, c.programs["kube-controller-manager"], func(ctx context.Context) error {
		_, err := c.Client.CoreV1().ServiceAccounts(metav1.NamespaceDefault).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

func (c *Cluster) startNodePrograms(ctx context.Context) error {
	if err := c.makeCgroup(); err != nil {
		return fmt.Errorf("cannot make the cgroup of the pods: %w", err)
	}
	// Those that kubelet sets for the whole machine (setupKernelTunables in pkg/kubelet/cm).
	err := c.Node.KeepSysctls("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")
	if err != nil {
		return err
	}
	if err := c.start("kube-proxy", "--config="+c.file("kube-proxy.yaml")); err != nil {
		return err
	}
	return c.StartKubelet(ctx)
}

// makeCgroup makes the parent of all pods' cgroups, which kubelet wants to be there.
func (c *Cluster) makeCgroup() error {
	path := "/" + c.Node.ID
	if cgroups.Mode() == cgroups.Unified {
		_, err := cgroup2.NewManager("/sys/fs/cgroup", path, &cgroup2.Resources{})
		return err
	}
	_, err := cgroup1.New(cgroup1.StaticPath(path), &specs.LinuxResources{})
	return err
}

// StartKubelet starts kubelet, the first time or after it was stopped, and waits until the node is ready.
func (c *Cluster) StartKubelet(ctx context.Context) error {
	if p := c.programs["kubelet"]; p != nil && p.Running() {
		return errors.New("cannot start kubelet: it runs")
	}
	before, err := c.heartbeat(ctx)
	if err != nil {
		return err
	}
	err = c.start("kubelet",
		"--config="+c.file("kubelet.yaml"),
		"--kubeconfig="+c.file("kubelet.kubeconfig"),
		"--root-dir="+c.file("kubelet"), "--cert-dir="+c.file("kubelet/pki"),
		"--hostname-override="+NodeName, "--node-ip="+nodeIP,
		"--housekeeping-interval=2s", "--v=2")
	if err != nil {
		return err
	}
	err = until(ctx, c.programs["kubelet"], func(ctx context.Context) error {
		now, err := c.heartbeat(ctx)
		if err == nil && !now.After(before.Time) {
			err = errors.New("the node is not ready")
		}
		return err
	})
	if err == nil && c.present == nil {
		c.present = c.Node.Present()
	}
	return err
}

// heartbeat is when kubelet last said that the node was ready; zero if it is not.
func (c *Cluster) heartbeat(ctx context.Context) (at metav1.Time, err error) {
	n, err := c.Client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return at, nil
	}
	if err != nil {
		return at, err
	}
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue {
			at = condition.LastHeartbeatTime
		}
	}
	return at, nil
}

// Kubectl is the path of kubectl.
func (c *Cluster) Kubectl() (string, error) { return c.Node.LookPath("kubectl") }

// ManifestDir is where kubelet reads static pods from.
func (c *Cluster) ManifestDir() string { return c.file("manifests") }

// WriteKubectl writes a script that runs kubectl for the cluster from outside of its network, and returns its path.
func (c *Cluster) WriteKubectl() (string, error) {
	kubectl, err := c.Kubectl()
	if err != nil {
		return "", err
	}
	path := c.file("kubectl")
	script := fmt.Sprintf("#!/bin/sh\nexec nsenter -t %d -n %s --kubeconfig %s \"$@\"\n", os.Getpid(), kubectl, c.Kubeconfig())
	return path, os.WriteFile(path, []byte(script), 0o755)
}
