// Package node makes a Kubernetes node one that has the shim, and undoes that: the program and
// its second name, two handlers in the configuration of the node's containerd, and a restart of
// containerd if that is needed.
//
// It may be killed at any point. What it changes is recorded on the host before it is changed
// (record.go), each file is replaced in one step, and the next run goes on from there. Nothing
// that it has not written is changed or removed.
//
// How containerd is configured differs by release and by distribution. This package does not
// go by version numbers: it lets the host's own containerd read each way to add the handlers
// before any file is changed, and takes the first with which containerd has the handlers and
// everything that it had before (config.go).
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"containerd-shim-pause-v2/shim/install"
)

// Options say where things are on the host. All paths are the host's, but for Root and Program.
type Options struct {
	Root    string // where the host's files are, "/" on the host itself
	Program string // the shim to install
	Dir     string // for the program
	State   string // for the record of what was done

	// Config is containerd's configuration file, and Containerd its program; "" finds them.
	Config, Containerd string

	// Restart is a command of the host that restarts containerd. Without it systemd does,
	// with Unit, or else with the unit of the distribution.
	Restart []string
	Unit    string

	// Timeout is how long containerd's CRI may take to be ready after a restart.
	Timeout time.Duration

	Out io.Writer `json:"-"` // for lines about what is done

	// Reached, if not nil, is called after each step that lasts, with its name.
	Reached func(step string) `json:"-"`
}

// node is one run of the installer.
type node struct {
	*journal
	o        *Options
	root     root
	layout   layout
	restart  restarter
	handlers []handler
}

// open reads the record of what was done, and locks the host against another installer until
// unlock is called.
func open(o *Options) (n *node, unlock func(), err error) {
	n = &node{o: o, root: root(path.Clean(o.Root))}
	n.handlers = []handler{
		{"pause", path.Join(o.Dir, install.Shim.Program)},
		{"pause-shared", path.Join(o.Dir, install.Shim.Shared)},
	}
	reached := o.Reached
	if reached == nil {
		reached = func(string) {}
	}
	if unlock, err = n.root.lock(path.Dir(o.State)); err != nil {
		return nil, nil, err
	}
	if n.journal, err = openJournal(n.root, o.State, reached); err != nil {
		unlock()
		return nil, nil, err
	}
	return n, unlock, nil
}

// findContainerd finds the host's containerd, and how it is restarted.
func (n *node) findContainerd(ctx context.Context) (err error) {
	if n.layout, err = findLayout(n.root, n.o); err != nil {
		return err
	}
	n.restart, err = restartCommand(ctx, n.root, n.o, n.layout)
	return err
}

func (n *node) say(format string, args ...any) { fmt.Fprintf(n.o.Out, format+"\n", args...) }

// Install makes the host one that has the shim and its handlers. If containerd does not work with
// the new configuration, Install restores the old one and restarts containerd again.
func Install(ctx context.Context, o *Options) error {
	n, unlock, err := open(o)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.findContainerd(ctx); err != nil {
		return err
	}
	n.say("containerd is %s, configured by %s (%s)", n.layout.programs[0], n.layout.config, n.layout.name)
	c, err := readConfiguration(ctx, n.root, n.layout, n.journal, n.handlers)
	if err != nil {
		return err
	}
	wanted, err := c.wanted()
	if err != nil {
		return err
	}
	// What is there may do, even if it would be done differently now.
	var way candidate
	keep, err := n.isConfigured()
	if err != nil {
		return err
	}
	if keep = keep && c.accepts(ctx, nil, wanted) == nil; !keep {
		if way, err = c.plan(ctx, wanted); err != nil {
			return err
		}
	}
	// The handlers name the programs, so these come first.
	if err := n.installPrograms(); err != nil {
		return err
	}
	if keep {
		n.say("the handlers are configured already")
	} else if err := n.configure(way); err != nil {
		return err
	}
	if !n.Restart {
		n.say("containerd need not be restarted")
		return nil
	}
	failed := n.restartContainerd(ctx, c.dump, true)
	if failed == nil {
		return nil
	}
	n.say("containerd does not work with the handlers, so they are removed: %v", failed)
	if err := n.unconfigure(); err != nil {
		return errors.Join(failed, err)
	}
	// The deadline of the first restart may have been that of the caller.
	return errors.Join(failed, n.restartContainerd(context.WithoutCancel(ctx), c.dump, false))
}

// hasConfiguration says whether a file of containerd's configuration was written.
func (n *node) hasConfiguration() bool {
	for _, f := range n.Files {
		if !f.Program {
			return true
		}
	}
	return false
}

// isConfigured says whether all files of the configuration that were written are still there,
// with what was written. What k3s made of a template may be there longer than the template.
func (n *node) isConfigured() (bool, error) {
	for _, f := range n.Files {
		if f.Program {
			continue
		}
		now, err := n.root.read(f.Path)
		if err != nil {
			return false, err
		}
		if now == nil {
			return false, nil
		}
		text, _ := without(now.data, f.Inserted)
		if !slices.Contains(f.Wrote, now.Digest) && len(text) == len(now.data) {
			return false, nil
		}
	}
	return n.hasConfiguration(), nil
}

func (n *node) installPrograms() error {
	data, err := os.ReadFile(n.o.Program)
	if err != nil {
		return fmt.Errorf("cannot read the program to install: %w", err)
	}
	for _, p := range []struct {
		path  string
		state *state
	}{
		{path.Join(n.o.Dir, install.Shim.Program), regular(data, install.Mode)},
		{path.Join(n.o.Dir, install.Shim.Shared), link(install.Shim.Program)},
	} {
		changed, err := n.put(p.path, p.state, "", true)
		if err != nil {
			return err
		}
		n.say("%s: %s", p.path, map[bool]string{true: "written", false: "is there already"}[changed])
	}
	return nil
}

