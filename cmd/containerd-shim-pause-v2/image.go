package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
)

// The parts of an image that the sandbox image has (OCI image specification, config.md,
// manifest.md, image-index.md). The specification's Go package would set up regular
// expressions, for good, in each shim that starts.
type (
	imageConfig struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Config       struct {
			User       string   `json:"User"`
			Entrypoint []string `json:"Entrypoint"`
		} `json:"config"`
		RootFS struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	imageManifest struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        descriptor   `json:"config"`
		Layers        []descriptor `json:"layers"`
	}
	imageIndex struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}
	imageLayout struct {
		Version string `json:"imageLayoutVersion"`
	}
)

const (
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

// writeSandboxImage writes an archive of a sandbox image for `ctr images import`:
// containerd wants one to be there for each pod that it makes itself, though this
// shim uses nothing of it. It has a configuration and no files. The same name
// always gives the same bytes.
// Source: OCI image specification, image-layout.md.
func writeSandboxImage(w io.Writer, name string) error {
	if strings.ContainsAny(name, " \t\n") || !strings.Contains(name, "/") || !strings.Contains(name[strings.LastIndex(name, "/"):], ":") {
		return fmt.Errorf("%q is not a full name of an image, such as registry.k8s.io/pause:3.10.1", name)
	}
	a := &imageArchive{tar: tar.NewWriter(w)}
	config := imageConfig{Architecture: runtime.GOARCH, OS: runtime.GOOS}
	config.Config.User = "65535:65535"
	config.Config.Entrypoint = []string{"/pause"}
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = []string{}
	manifest := a.blob(typeManifest, imageManifest{
		SchemaVersion: 2,
		MediaType:     typeManifest,
		Config:        a.blob(typeConfig, config),
		Layers:        []descriptor{},
	})
	manifest.Annotations = map[string]string{
		"io.containerd.image.name":          name,
		"org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
	}
	a.json("index.json", imageIndex{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{manifest}})
	a.json("oci-layout", imageLayout{Version: "1.0.0"})
	return errors.Join(a.err, a.tar.Close())
}

// imageArchive writes files into an archive until one fails.
type imageArchive struct {
	tar *tar.Writer
	err error
}

// blob adds a file that is found by its digest, and returns its descriptor.
func (a *imageArchive) blob(mediaType string, v any) descriptor {
	data := a.encode(v)
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	a.file("blobs/sha256/"+sum, data)
	return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
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
