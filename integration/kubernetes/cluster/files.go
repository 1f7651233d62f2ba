package cluster

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// writeFiles writes the keys, the kubeconfigs and the configuration of all programs.
func (c *Cluster) writeFiles(context.Context) (err error) {
	for _, dir := range []string{"manifests", "logs", "kubelet", "empty"} {
		if err := os.Mkdir(c.file(dir), 0o755); err != nil {
			return err
		}
	}
	if err := c.writeKeys(); err != nil {
		return err
	}
	podRange, err := c.podRange()
	if err != nil {
		return err
	}
	fill := strings.NewReplacer(
		"$dir", c.Node.Dir, "$cgroup", "/"+c.Node.ID, "$nodeIP", nodeIP, "$node", NodeName,
		"$dnsIP", dnsIP, "$pods", podRange, "$oom", oomScoreAdj(), "$gates", c.options.KubeletGates,
	)
	for name, text := range map[string]string{
		"kubelet.yaml":    kubeletConfiguration,
		"kube-proxy.yaml": proxyConfiguration,
		"resolv.conf":     "nameserver " + dnsIP + "\n",
	} {
		if err := os.WriteFile(c.file(name), []byte(fill.Replace(text)), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) writeKeys() (err error) {
	if c.keys, err = newAuthority(); err != nil {
		return err
	}
	if err := os.WriteFile(c.file("ca.crt"), c.keys.pem, 0o600); err != nil {
		return err
	}
	if err := writeSigningKey(c.file("service-accounts.key")); err != nil {
		return err
	}
	// The users and groups are those that RBAC has roles for from the beginning.
	if err := c.keys.issueTo(c.file("kube-apiserver"), "kube-apiserver", nil, "kubernetes", "kubernetes.default",
		"kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost", "127.0.0.1", nodeIP, apiServiceIP); err != nil {
		return err
	}
	if err := c.keys.issueTo(c.file("kube-apiserver-kubelet-client"), "kube-apiserver", []string{"system:masters"}); err != nil {
		return err
	}
	if err := c.keys.issueTo(c.file("kubelet"), "system:node:"+NodeName, []string{"system:nodes"}, NodeName, nodeIP); err != nil {
		return err
	}
	for file, user := range map[string]string{
		"admin":                   "admin",
		"kubelet":                 "system:node:" + NodeName,
		"kube-controller-manager": "system:kube-controller-manager",
		"kube-scheduler":          "system:kube-scheduler",
		"kube-proxy":              "system:kube-proxy",
	} {
		groups := map[string][]string{"admin": {"system:masters"}, "kubelet": {"system:nodes"}}[file]
		if err := c.writeKubeconfig(c.file(file+".kubeconfig"), user, groups); err != nil {
			return err
		}
	}
	return c.connect()
}

func (c *Cluster) writeKubeconfig(path, user string, groups []string) error {
	p, err := c.keys.issue(user, groups)
	if err != nil {
		return err
	}
	return clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"cluster": {Server: apiURL, CertificateAuthorityData: c.keys.pem}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"user": {ClientCertificateData: p.certificate, ClientKeyData: p.key}},
		Contexts:       map[string]*clientcmdapi.Context{"default": {Cluster: "cluster", AuthInfo: "user"}},
		CurrentContext: "default",
	}, path)
}

// connect makes the administrator's client.
func (c *Cluster) connect() (err error) {
	if c.Config, err = clientcmd.BuildConfigFromFlags("", c.Kubeconfig()); err != nil {
		return err
	}
	c.Config.QPS, c.Config.Burst = 200, 400
	c.Client, err = kubernetes.NewForConfig(c.Config)
	return err
}

// podRange is the subnet of the node's bridge, which the node has chosen.
func (c *Cluster) podRange() (string, error) {
	conflist, err := os.ReadFile(c.file("cni/10-bridge.conflist"))
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(conflist), `"subnet": "`)
	subnet, _, _ := strings.Cut(rest, `"`)
	if _, _, err := net.ParseCIDR(subnet); err != nil {
		return "", fmt.Errorf("cannot find the subnet of pods: %w", err)
	}
	return subnet, nil
}

// oomScoreAdj is that of this program: kubelet and kube-proxy set their own, which root without CAP_SYS_RESOURCE
// cannot lower (proc_pid_oom_score_adj(5)).
func oomScoreAdj() string {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return "0"
	}
	return strings.TrimSpace(string(b))
}

// kubeletConfiguration is for a node in a directory, on a disk that others fill as well: it evicts nothing, and
// removes no image.
const kubeletConfiguration = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $dir/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $dir/kubelet.crt
tlsPrivateKeyFile: $dir/kubelet.key
containerRuntimeEndpoint: unix://$dir/containerd.sock
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: $cgroup
enforceNodeAllocatable: [pods]
oomScoreAdj: $oom
staticPodPath: $dir/manifests
podLogsDir: $dir/logs
volumePluginDir: $dir/empty
resolvConf: $dir/resolv.conf
clusterDNS: ["$dnsIP"]
clusterDomain: cluster.local
maxPods: 250
featureGates: {$gates}
# So many images are pulled at once, and pods changed.
serializeImagePulls: false
registryPullQPS: 0
eventRecordQPS: 0
fileCheckFrequency: 1s
allowedUnsafeSysctls: [net.core.somaxconn, "kernel.msg*", "kernel.shm*", "fs.mqueue.*"]
evictionHard: {memory.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
`

// proxyConfiguration leaves the limits of connection tracking alone: they are the host's.
const proxyConfiguration = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $dir/kube-proxy.kubeconfig}
bindAddress: $nodeIP
hostnameOverride: $node
mode: iptables
clusterCIDR: $pods
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
oomScoreAdj: $oom
iptables: {minSyncPeriod: 100ms}
`
