package node

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// importImages makes the images, and waits until CRI knows them.
func (n *Node) importImages(ctx context.Context) error {
	busybox, err := Busybox()
	if err != nil {
		return err
	}
	pause, err := n.pauseRoot()
	if err != nil {
		return err
	}
	images := []struct {
		name   string
		root   []File
		config ocispec.ImageConfig
	}{
		{n.BusyboxImage, busybox, ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}},
		{n.PauseImage, pause, ocispec.ImageConfig{User: "65535:65535", Entrypoint: []string{"/pause"}}},
	}
	if n.options.NoPauseImage {
		images = images[:1]
	}
	for _, image := range images {
		archive, err := imageArchive(image.name, image.root, image.config)
		if err != nil {
			return fmt.Errorf("cannot make image %s: %w", image.name, err)
		}
		if err := n.importImage(ctx, image.name, archive); err != nil {
			return fmt.Errorf("cannot import image %s: %w", image.name, err)
		}
	}
	return nil
}

func (n *Node) importImage(ctx context.Context, name string, archive []byte) error {
	for _, namespace := range []string{n.ID, CRINamespace} {
		ctx := namespaces.WithNamespace(ctx, namespace)
		images, err := n.client.Import(ctx, bytes.NewReader(archive))
		if err != nil {
			return err
		}
		for _, i := range images {
			if err := containerd.NewImage(n.client, i).Unpack(ctx, n.Snapshotter); err != nil {
				return err
			}
		}
	}
	// CRI learns of it by an event.
	for {
		r, err := n.Images().ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: name}})
		if err != nil || r.Image != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// File is a file of an image. One without data is a directory, or a link if it
// has a target.
type File struct {
	Name   string
	Mode   int64
	Data   []byte
	Target string
}

// Busybox returns the files of the busybox image: the host's program, which has to be
// static, with a link for each applet.
func Busybox() ([]File, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("cannot make the busybox image: %w (Debian: busybox-static)", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("cannot list the applets of %s: %w", path, err)
	}
	var root []File
	for _, dir := range []string{"bin", "dev", "etc", "home", "proc", "root", "run", "sys", "var"} {
		root = append(root, File{Name: dir, Mode: 0o755})
	}
	root = append(root,
		File{Name: "tmp", Mode: 0o1777},
		File{Name: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
		File{Name: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnobody:x:65534:\n")},
		File{Name: "bin/busybox", Mode: 0o755, Data: program},
	)
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			root = append(root, File{Name: "bin/" + a, Target: "busybox"})
		}
	}
	return root, nil
}

func (n *Node) pauseRoot() ([]File, error) {
	path, err := n.LookPath("pause")
	if err != nil {
		return nil, fmt.Errorf("cannot make the pause image: %w", err)
	}
	program, err := os.ReadFile(path)
	return []File{{Name: "pause", Mode: 0o755, Data: program}}, err
}

// imageArchive returns an OCI image layout with an image of one layer, as a tar.
func imageArchive(name string, root []File, config ocispec.ImageConfig) ([]byte, error) {
	layer, err := Pack(root)
	if err != nil {
		return nil, err
	}
	var blobs []File
	var failed error
	blob := func(mediaType string, content []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		blobs = append(blobs, File{Name: "blobs/sha256/" + d.Digest.Encoded(), Mode: 0o644, Data: content})
		return d
	}
	encode := func(v any) []byte {
		b, err := json.Marshal(v)
		if err != nil {
			failed = err
		}
		return b
	}
	platform := ocispec.Platform{Architecture: goruntime.GOARCH, OS: "linux"}
	layerBlob := blob(ocispec.MediaTypeImageLayer, layer)
	manifest := blob(ocispec.MediaTypeImageManifest, encode(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: blob(ocispec.MediaTypeImageConfig, encode(ocispec.Image{
			Platform: platform,
			Config:   config,
			RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layerBlob.Digest}},
		})),
		Layers: []ocispec.Descriptor{layerBlob},
	}))
	manifest.Platform = &platform
	manifest.Annotations = map[string]string{"io.containerd.image.name": name}
	index := encode(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{manifest}})
	layout := encode(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if failed != nil {
		return nil, failed
	}
	return Pack(append(blobs,
		File{Name: ocispec.ImageLayoutFile, Mode: 0o644, Data: layout},
		File{Name: ocispec.ImageIndexFile, Mode: 0o644, Data: index},
	))
}

// Pack returns files as the tar of a layer.
func Pack(files []File) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Size: int64(len(f.Data)), ModTime: time.Unix(0, 0)}
		switch {
		case f.Target != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.Target
		case f.Data == nil:
			h.Typeflag, h.Name = tar.TypeDir, f.Name+"/"
		default:
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}
