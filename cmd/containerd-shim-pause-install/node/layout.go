package node

import (
	"context"
	"errors"
	"fmt"
	"path"
)

// layout is where a distribution of Kubernetes has its containerd. Sources: kubeadm's and
// containerd's documents (docs/getting-started.md), k3s's pkg/agent/templates and
// pkg/agent/config, and RKE2, which is k3s with other names.
type layout struct {
	name string

	// config is what containerd reads.
	config string

	// templates make config at each start of k3s, if they are there; by the version of the
	// configuration.
	templates map[int]string

	programs []string // containerd
	units    []string // systemd units that run it
}

var layouts = []layout{
	rancher("k3s", []string{"/var/lib/rancher/k3s/data/current/bin/containerd"}, "k3s.service", "k3s-agent.service"),
	rancher("rke2", []string{"/var/lib/rancher/rke2/bin/containerd", "/var/lib/rancher/rke2/data/current/bin/containerd"}, "rke2-server.service", "rke2-agent.service"),
	{
		name:   "containerd",
		config: "/etc/containerd/config.toml",
		programs: []string{
			"/usr/local/bin/containerd", "/usr/bin/containerd", "/usr/local/sbin/containerd", "/usr/sbin/containerd", "/opt/bin/containerd",
		},
		units: []string{"containerd.service"},
	},
}

func rancher(name string, programs []string, units ...string) layout {
	dir := path.Join("/var/lib/rancher", name, "agent/etc/containerd")
	return layout{
		name:      name,
		config:    path.Join(dir, "config.toml"),
		templates: map[int]string{2: path.Join(dir, "config.toml.tmpl"), 3: path.Join(dir, "config-v3.toml.tmpl")},
		programs:  programs,
		units:     units,
	}
}

// findLayout finds out where the host has its containerd. What the options name is not looked for.
func findLayout(r root, o *Options) (layout, error) {
	found := layouts[len(layouts)-1]
	for _, l := range layouts {
		if o.Config == l.config || o.Config == "" && r.isFile(l.config) {
			found = l
			break
		}
	}
	if o.Config != "" && o.Config != found.config {
		found.config, found.templates = o.Config, nil
	}
	if o.Unit != "" {
		found.units = []string{o.Unit}
	}
	if o.Containerd != "" {
		found.programs = []string{o.Containerd}
	}
	for _, p := range found.programs {
		if r.isFile(p) {
			found.programs = []string{p}
			return found, nil
		}
	}
	return found, fmt.Errorf("cannot find containerd in any of %q below %s; name it with -containerd", found.programs, r)
}

// restartCommand returns how to restart containerd: as the options say, or by systemd.
func restartCommand(ctx context.Context, r root, o *Options, l layout) (restarter, error) {
	if len(o.Restart) > 0 {
		return command{r, o.Restart}, nil
	}
	if !r.isDir("/run/systemd/system") { // sd_booted(3)
		return nil, errors.New("cannot find out how containerd is restarted, as systemd does not run the host; give a command with -restart")
	}
	systemctl := ""
	for _, p := range []string{"/usr/bin/systemctl", "/bin/systemctl"} {
		if r.isFile(p) {
			systemctl = p
			break
		}
	}
	if systemctl == "" {
		return nil, errors.New("cannot find systemctl on the host; give a command with -restart")
	}
	var failed error
	for _, unit := range l.units {
		_, err := r.run(ctx, nil, systemctl, "is-active", "--quiet", unit)
		if err == nil {
			return systemd{r, systemctl, unit}, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, fmt.Errorf("cannot find the systemd unit that runs containerd, none of %q is active; name it with -unit: %w", l.units, failed)
}
