// Package cluster labels a Kubernetes node. It speaks HTTP to the API server with the account
// of the pod that it runs in; for one request that is all it needs.
package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Account is where Kubernetes puts the account of a pod
// (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).
const Account = "/var/run/secrets/kubernetes.io/serviceaccount"

// API is an API server, and the account with which it is asked.
type API struct {
	URL     string
	account string
	client  *http.Client
}

// InCluster is the API server of the cluster in which this process runs in a pod. account is a
// directory such as [Account].
func InCluster(account string) (*API, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("cannot find the API server: $KUBERNETES_SERVICE_HOST and $KUBERNETES_SERVICE_PORT are not set, as they are in a pod")
	}
	ca, err := os.ReadFile(filepath.Join(account, "ca.crt"))
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificate of the API server: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("cannot read the certificate of the API server: there is none in %s", filepath.Join(account, "ca.crt"))
	}
	return &API{
		URL:     "https://" + net.JoinHostPort(host, port),
		account: account,
		client: &http.Client{
			Timeout:   30 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}},
		},
	}, nil
}

// Label sets a label of a node, or removes it if value is nil. It needs the verb patch on nodes.
func (a *API) Label(ctx context.Context, node, key string, value *string) error {
	token, err := os.ReadFile(filepath.Join(a.account, "token")) // Kubernetes renews it.
	if err != nil {
		return fmt.Errorf("cannot read the token of the account: %w", err)
	}
	// A null removes a key (RFC 7386).
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": map[string]any{key: value}}})
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPatch, a.URL+"/api/v1/nodes/"+url.PathEscape(node), strings.NewReader(string(patch)))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	request.Header.Set("Content-Type", "application/merge-patch+json")
	request.Header.Set("Accept", "application/json")
	answer, err := a.client.Do(request)
	if err != nil {
		return fmt.Errorf("cannot label node %s: %w", node, err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		var status struct{ Message string }
		body, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<16))
		if json.Unmarshal(body, &status) != nil || status.Message == "" {
			status.Message = string(body)
		}
		return fmt.Errorf("cannot label node %s: the API server answers %s: %s", node, answer.Status, status.Message)
	}
	return nil
}
