package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestManifestsAreThoseOfTheChart(t *testing.T) {
	if err := run("../../deploy/chart", "../../deploy/base", true); err != nil {
		t.Error(err)
	}
}

// A template that is not in files would be in the chart only.
func TestAllTemplatesAreManifests(t *testing.T) {
	entries, err := os.ReadDir("../../deploy/chart/templates")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(files, filepath.Base(e.Name())) {
			t.Errorf("%s is not in the base", e.Name())
		}
	}
}
