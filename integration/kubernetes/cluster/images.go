package cluster

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	goruntime "runtime"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"containerd-shim-pause-v2/integration/node"
)

// registryAddress is where the images are served, whatever registry they are asked for.
const registryAddress = "127.0.0.1:5000"

// Images that pods of the cluster may have. They are pulled when kubelet wants them.
const (
	Busybox = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
	Agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// serveImages makes the images, and serves them from a registry that is there as long as this process.
func (c *Cluster) serveImages(ctx context.Context) error {
	listener, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return err
	}
	c.registry = &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	go c.registry.Serve(listener) //nolint:errcheck // it ends with the cluster
	if err := c.mirror(); err != nil {
		return err
	}
	busybox, err := node.Busybox()
	if err != nil {
		return err
	}
	agnhost, err := c.program("agnhost")
	if err != nil {
		return err
	}
	coredns, err := c.program("coredns")
	if err != nil {
		return err
	}
	env := []string{"PATH=/bin:/"}
	for _, image := range []struct {
		name   string
		files  []node.File
		config v1.Config
	}{
		{Busybox, busybox, v1.Config{Env: env, Cmd: []string{"sh"}}},
		{Agnhost, append(busybox, agnhost), v1.Config{Env: env, Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}}},
		{
			corednsImage,
			[]node.File{coredns, {Name: "Corefile", Mode: 0o644, Data: []byte(corefile)}},
			v1.Config{WorkingDir: "/", Entrypoint: []string{"/coredns"}},
		},
	} {
		if err := push(ctx, image.name, image.files, image.config); err != nil {
			return err
		}
	}
	return nil
}

// program is one of the node's programs as a file of an image.
func (c *Cluster) program(name string) (f node.File, err error) {
	path, err := c.Node.LookPath(name)
	if err != nil {
		return f, err
	}
	data, err := os.ReadFile(path)
	return node.File{Name: name, Mode: 0o755, Data: data}, err
}

// mirror has containerd ask the registry for all images, by a name that stands for every host (docs/hosts.md of
// containerd).
func (c *Cluster) mirror() error {
	dir := c.file("certs.d/_default")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = 'http://"+registryAddress+"'\n"), 0o600)
}

// push makes an image of one layer and brings it into the registry.
func push(ctx context.Context, image string, files []node.File, config v1.Config) error {
	archive, err := node.Pack(files)
	if err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", goruntime.GOARCH, config
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return err
	}
	upstream, err := name.NewTag(image)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(fmt.Sprintf("%s/%s:%s", registryAddress, upstream.RepositoryStr(), upstream.TagStr()))
	if err != nil {
		return err
	}
	if err := remote.Write(tag, img, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("cannot push %s: %w", image, err)
	}
	return nil
}
