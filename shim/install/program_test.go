package install

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var names = Names{Program: "the-shim", Shared: "the-shared-shim"}

// source writes a program to install.
func source(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func entries(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range list {
		found = append(found, e.Name())
	}
	return strings.Join(found, " ")
}

func installed(t *testing.T, source, dir string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Program(&out, source, dir, names); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestProgramIsInstalledOnce(t *testing.T) {
	dir, from := filepath.Join(t.TempDir(), "usr", "bin"), source(t, "one")
	if said := installed(t, from, dir); !strings.Contains(said, "the-shim: written") || !strings.Contains(said, "linked to the-shim") {
		t.Errorf("it said %q", said)
	}
	before, err := os.Stat(filepath.Join(dir, "the-shared-shim"))
	if err != nil {
		t.Fatal(err)
	}
	if before.Mode() != Mode {
		t.Errorf("mode %v", before.Mode())
	}
	if said := installed(t, from, dir); strings.Count(said, "is there already") != 2 {
		t.Errorf("the second time it said %q", said)
	}
	after, err := os.Stat(filepath.Join(dir, "the-shared-shim"))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) {
		t.Error("the program was written again")
	}
}

// A kernel refuses to write to a program that runs (ETXTBSY), and what runs must stay what it was.
func TestRunningProgramIsReplaced(t *testing.T) {
	dir := t.TempDir()
	installed(t, source(t, "old"), dir)
	running, err := os.Open(filepath.Join(dir, "the-shim"))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	if said := installed(t, source(t, "new"), dir); !strings.Contains(said, "the-shim: replaced") {
		t.Errorf("it said %q", said)
	}
	old := make([]byte, 3)
	if _, err := running.Read(old); err != nil || string(old) != "old" {
		t.Errorf("what was open is now %q, %v", old, err)
	}
}

func TestRestOfKilledWriteIsRemoved(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, temporaryPrefix+"0123456789ab"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	installed(t, source(t, "one"), dir)
	if found := entries(t, dir); found != "the-shared-shim the-shim" {
		t.Errorf("there are: %s", found)
	}
}

func TestRemovalTakesOnlyWhatItInstalled(t *testing.T) {
	dir, from := t.TempDir(), source(t, "one")
	installed(t, from, dir)
	var out bytes.Buffer
	if err := RemoveProgram(&out, source(t, "another build"), dir, names); err == nil || !strings.Contains(err.Error(), "the-shim is not what this program installs") {
		t.Errorf("with another program: %v", err)
	}
	if found := entries(t, dir); found != "the-shared-shim the-shim" {
		t.Errorf("with another program it leaves: %s", found)
	}
	if err := RemoveProgram(&out, from, dir, names); err != nil {
		t.Fatal(err)
	}
	if found := entries(t, dir); found != "" {
		t.Errorf("left: %s", found)
	}
}
