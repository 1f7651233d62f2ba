package cluster

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Leftovers returns what there still is of pods, all of which the caller has deleted: pods, sandboxes that are ready,
// and whatever is on the node after the others, which kubelet removes once a minute, have been removed as well. It
// removes the cluster's own pods and stops kubelet, so that only Close may follow.
func (c *Cluster) Leftovers(ctx context.Context) (left []string, err error) {
	pods, err := c.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "metadata.namespace!=" + metav1.NamespaceSystem})
	if err != nil {
		return nil, err
	}
	for _, p := range pods.Items {
		left = append(left, fmt.Sprintf("pod %s/%s, %s", p.Namespace, p.Name, p.Status.Phase))
	}
	if err := c.stopDNS(ctx); err != nil {
		return left, err
	}
	if err := c.Stop("kubelet", endSignal); err != nil {
		return left, err
	}
	ready, err := c.Node.CRI().ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{Filter: &runtime.PodSandboxFilter{
		State: &runtime.PodSandboxStateValue{State: runtime.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		return left, err
	}
	for _, s := range ready.Items {
		left = append(left, fmt.Sprintf("sandbox %s of pod %s/%s", s.Id, s.Metadata.Namespace, s.Metadata.Name))
	}
	err = c.Node.RemoveAll(ctx)
	// Those are kubelet's, which leaves them to its next run.
	present := c.present
	for _, p := range c.Node.Present() {
		if class := filepath.Base(p); strings.HasPrefix(p, "cgroup ") && slices.Contains([]string{"kubepods", "burstable", "besteffort"}, class) {
			present = append(present, p)
		}
	}
	return append(left, c.Node.Leftovers(ctx, present...)...), err
}

// stopDNS removes CoreDNS and waits until its pods have gone.
func (c *Cluster) stopDNS(ctx context.Context) error {
	const namespace = metav1.NamespaceSystem
	if err := c.Client.AppsV1().Deployments(namespace).Delete(ctx, "coredns", metav1.DeleteOptions{}); err != nil {
		return err
	}
	return until(ctx, c.programs["kubelet"], func(ctx context.Context) error {
		pods, err := c.Client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(pods.Items) > 0 {
			err = errors.New("pods of " + namespace + " do not go")
		}
		return err
	})
}
