package cgroups

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func (t *v1Tree) setNetwork(r *specs.LinuxResources) error {
	if r.Network == nil {
		return nil
	}
	if id := r.Network.ClassID; id != nil && *id != 0 {
		if err := set(t.dir("net_cls"), "network class id", "net_cls.classid", strconv.FormatUint(uint64(*id), 10)); err != nil {
			return err
		}
	}
	for _, p := range r.Network.Priorities {
		if err := set(t.dir("net_prio"), "network priority", "net_prio.ifpriomap", fmt.Sprintf("%s %d", p.Name, p.Priority)); err != nil {
			return err
		}
	}
	return nil
}

func (t *v2Tree) setNetwork(r *specs.LinuxResources) error {
	if r.Network == nil {
		return nil
	}
	if id := r.Network.ClassID; id != nil && *id != 0 {
		return onV2("network class id", *id)
	}
	for _, p := range r.Network.Priorities {
		return onV2("network priority of "+p.Name, p.Priority)
	}
	return nil
}
