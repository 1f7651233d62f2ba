// Command manifests makes the manifests of deploy/base of the Helm chart deploy/chart, with the
// chart's default values, so that both have one source. The templates use a few functions of
// Helm's only, those in functions.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"sigs.k8s.io/yaml"
)

// namespace is that of deploy/base/namespace.yaml.
const namespace = "containerd-shim-pause"

// files are those that are made, except for those that are only in one of the two.
var files = []string{"daemonset.yaml", "rbac.yaml", "runtimeclasses.yaml", "policy.yaml"}

func main() {
	chart := flag.String("chart", "../deploy/chart", "`directory` of the chart")
	out := flag.String("out", "../deploy/base", "`directory` of the manifests")
	check := flag.Bool("check", false, "write nothing, and fail if the manifests are not those of the chart")
	flag.Parse()
	if err := run(*chart, *out, *check); err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
}

func run(chart, out string, check bool) error {
	values, err := readValues(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return err
	}
	for _, name := range files {
		text, err := render(filepath.Join(chart, "templates", name), values)
		if err != nil {
			return err
		}
		path := filepath.Join(out, name)
		if !check {
			if err := os.WriteFile(path, text, 0o644); err != nil {
				return err
			}
			continue
		}
		there, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(there, text) {
			return fmt.Errorf("%s is not what the chart makes; run `make manifests`", path)
		}
	}
	return nil
}

func readValues(path string) (values map[string]any, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return values, yaml.Unmarshal(text, &values)
}

// apiVersions answers as Helm's Capabilities.APIVersions for a current cluster.
type apiVersions struct{}

func (apiVersions) Has(string) bool { return true }

// functions are those of Helm's that the chart uses.
var functions = template.FuncMap{
	"toJson": func(v any) (string, error) {
		text, err := json.Marshal(v)
		return string(text), err
	},
	"list": func(v ...any) []any { return v },
	"concat": func(lists ...any) (all []any, err error) {
		for _, l := range lists {
			list, ok := l.([]any)
			if !ok {
				return nil, fmt.Errorf("concat: %v is no list", l)
			}
			all = append(all, list...)
		}
		return all, nil
	},
}

// render executes a template of the chart.
func render(path string, values map[string]any) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := template.New(filepath.Base(path)).Option("missingkey=error").Funcs(functions).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var made bytes.Buffer
	err = t.Execute(&made, map[string]any{
		"Values":       values,
		"Release":      map[string]any{"Namespace": namespace},
		"Capabilities": map[string]any{"APIVersions": apiVersions{}},
	})
	if err != nil {
		return nil, err
	}
	for _, document := range strings.Split(made.String(), "\n---\n") {
		var object map[string]any
		if err := yaml.UnmarshalStrict([]byte(document), &object); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if object["kind"] == nil {
			return nil, errors.New(path + ": an object has no kind")
		}
	}
	return []byte("# Made of deploy/chart by `make manifests`.\n" + strings.TrimSpace(made.String()) + "\n"), nil
}
