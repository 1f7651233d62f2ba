package node

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// mark is in all that is written into a file of somebody else's.
const mark = "containerd-shim-pause-install"

// An edit is a text with something inserted, which is removed by removing that string.
type edit struct {
	text     []byte
	inserted string
}

// withBlock appends TOML tables to a configuration.
func withBlock(text []byte, tables string) edit {
	inserted := "\n# Begin of what " + mark + " added, and will remove.\n" + tables + "# End of what " + mark + " added.\n"
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		inserted = "\n" + inserted
	}
	return edit{slices.Concat(text, []byte(inserted)), inserted}
}

// heading finds the first table of a TOML file: what comes before belongs to no table.
var heading = regexp.MustCompile(`(?m)^[ \t]*\[`)

// importsKey finds the beginning of the list of imports.
var importsKey = regexp.MustCompile(`(?m)^[ \t]*(?:imports|"imports"|'imports')[ \t]*=[ \t]*\[`)

// withImport adds a path to the imports of a configuration, in a line of its own: as the first
// element of the list, or as a list at the top.
func withImport(text []byte, path string) (edit, error) {
	before, err := importsOf(text)
	if err != nil {
		return edit{}, err
	}
	e := edit{inserted: fmt.Sprintf("imports = ['%s'] # added by %s\n", path, mark)}
	e.text = slices.Concat([]byte(e.inserted), text)
	if before != nil {
		at := importsKey.FindIndex(text)
		if first := heading.FindIndex(text); at == nil || first != nil && first[0] < at[0] {
			return edit{}, errors.New("cannot find where the list of imports begins")
		}
		e.inserted = fmt.Sprintf("\n  '%s', # added by %s\n", path, mark)
		e.text = slices.Concat(text[:at[1]], []byte(e.inserted), text[at[1]:])
	}
	after, err := importsOf(e.text)
	if err != nil {
		return edit{}, fmt.Errorf("cannot add to the list of imports: %w", err)
	}
	if !reflect.DeepEqual(after, append([]string{path}, before...)) {
		return edit{}, fmt.Errorf("cannot add to the list of imports: it would be %q", after)
	}
	return e, nil
}

// importsOf returns the imports of a configuration, nil if it has no such list.
func importsOf(text []byte) ([]string, error) {
	var config struct {
		Imports *[]string `toml:"imports"`
	}
	if err := toml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	if config.Imports == nil {
		return nil, nil
	}
	return append([]string{}, *config.Imports...), nil
}

// versionOf returns the version that a configuration says it has: 1 if it says nothing.
func versionOf(text []byte) (int, error) {
	config := struct {
		Version int `toml:"version"`
	}{1}
	err := toml.Unmarshal(text, &config)
	return max(config.Version, 1), err
}

// without removes what was inserted into a text. It says whether all was found that is there:
// if not, lines with the mark are left.
func without(text []byte, inserted []string) (_ []byte, whole bool) {
	for _, s := range inserted {
		if at := bytes.Index(text, []byte(s)); at >= 0 {
			text = slices.Concat(text[:at], text[at+len(s):])
		}
	}
	return text, !bytes.Contains(text, []byte(mark))
}

// A table is one of TOML's, as go-toml decodes it into an any.
type table = map[string]any

// lookup finds a table within tables.
func lookup(t table, keys ...string) table {
	for _, key := range keys {
		t, _ = t[key].(table)
	}
	return t
}

// writeTable writes a table, and those in it, below a heading.
func writeTable(heading string, t table) (string, error) {
	plain := table{}
	for key, value := range t {
		if _, nested := value.(table); !nested {
			plain[key] = value
		}
	}
	body, err := toml.Marshal(plain)
	if err != nil {
		return "", fmt.Errorf("cannot write [%s]: %w", heading, err)
	}
	text := new(strings.Builder)
	fmt.Fprintf(text, "[%s]\n%s", heading, body)
	for _, key := range slices.Sorted(maps.Keys(t)) {
		if nested, ok := t[key].(table); ok {
			inner, err := writeTable(heading+"."+quoteKey(key), nested)
			if err != nil {
				return "", err
			}
			text.WriteString(inner)
		}
	}
	return text.String(), nil
}

var bareKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

func quoteKey(key string) string {
	if bareKey.MatchString(key) {
		return key
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key) + `"`
}
