package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// stockType is the runtime type under which the handlers run the shim, by its path. containerd
// adds to the options of that type only, which pods with user namespaces need.
const stockType = "io.containerd.runc.v2"

// Where containerd's CRI plugin has its runtimes: by the version of a configuration, and in what
// `containerd config dump` prints.
const (
	criVersion1 = "cri"
	criVersion2 = "io.containerd.grpc.v1.cri"
	criVersion3 = "io.containerd.cri.v1.runtime"
)

// dropIn is the name of our file in a directory that containerd's configuration imports.
const dropIn = "containerd-shim-pause.toml"

// A handler is a runtime handler of CRI.
type handler struct {
	name    string
	program string // host's path of the shim
}

// configuration is that of the host's containerd.
type configuration struct {
	root
	program  string // containerd
	main     string // the file that containerd reads
	template string // what main is made from at each start, "" if it is not made
	version  int    // of main
	text     []byte // of main, without what was inserted by us; nil if there is no such file
	own      files  // the files as they would be without us
	dump     table  // what containerd makes of them
	handlers []handler
	inserted []string // all that was inserted by us
}

// A change is one file to be written.
type change struct {
	path     string
	data     []byte
	inserted string // for a file that is not ours
}

// A candidate is a way to add the handlers. Those who try it see the files tried; the changes are
// the same, but where a file is made from another.
type candidate struct {
	what    string
	changes []change
	tried   files
}

// readConfiguration reads the host's configuration as it would be without us.
func readConfiguration(ctx context.Context, r root, l layout, j *journal, handlers []handler) (*configuration, error) {
	c := &configuration{root: r, program: l.programs[0], main: l.config, own: files{}, handlers: handlers}
	c.inserted = append(c.inserted, j.Made...)
	for _, f := range j.Files {
		if f.Program {
			continue
		}
		c.inserted = append(c.inserted, f.Inserted...)
		now, err := r.read(f.Path)
		if err != nil {
			return nil, err
		}
		_, before, err := j.before(f, now)
		if err != nil {
			return nil, err
		}
		if before == nil {
			c.own[f.Path] = nil
		} else if before != now {
			c.own[f.Path] = before.data
		}
	}
	main, err := r.read(c.main)
	if err != nil {
		return nil, err
	}
	if main != nil && main.Link != "" {
		return nil, fmt.Errorf("cannot change %s: it is a symbolic link to %s, so something else makes it; add the handlers there", c.main, main.Link)
	}
	if _, recorded := c.own[c.main]; !recorded && main != nil {
		c.text = main.data
		// k3s has made it from a template of ours.
		if text, _ := without(main.data, c.inserted); len(text) != len(main.data) {
			c.own[c.main] = text
		}
	}
	if text, recorded := c.own[c.main]; recorded {
		c.text = text
	}
	if c.dump, err = c.read(ctx, c.own); err != nil {
		return nil, err
	}
	if c.text != nil {
		if c.version, err = versionOf(c.text); err != nil {
			return nil, fmt.Errorf("cannot read %s: %w", c.main, err)
		}
	} else {
		// containerd prints the newest version that it knows; all that know 3 take 3.
		version, _ := c.dump["version"].(int64)
		c.version = min(int(version), 3)
	}
	c.template = l.templates[min(c.version, 3)]
	return c, nil
}

// read returns what containerd makes of its configuration, if the files were different.
func (c *configuration) read(ctx context.Context, supposed files) (table, error) {
	argv := []string{c.program, "--config", c.main, "config", "dump"}
	there := c.root.isFile(c.main)
	if content, ok := supposed[c.main]; ok {
		there = content != nil
	}
	if !there { // containerd 1.x does not dump what it would run with.
		argv = []string{c.program, "config", "default"}
	}
	text, err := c.root.run(ctx, supposed, argv...)
	if err != nil {
		return nil, fmt.Errorf("containerd cannot load its configuration: %w", err)
	}
	var dump table
	if err := toml.Unmarshal([]byte(text), &dump); err != nil {
		return nil, fmt.Errorf("cannot read what containerd prints of its configuration: %w", err)
	}
	delete(dump, "imports") // It has no effect beyond what it brought in.
	return dump, nil
}

// runtimes finds the handlers in what containerd prints.
func runtimes(dump table) table {
	for _, plugin := range []string{criVersion3, criVersion2} {
		if found := lookup(dump, "plugins", plugin, "containerd", "runtimes"); found != nil {
			return found
		}
	}
	return nil
}

// socket is the host's path at which containerd serves CRI.
func socket(dump table) (string, error) {
	for _, server := range []table{lookup(dump, "plugins", "io.containerd.server.v1.grpc"), lookup(dump, "grpc")} {
		if address, _ := server["address"].(string); address != "" {
			return address, nil
		}
	}
	return "", errors.New("cannot find containerd's socket in its configuration")
}