// configure writes the files of a plan, and removes those of an earlier one.
func (n *node) configure(way candidate) error {
	n.say("the handlers are added: %s", way.what)
	n.Restart = true
	if err := n.save(); err != nil {
		return err
	}
	planned := make(map[string]bool)
	for _, ch := range way.changes {
		planned[ch.path] = true
	}
	if err := n.undoFiles(func(f *file) bool { return !f.Program && !planned[f.Path] }); err != nil {
		return err
	}
	for _, ch := range way.changes {
		wanted := regular(ch.data, 0o644)
		if now, err := n.root.read(ch.path); err != nil {
			return err
		} else if now != nil {
			wanted.Mode, wanted.UID, wanted.GID = now.Mode, now.UID, now.GID
		}
		changed, err := n.put(ch.path, wanted, ch.inserted, false)
		if err != nil {
			return err
		}
		n.say("%s: %s", ch.path, map[bool]string{true: "written", false: "is there already"}[changed])
	}
	return nil
}

// unconfigure restores the files of containerd's configuration.
func (n *node) unconfigure() error {
	if !n.hasConfiguration() {
		return nil
	}
	n.Restart = true
	if err := n.save(); err != nil {
		return err
	}
	return n.undoFiles(func(f *file) bool { return !f.Program })
}

// undoFiles undoes files, the last one first.
func (n *node) undoFiles(which func(*file) bool) error {
	list := append([]*file{}, n.Files...)
	for i := len(list) - 1; i >= 0; i-- {
		if !which(list[i]) {
			continue
		}
		told, err := n.undo(list[i])
		if err != nil {
			return err
		}
		n.say("%s: %s", list[i].Path, told)
	}
	return nil
}

// restartContainerd restarts containerd and waits until its CRI is ready, with the handlers or
// without them.
func (n *node) restartContainerd(ctx context.Context, dump table, with bool) error {
	address, err := socket(dump)
	if err != nil {
		return err
	}
	n.say("containerd is restarted by %s", n.restart)
	ctx, cancel := context.WithTimeout(ctx, n.o.Timeout)
	defer cancel()
	if err := n.restart.restart(ctx); err != nil {
		return err
	}
	n.reached("restart")
	var names []string
	for _, h := range n.handlers {
		names = append(names, h.name)
	}
	if err := n.root.awaitCRI(ctx, address, names, with); err != nil {
		return err
	}
	n.Restart, n.Made = false, nil
	if err := n.save(); err != nil {
		return err
	}
	n.say("containerd works, %s", map[bool]string{true: "with the handlers " + strings.Join(names, ", "), false: "without the handlers"}[with])
	return nil
}

// ErrInUse is the error of [Remove] while pods run in the shim that it should remove.
var ErrInUse = errors.New("pods run in the shim")

// Remove undoes Install. It does nothing while there are shims that run the program:
// their pods could not be cleaned up without it.
func Remove(ctx context.Context, o *Options) error {
	n, unlock, err := open(o)
	if err != nil {
		return err
	}
	defer unlock()
	if n.isEmpty() {
		n.say("nothing is installed")
		return n.close()
	}
	if err := n.findContainerd(ctx); err != nil {
		return err
	}
	if err := n.checkUnused(); err != nil {
		return err
	}
	c, err := readConfiguration(ctx, n.root, n.layout, n.journal, n.handlers)
	if err != nil {
		return err
	}
	if err := n.unconfigure(); err != nil {
		return err
	}
	if n.Restart {
		if err := n.restartContainerd(ctx, c.dump, false); err != nil {
			return err
		}
	}
	// A pod may have come before the restart.
	if err := n.checkUnused(); err != nil {
		return err
	}
	if err := n.undoFiles(func(*file) bool { return true }); err != nil {
		return err
	}
	return n.close()
}

// checkUnused fails if a program that would be removed runs.
func (n *node) checkUnused() error {
	var programs []string
	for _, f := range n.Files {
		if f.Program {
			programs = append(programs, f.Path)
		}
	}
	if len(programs) == 0 {
		return nil
	}
	shims, err := n.root.running(programs...)
	if err != nil {
		return err
	}
	if len(shims) > 0 {
		return fmt.Errorf("%w: nothing is removed; delete the pods, or drain the node. Their shims: %s", ErrInUse, strings.Join(shims, ", "))
	}
	return nil
}

// Check fails if the host is not as Install leaves it.
func Check(ctx context.Context, o *Options) error {
	n, unlock, err := open(o)
	if err != nil {
		return err
	}
	defer unlock()
	if err := n.findContainerd(ctx); err != nil {
		return err
	}
	if n.Restart {
		return errors.New("containerd has not been restarted with the configuration that is there; install again")
	}
	data, err := os.ReadFile(o.Program)
	if err != nil {
		return fmt.Errorf("cannot read the program: %w", err)
	}
	for p, want := range map[string]*state{
		path.Join(o.Dir, install.Shim.Program): regular(data, install.Mode),
		path.Join(o.Dir, install.Shim.Shared):  link(install.Shim.Program),
	} {
		if now, err := n.root.read(p); err != nil {
			return err
		} else if now == nil || now.Digest != want.Digest {
			return fmt.Errorf("%s is not the program of this version; install again", p)
		}
	}
	c, err := readConfiguration(ctx, n.root, n.layout, n.journal, n.handlers)
	if err != nil {
		return err
	}
	wanted, err := c.wanted()
	if err != nil {
		return err
	}
	return c.accepts(ctx, nil, wanted)
}
