package cluster

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// server is an HTTPS server, and the account of a pod for it.
func server(t *testing.T, handler http.HandlerFunc) *API {
	t.Helper()
	s := httptest.NewTLSServer(handler)
	t.Cleanup(s.Close)
	account := t.TempDir()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for name, content := range map[string]string{"ca.crt": string(ca), "token": "secret\n"} {
		if err := os.WriteFile(filepath.Join(account, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", at.Hostname())
	t.Setenv("KUBERNETES_SERVICE_PORT", at.Port())
	api, err := InCluster(account)
	if err != nil {
		t.Fatal(err)
	}
	return api
}

func TestLabelIsAPatchOfOneKey(t *testing.T) {
	var got []string
	api := server(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, strings.Join([]string{r.Method, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), string(body)}, " "))
		json.NewEncoder(w).Encode(map[string]string{"kind": "Node"})
	})
	value := "installed"
	for _, v := range []*string{&value, nil} {
		if err := api.Label(t.Context(), "node-1", "key", v); err != nil {
			t.Fatal(err)
		}
	}
	want := "PATCH /api/v1/nodes/node-1 Bearer secret application/merge-patch+json "
	if len(got) != 2 || got[0] != want+`{"metadata":{"labels":{"key":"installed"}}}` || got[1] != want+`{"metadata":{"labels":{"key":null}}}` {
		t.Errorf("requests: %q", got)
	}
}

func TestRefusalIsReported(t *testing.T) {
	api := server(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, `{"kind": "Status", "message": "nodes is forbidden"}`)
	})
	if err := api.Label(t.Context(), "node-1", "key", nil); err == nil || !strings.Contains(err.Error(), "node-1: the API server answers 403 Forbidden: nodes is forbidden") {
		t.Errorf("got %v", err)
	}
}

// The API server must be the one whose certificate the account has.
func TestOtherServersGetNoToken(t *testing.T) {
	asked := false
	api := server(t, func(http.ResponseWriter, *http.Request) {})
	other := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
	other.StartTLS()
	defer other.Close()
	// httptest's servers have all the same certificate: its name is what differs here.
	api.URL = strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	if err := api.Label(t.Context(), "node-1", "key", nil); err == nil || asked {
		t.Errorf("asked: %v, %v", asked, err)
	}
}