// wanted returns the tables of our handlers: that of the node's runc, run by the shim.
func (c *configuration) wanted() (table, error) {
	there := runtimes(c.dump)
	if there == nil {
		return nil, fmt.Errorf("cannot find CRI's runtimes in the configuration of containerd: is its CRI plugin disabled in %s?", c.main)
	}
	like := lookup(there, "runc")
	if kind, _ := like["runtime_type"].(string); kind != stockType {
		like = nil
	}
	wanted := table{}
	for _, h := range c.handlers {
		if there[h.name] != nil {
			return nil, fmt.Errorf("the node's containerd has a handler %s already, which this installer has not made; remove it from the configuration first", h.name)
		}
		t := settings(like)
		t["runtime_type"], t["runtime_path"] = stockType, h.program
		wanted[h.name] = t
	}
	return wanted, nil
}

// settings are those of a handler that are set, but for what is a matter of other shims, or of
// the sandboxer, which is podsandbox unless it is named.
func settings(handler table) table {
	t := withoutZeros(handler)
	for _, key := range []string{"runtime_engine", "runtime_root", "sandboxer", "disable_pause_image_pull"} {
		delete(t, key)
	}
	return t
}

// withoutZeros copies a table without the values that mean nothing.
func withoutZeros(t table) table {
	filtered := table{}
	for key, value := range t {
		if nested, ok := value.(table); ok {
			if nested = withoutZeros(nested); len(nested) > 0 {
				filtered[key] = nested
			}
			continue
		}
		if list, ok := value.([]any); ok && len(list) == 0 || value == nil || reflect.ValueOf(value).IsZero() {
			continue
		}
		filtered[key] = value
	}
	return filtered
}

// accepts says whether containerd reads the handlers from files that are as supposed, and all
// else as it would without them. Releases before 2.0 replace the whole section of a plugin by
// that of an imported file (mergeConfig in services/server/config/config.go).
func (c *configuration) accepts(ctx context.Context, supposed files, wanted table) error {
	dump, err := c.read(ctx, supposed)
	if err != nil {
		return err
	}
	there := runtimes(dump)
	for name, want := range wanted {
		got, _ := there[name].(table)
		if got == nil {
			return fmt.Errorf("containerd does not have the handler %s", name)
		}
		if !reflect.DeepEqual(settings(got), want) {
			return fmt.Errorf("containerd has another handler %s: %v, not %v", name, settings(got), want)
		}
		delete(there, name)
	}
	if !reflect.DeepEqual(dump, c.dump) {
		return errors.New("containerd would lose, or change, other settings")
	}
	return nil
}

// tables returns the handlers as TOML for a file of that version.
func tables(version int, wanted table) (string, error) {
	plugin := `"` + criVersion3 + `"`
	switch version {
	case 1:
		plugin = criVersion1
	case 2:
		plugin = `"` + criVersion2 + `"`
	}
	text := ""
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		t, err := writeTable("plugins."+plugin+".containerd.runtimes."+quoteKey(name), lookup(wanted, name))
		if err != nil {
			return "", err
		}
		text += t
	}
	return text, nil
}

// plan finds a way to add the handlers with which containerd, as it is on this host, has them
// and all that it had. It prefers a file of our own to a change of one that is not.
func (c *configuration) plan(ctx context.Context, wanted table) (candidate, error) {
	candidates, err := c.candidates(wanted)
	if err != nil {
		return candidate{}, err
	}
	refused := errors.New("cannot find a way to add the handlers to containerd's configuration")
	for _, way := range candidates {
		supposed := maps.Clone(c.own)
		maps.Copy(supposed, way.tried)
		err := c.accepts(ctx, supposed, wanted)
		if err == nil {
			return way, nil
		}
		refused = fmt.Errorf("%w\n- %s: %w", refused, way.what, err)
		if ctx.Err() != nil {
			return candidate{}, refused
		}
	}
	return candidate{}, refused
}

