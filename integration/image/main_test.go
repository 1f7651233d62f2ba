package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func testImage(t *testing.T) *image {
	t.Helper()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"shim": 0o700, "installer": 0o755, "LICENSE": 0o600} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	programs := []string{filepath.Join(dir, "shim"), filepath.Join(dir, "installer")}
	return &image{
		name: "registry.example/name:tag", created: time.Unix(1, 0).UTC(),
		platforms: []platform{{"amd64", programs}, {"arm64", programs}}, files: []string{filepath.Join(dir, "LICENSE")},
	}
}

func TestImageIsReproducible(t *testing.T) {
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} { // in two directories, with other times of the files
		if err := testImage(t).write(w); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the bytes differ")
	}
}

func TestImageIsComplete(t *testing.T) {
	var archive bytes.Buffer
	if err := testImage(t).write(&archive); err != nil {
		t.Fatal(err)
	}
	files := untar(t, &archive)
	for name, data := range files {
		if path.Dir(name) == "blobs/sha256" && digest.FromBytes(data).Encoded() != path.Base(name) {
			t.Errorf("%s is not named by its digest", name)
		}
	}
	var top, index ocispec.Index
	decode(t, files["index.json"], &top)
	if got := top.Manifests[0].Annotations["io.containerd.image.name"]; got != "registry.example/name:tag" {
		t.Errorf("its name is %s", got)
	}
	decode(t, blob(files, top.Manifests[0]), &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("%d images", len(index.Manifests))
	}
	for i, arch := range []string{"amd64", "arm64"} {
		var manifest ocispec.Manifest
		var config ocispec.Image
		d := index.Manifests[i]
		decode(t, blob(files, d), &manifest)
		decode(t, blob(files, manifest.Config), &config)
		if d.Platform.Architecture != arch || config.Architecture != arch || config.Config.Entrypoint[0] != "/installer" {
			t.Errorf("%v, %+v", d.Platform, config)
		}
		z, err := gzip.NewReader(bytes.NewReader(blob(files, manifest.Layers[0])))
		if err != nil {
			t.Fatal(err)
		}
		layer, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		if config.RootFS.DiffIDs[0] != digest.FromBytes(layer) {
			t.Error("the layer is another")
		}
		content := untar(t, bytes.NewReader(layer))
		if len(content) != 3 || string(content["shim"]) != "shim" || string(content["LICENSE"]) != "LICENSE" {
			t.Errorf("the layer has %q", content)
		}
	}
}

func blob(files map[string][]byte, d ocispec.Descriptor) []byte {
	return files["blobs/sha256/"+d.Digest.Encoded()]
}

func untar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for r := tar.NewReader(r); ; {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, data []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatal(err)
	}
}
