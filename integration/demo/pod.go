package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// column is a way to run the pod. The first one is what others are compared with.
type column struct {
	title   string
	handler string // of CRI
	runtime string // type
	pods    int    // how many pods run; with more than one, all in one shim
}

var columns = []column{
	{title: "stock shim and pause", handler: "runc", runtime: node.StockType, pods: 1},
	{title: "no pause process", handler: "pause", runtime: node.PauseType, pods: 1},
	{title: "nor pause image", handler: sandboxHandler, runtime: node.PauseType + ", Sandbox API", pods: 1},
	{title: "16 pods in one shim", handler: "pause-shared", runtime: node.SharedType, pods: 16},
}

func (c column) howMany() string {
	if c.pods == 1 {
		return "the pod"
	}
	return fmt.Sprintf("%d pods", c.pods)
}

// sandboxHandler is the handler by which containerd leaves the sandbox to the shim.
const sandboxHandler = "pause-sandbox"

// app is what the pod is for: two containers, each one process.
var app = []struct{ name, script string }{
	{"a", `mkdir /www && echo "served by a in $(hostname)" >/www/index.html && exec httpd -f -p 80 -h /www`},
	{"b", `exec sleep 3600`},
}

// pod is a pod with its containers.
type pod struct {
	*node.Pod
	node       *node.Node
	containers []string // ids, in the order of app
}

func runSandbox(ctx context.Context, n *node.Node, c column, change func(*runtime.PodSandboxConfig)) (*pod, error) {
	p, err := n.RunPod(ctx, c.handler, change)
	if err != nil {
		return nil, fmt.Errorf("cannot run a pod with %s: %w", c.runtime, err)
	}
	return &pod{Pod: p, node: n}, nil
}

// startApp creates and starts the containers, one after the other, as kubelet does.
func (p *pod) startApp(ctx context.Context) error {
	for _, c := range app {
		id, err := p.CreateContainer(ctx, c.name, []string{"sh", "-c", c.script}, nil)
		if err == nil {
			err = p.node.StartContainer(ctx, id)
		}
		if err != nil {
			return fmt.Errorf("cannot start container %s: %w", c.name, err)
		}
		p.containers = append(p.containers, id)
	}
	return nil
}

func (p *pod) remove(ctx context.Context) error {
	if err := errors.Join(p.Stop(ctx), p.Remove(ctx)); err != nil {
		return fmt.Errorf("cannot remove a pod of handler %s: %w", p.Handler, err)
	}
	return nil
}

// reply is what came of a request to the web server in container a.
type reply struct {
	url  string
	body string
	err  error
}

// answered tells whether it was this pod that answered.
func (r reply) answered(p *pod) bool {
	return r.err == nil && r.body == "served by a in "+p.Config.Hostname
}

// fromHost asks the pod's address, until the server is up.
func (p *pod) fromHost(ctx context.Context) reply {
	status, err := p.Status(ctx)
	if err != nil {
		return reply{err: err}
	}
	r := reply{url: "http://" + status.GetNetwork().GetIp()}
	const patience = 5 * time.Second
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		r.body, r.err = get(ctx, r.url)
		if r.err == nil || time.Since(start) > patience || ctx.Err() != nil {
			return r
		}
	}
}

func get(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// A proxy of the environment does not know the pod.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// fromB asks localhost, from container b. What a program linked statically with
// glibc does to look up a name or a service may end it, so it is not wget.
func (p *pod) fromB(ctx context.Context) reply {
	r := reply{url: "http://127.0.0.1"}
	out, err := p.node.Exec(ctx, p.containers[1], "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 127.0.0.1 80`)
	switch {
	case err != nil:
		r.err = err
	case out.ExitCode != 0:
		r.err = fmt.Errorf("nc: exit code %d: %s", out.ExitCode, strings.TrimSpace(string(out.Stderr)))
	default:
		_, body, _ := strings.Cut(string(out.Stdout), "\r\n\r\n")
		r.body = strings.TrimSpace(body)
	}
	return r
}