func (c *configuration) candidates(wanted table) ([]candidate, error) {
	body, err := tables(c.version, wanted)
	if err != nil {
		return nil, err
	}
	ownFile := []byte(fmt.Sprintf("# Written by %s, which will remove it.\nversion = %d\n%s", mark, c.version, body))
	if c.version == 1 {
		ownFile = []byte("# Written by " + mark + ", which will remove it.\n" + body)
	}
	// With containerd 1.x, the first handler in a file replaces the one that it has by itself.
	all := maps.Clone(runtimes(c.dump))
	maps.Copy(all, wanted)
	bodyOfAll, err := tables(c.version, all)
	if err != nil {
		return nil, err
	}
	if c.text == nil {
		text := []byte(fmt.Sprintf("version = %d\n", c.version))
		e, withDefaults := withBlock(text, body), withBlock(text, bodyOfAll)
		return []candidate{
			simple("make "+c.main, change{c.main, e.text, e.inserted}),
			simple("make "+c.main+", with the handlers that containerd has by default", change{c.main, withDefaults.text, withDefaults.inserted}),
		}, nil
	}
	var ways []candidate
	imports, err := importsOf(c.text)
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", c.main, err)
	}
	for _, pattern := range imports {
		pattern = absolute(c.main, pattern)
		if name, ok := named(pattern); ok && (c.root.isDir(path.Dir(name)) || c.root.isDir(path.Dir(path.Dir(name)))) {
			ways = append(ways, simple("put "+name+" where "+c.main+" imports it", change{name, ownFile, ""}))
		}
	}
	if c.template != "" {
		for _, body := range []string{body, bodyOfAll} {
			way, err := c.inTemplate(body)
			if err != nil {
				return nil, err
			}
			ways = append(ways, way)
		}
		return ways, nil
	}
	name := path.Join(path.Dir(c.main), "conf.d", dropIn)
	if e, err := withImport(c.text, name); err == nil {
		ways = append(ways, simple("put "+name+", and import it in "+c.main,
			change{name, ownFile, ""}, change{c.main, e.text, e.inserted}))
	}
	e, withDefaults := withBlock(c.text, body), withBlock(c.text, bodyOfAll)
	ways = append(ways, simple("add to "+c.main, change{c.main, e.text, e.inserted}),
		simple("add to "+c.main+", with the handlers that containerd has by default", change{c.main, withDefaults.text, withDefaults.inserted}))
	// With containerd 1.x a file that is imported may replace what the main one says.
	for _, imported := range c.imported(imports) {
		way, err := c.inImported(imported, wanted)
		if err != nil {
			return nil, err
		}
		ways = append(ways, way)
	}
	return ways, nil
}

func simple(what string, changes ...change) candidate {
	w := candidate{what: what, changes: changes, tried: files{}}
	for _, ch := range changes {
		w.tried[ch.path] = ch.data
	}
	return w
}

// inTemplate adds the handlers to the file from which k3s makes containerd's, or makes one:
// k3s has its own text by the name "base".
func (c *configuration) inTemplate(body string) (candidate, error) {
	template, err := c.root.read(c.template)
	if err != nil {
		return candidate{}, err
	}
	text := []byte("{{ template \"base\" . }}\n")
	if template != nil {
		text, _ = without(template.data, c.inserted)
	}
	e := withBlock(text, body)
	return candidate{
		what:    "add to " + c.template,
		changes: []change{{c.template, e.text, e.inserted}},
		tried:   files{c.main: withBlock(c.text, body).text},
	}, nil
}

func (c *configuration) inImported(name string, wanted table) (candidate, error) {
	now, err := c.root.read(name)
	if err != nil || now == nil || now.Link != "" {
		return candidate{what: "add to " + name, tried: files{}}, err
	}
	text, _ := without(now.data, c.inserted)
	version, err := versionOf(text)
	if err != nil {
		return candidate{}, fmt.Errorf("cannot read %s: %w", name, err)
	}
	body, err := tables(version, wanted)
	if err != nil {
		return candidate{}, err
	}
	e := withBlock(text, body)
	return simple("add to "+name, change{name, e.text, e.inserted}), nil
}

// imported lists the files that the main one imports, the last one first.
func (c *configuration) imported(imports []string) []string {
	var found []string
	for _, pattern := range imports {
		resolved, err := c.root.resolve(absolute(c.main, pattern))
		if err != nil {
			continue
		}
		matches, err := filepath.Glob(resolved)
		if err != nil {
			continue
		}
		for _, m := range matches {
			name := c.root.name(m)
			if own, supposed := c.own[name]; !supposed || own != nil {
				found = append(found, name)
			}
		}
	}
	slices.Reverse(found)
	return found
}

// absolute returns an import's path as containerd does (resolveImports).
func absolute(main, pattern string) string {
	if path.IsAbs(pattern) {
		return path.Clean(pattern)
	}
	return path.Join(path.Dir(main), pattern)
}

// named returns the path of a file of ours that a pattern of imports matches.
func named(pattern string) (string, bool) {
	dir, last := path.Split(pattern)
	if strings.ContainsAny(dir, `*?[\`) || strings.Count(last, "*") != 1 || strings.ContainsAny(last, `?[\`) {
		return "", false
	}
	name := strings.TrimSuffix(dropIn, ".toml")
	return dir + strings.Replace(last, "*", name, 1), true
}
