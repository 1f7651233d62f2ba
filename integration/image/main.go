// Command image writes an image as an OCI archive: an image index with one image for each
// architecture, made of nothing but the files that it is given. The same files give the same
// bytes. It needs no daemon and no registry.
// Source: OCI image specification, image-layout.md, image-index.md, config.md.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	_ "crypto/sha256" // for go-digest
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is what the archive is made of.
type image struct {
	name              string // full, with a tag
	version, revision string
	created           time.Time
	platforms         []platform
	files             []string // that are in the images of all platforms
}

// platform is an image for one architecture. It runs the last of its programs.
type platform struct {
	arch     string
	programs []string
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var i image
	set := flag.NewFlagSet("image", flag.ContinueOnError)
	out := set.String("out", "", "`file` to write")
	set.StringVar(&i.name, "name", "", "`name` of the image, with registry and tag")
	set.StringVar(&i.version, "version", "", "`version` of the programs")
	set.StringVar(&i.revision, "revision", "", "`revision` of the source")
	seconds := set.Int64("time", 0, "when the image was made, in `seconds` of the epoch")
	set.Func("platform", "`arch=file,file` for an architecture; the image runs the last of the files", func(s string) error {
		arch, files, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("give it as arch=file,file")
		}
		i.platforms = append(i.platforms, platform{arch, strings.Split(files, ",")})
		return nil
	})
	set.Func("file", "`file` for all architectures", func(s string) error { i.files = append(i.files, s); return nil })
	if err := set.Parse(args); err != nil {
		return err
	}
	i.created = time.Unix(*seconds, 0).UTC()
	if *out == "" || len(i.platforms) == 0 || !strings.Contains(path.Base(i.name), ":") || !strings.Contains(i.name, "/") {
		return errors.New("give -out, -platform, and a full -name such as registry.example/name:tag")
	}
	var archive bytes.Buffer
	if err := i.write(&archive); err != nil {
		return fmt.Errorf("cannot make the image %s: %w", i.name, err)
	}
	if err := os.WriteFile(*out, archive.Bytes(), 0o644); err != nil {
		return err
	}
	fmt.Printf("%s: %s, %d bytes, %s\n", *out, i.name, archive.Len(), digest.FromBytes(archive.Bytes()))
	return nil
}

func (i *image) write(w io.Writer) error {
	a := &archive{tar: tar.NewWriter(w), written: map[digest.Digest]bool{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Annotations: i.annotations()}
	for _, p := range i.platforms {
		manifest, err := i.manifest(a, p)
		if err != nil {
			return err
		}
		index.Manifests = append(index.Manifests, manifest)
	}
	all, err := a.blobOf(ocispec.MediaTypeImageIndex, index)
	if err != nil {
		return err
	}
	all.Annotations = map[string]string{
		"io.containerd.image.name": i.name, // for ctr images import
		ocispec.AnnotationRefName:  i.name[strings.LastIndex(i.name, ":")+1:],
	}
	if err := a.json(ocispec.ImageIndexFile, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{all},
	}); err != nil {
		return err
	}
	if err := a.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	return a.tar.Close()
}

func (i *image) annotations() map[string]string {
	return map[string]string{
		ocispec.AnnotationTitle:    "containerd-shim-pause-v2",
		ocispec.AnnotationLicenses: "Apache-2.0",
		ocispec.AnnotationCreated:  i.created.Format(time.RFC3339),
		ocispec.AnnotationVersion:  i.version,
		ocispec.AnnotationRevision: i.revision,
	}
}

// manifest writes the image of one platform.
func (i *image) manifest(a *archive, p platform) (ocispec.Descriptor, error) {
	layer, err := i.layer(append(append([]string{}, p.programs...), i.files...))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var compressed bytes.Buffer
	z, err := gzip.NewWriterLevel(&compressed, gzip.BestCompression)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := z.Write(layer); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	what := ocispec.Platform{OS: "linux", Architecture: p.arch}
	config, err := a.blobOf(ocispec.MediaTypeImageConfig, ocispec.Image{
		Created:  &i.created,
		Platform: what,
		Config: ocispec.ImageConfig{
			Entrypoint: []string{"/" + filepath.Base(p.programs[len(p.programs)-1])},
			Labels:     i.annotations(),
		},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	blob, err := a.blob(ocispec.MediaTypeImageLayerGzip, compressed.Bytes())
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d, err := a.blobOf(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{blob},
	})
	d.Platform = &what
	return d, err
}

// layer is an archive of files, all in the root directory.
func (i *image) layer(files []string) ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		mode := int64(0o644)
		if info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		header := &tar.Header{Name: filepath.Base(name), Mode: mode, Size: int64(len(data)), ModTime: i.created, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	return layer.Bytes(), w.Close()
}

// archive is an OCI layout in a tar file.
type archive struct {
	tar     *tar.Writer
	written map[digest.Digest]bool
}

// blob adds a file that is named by its digest, once.
func (a *archive) blob(mediaType string, data []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	if a.written[d.Digest] {
		return d, nil
	}
	a.written[d.Digest] = true
	return d, a.file(path.Join(ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded()), data)
}

func (a *archive) blobOf(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.blob(mediaType, data)
}

func (a *archive) json(name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return a.file(name, data)
}

func (a *archive) file(name string, data []byte) error {
	if err := a.tar.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	_, err := a.tar.Write(data)
	return err
}
