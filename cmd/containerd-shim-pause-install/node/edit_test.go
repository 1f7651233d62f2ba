package node

import (
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestImportIsAddedAndRemoved(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		refused    bool
	}{
		{name: "empty", text: ""},
		{name: "no list", text: "version = 3\n[debug]\n  level = 'warn'\n"},
		{name: "empty list", text: "version = 3\nimports = []\n[debug]\n"},
		{name: "one line", text: "imports = ['/a', \"/b\"] # why\nversion = 2"},
		{name: "several lines", text: "imports = [ # why\n\t'/a',\n\n  # '/x',\n\t'/b' ]\n"},
		{name: "quoted key", text: "\"imports\" = ['/a']\n"},
		{name: "in a comment only", text: "# imports = ['/a']\nversion = 3\n"},
		{name: "key of a table", text: "version = 3\n[a]\nimports = ['/a']\n"},
		{name: "no list of texts", text: "imports = 'a'\n", refused: true},
		{name: "no TOML", text: "imports = [\n", refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, err := withImport([]byte(tc.text), "/new")
			if tc.refused {
				if err == nil {
					t.Fatalf("made %q", e.text)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			imports, err := importsOf(e.text)
			if err != nil || imports[0] != "/new" {
				t.Errorf("%q imports %q, %v", e.text, imports, err)
			}
			if back, whole := without(e.text, []string{e.inserted}); string(back) != tc.text || !whole {
				t.Errorf("back: %q, want %q", back, tc.text)
			}
		})
	}
}

func TestBlockIsAddedAndRemoved(t *testing.T) {
	want := table{"pause": table{"runtime_type": stockType, "options": table{"SystemdCgroup": true, "BinaryName": `a"b\`}}}
	for version, plugin := range map[int]string{1: criVersion1, 2: criVersion2, 3: criVersion3, 4: criVersion3} {
		body, err := tables(version, want)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"", "version = 3", "version = 3\n", "[a]\nb = 1"} {
			e := withBlock([]byte(text), body)
			var got table
			if err := toml.Unmarshal(e.text, &got); err != nil {
				t.Fatalf("%v in %s", err, e.text)
			}
			options := lookup(got, "plugins", plugin, "containerd", "runtimes", "pause", "options")
			if options["SystemdCgroup"] != true || options["BinaryName"] != `a"b\` {
				t.Errorf("version %d: %v", version, got)
			}
			if back, whole := without(e.text, []string{e.inserted}); string(back) != text || !whole {
				t.Errorf("back: %q, want %q", back, text)
			}
		}
	}
}

func TestEditedBlockIsNotTakenForRemoved(t *testing.T) {
	e := withBlock(nil, "[a]\n")
	if _, whole := without(append([]byte("x"), e.text[5:]...), []string{e.inserted}); whole {
		t.Error("it says that all was removed")
	}
}

func TestOwnFileIsNamedByThePattern(t *testing.T) {
	for pattern, want := range map[string]string{
		"/etc/containerd/conf.d/*.toml":    "/etc/containerd/conf.d/containerd-shim-pause.toml",
		"/etc/containerd/runtime_*.toml":   "/etc/containerd/runtime_containerd-shim-pause.toml",
		"/etc/containerd/*":                "/etc/containerd/containerd-shim-pause",
		"/etc/containerd/a.toml":           "",
		"/etc/*/conf.d/x.toml":             "",
		"/etc/containerd/conf.d/[a-c]*.to": "",
		"/etc/containerd/conf.d/*.*":       "",
	} {
		if got, ok := named(pattern); got != want || ok != (want != "") {
			t.Errorf("%s: %q, %v", pattern, got, ok)
		}
	}
}
