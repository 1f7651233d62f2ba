package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeSandboxImage writes an archive of a sandbox image for `ctr images import`.
// With podsandbox containerd requires that image for each pod, though this shim
// uses nothing in it. The image has a configuration and no files. The same name
// always gives the same bytes.
// Source: OCI image specification, image-layout.md.
func writeSandboxImage(w io.Writer, name string) error {
	if strings.ContainsAny(name, " \t\n") || !strings.Contains(name, "/") || !strings.Contains(name[strings.LastIndex(name, "/"):], ":") {
		return fmt.Errorf("cannot write sandbox image: %q is not a full image name; give one such as registry.k8s.io/pause:3.10.1", name)
	}
	a := &imageArchive{tar: tar.NewWriter(w)}
	manifest := a.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: a.blob(ocispec.MediaTypeImageConfig, ocispec.Image{
			Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: runtime.GOOS},
			Config:   ocispec.ImageConfig{User: "65535:65535", Entrypoint: []string{"/pause"}},
			RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
		}),
		Layers: []ocispec.Descriptor{},
	})
	manifest.Annotations = map[string]string{
		"io.containerd.image.name": name,
		ocispec.AnnotationRefName:  name[strings.LastIndex(name, ":")+1:],
	}
	a.json(ocispec.ImageIndexFile, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest},
	})
	a.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	return errors.Join(a.err, a.tar.Close())
}

// imageArchive writes files into an archive until a write fails; err keeps the failure.
type imageArchive struct {
	tar *tar.Writer
	err error
}

// blob adds a file named by its digest, and returns its descriptor.
func (a *imageArchive) blob(mediaType string, v any) ocispec.Descriptor {
	data := a.encode(v)
	sum := digest.FromBytes(data)
	a.file(path.Join(ocispec.ImageBlobsDir, sum.Algorithm().String(), sum.Encoded()), data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: sum, Size: int64(len(data))}
}

func (a *imageArchive) json(name string, v any) { a.file(name, a.encode(v)) }

func (a *imageArchive) encode(v any) []byte {
	var data bytes.Buffer
	if err := json.NewEncoder(&data).Encode(v); err != nil {
		a.err = errors.Join(a.err, err)
	}
	return bytes.TrimSpace(data.Bytes())
}

func (a *imageArchive) file(name string, data []byte) {
	if a.err != nil {
		return
	}
	if a.err = a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatUSTAR}); a.err == nil {
		_, a.err = a.tar.Write(data)
	}
}
