package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/shim"
)

// checkState has this program look at a state, and returns what it says.
func checkState(t *testing.T, state []byte) (said string, code int) {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, state, 0o600); err != nil {
		t.Fatal(err)
	}
	stdin, err := os.Open(in)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	oldIn, oldOut, oldErr := os.Stdin, os.Stdout, os.Stderr
	os.Stdin, os.Stdout, os.Stderr = stdin, stdout, stdout
	code = shim.Run(t.Context(), &shim.Config{Runtime: "io.containerd.pause.v2", CheckSaved: checkTasks}, []string{"-check-state"})
	os.Stdin, os.Stdout, os.Stderr = oldIn, oldOut, oldErr
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), code
}

// What a release has written down, every later one of the same format must be able to read. The
// files are what shims have written: of a pod with a user namespace and a shared PID namespace, and
// of a shared shim with pods of the Sandbox API.
func TestStatesOfEarlierReleasesAreUnderstood(t *testing.T) {
	files, err := filepath.Glob("testdata/state-*.json")
	if err != nil || len(files) < 2 {
		t.Fatalf("states %v, %v", files, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if said, code := checkState(t, data); code != 0 || said != "1.1" {
			t.Errorf("%s: exit code %d: %s", file, code, said)
		}
	}
}

// A program must refuse what it would lose.
func TestStatesThatAreNotUnderstoodAreRefused(t *testing.T) {
	data, err := os.ReadFile("testdata/state-1-pod.json")
	if err != nil {
		t.Fatal(err)
	}
	var state map[string]any
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	changed := func(change func()) []byte {
		change()
		data, err := json.Marshal(state)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	tasks := state["tasks"].(map[string]any)["tasks"].([]any)
	for _, tc := range []struct {
		name, says string
		state      []byte
	}{
		{"nothing", "cannot decode", nil},
		{"cut off", "cannot decode", bytes.TrimSuffix(data, []byte("}"))},
		{"a task with something new", "unknown field \"novelty\"", changed(func() { tasks[0].(map[string]any)["novelty"] = 1 })},
		{"something new", "unknown field \"novelty\"", changed(func() { state["novelty"] = 1 })},
		{"another format", "format 2", changed(func() { state["format"] = 2 })},
	} {
		if said, code := checkState(t, tc.state); code == 0 || !strings.Contains(said, tc.says) {
			t.Errorf("%s: exit code %d: %s", tc.name, code, said)
		}
	}
}
