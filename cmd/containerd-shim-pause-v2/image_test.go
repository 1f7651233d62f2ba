package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"path"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const imageName = "registry.example:5000/pause:3.10.1"

func TestSandboxImageIsReproducible(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} {
		if err := writeSandboxImage(w, imageName); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the bytes differ")
	}
}

func TestSandboxImageIsComplete(t *testing.T) {
	var archive bytes.Buffer
	if err := writeSandboxImage(&archive, imageName); err != nil {
		t.Fatal(err)
	}
	files := make(map[string][]byte)
	for r := tar.NewReader(&archive); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name] = data
		if path.Dir(header.Name) == "blobs/sha256" {
			if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != path.Base(header.Name) {
				t.Errorf("%s is not called by its digest", header.Name)
			}
		}
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	decode(t, files["index.json"], &index)
	if name := index.Manifests[0].Annotations["io.containerd.image.name"]; name != imageName {
		t.Errorf("its name is %s", name)
	}
	decode(t, files["blobs/sha256/"+index.Manifests[0].Digest.Encoded()], &manifest)
	var image ocispec.Image
	decode(t, files["blobs/sha256/"+manifest.Config.Digest.Encoded()], &image)
	if image.OS != "linux" || len(manifest.Layers) != 0 {
		t.Errorf("image %+v, layers %v", image, manifest.Layers)
	}
}

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}

func TestNamesThatAreNoImages(t *testing.T) {
	for _, name := range []string{"", "pause", "pause:3", "registry/pause", "a b/c:d", "registry:5000/pause"} {
		if err := writeSandboxImage(io.Discard, name); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
}
