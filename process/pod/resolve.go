package pod

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// namespace is an entry of a sandbox's list of namespaces, with its path opened.
type namespace struct {
	kind specs.LinuxNamespaceType
	file *NSFile // nil for a new namespace
	host bool    // whether it is the host's, compared by identity and not by path
}

// enter puts the calling thread into the namespace. flag is that of the namespace's type, see
// NamespaceTypes.
func (ns *namespace) enter(flag int) error {
	if ns.file == nil {
		return os.NewSyscallError("unshare", unix.Unshare(flag))
	}
	// With this flag, setns(2) refuses namespaces of another type.
	if err := unix.Setns(int(ns.file.Fd()), flag); err != nil {
		return &os.PathError{Op: "setns", Path: ns.file.Name(), Err: err}
	}
	return nil
}

// Namespaces is the list of namespaces in a sandbox's spec. Each path in it is opened only
// once, so that the sandbox enters what was checked, even if the path has changed since.
type Namespaces []namespace

// Resolve opens the paths in the list of a sandbox's spec. It fails with
// [errdefs.ErrInvalidArgument] for a path
//
//   - to anything but a namespace of the entry's type;
//   - to the host's user namespace: a client that asks for a user namespace must not end
//     up without one;
//   - of a PID namespace: a sandbox can hold only the one that its pod init is started in.
func Resolve(list []specs.LinuxNamespace) (set Namespaces, err error) {
	defer func() {
		if err != nil {
			set.Close()
		}
	}()
	for _, entry := range list {
		if entry.Path == "" {
			set = append(set, namespace{kind: entry.Type})
			continue
		}
		f, err := Open(entry.Path)
		if err != nil {
			return set, fmt.Errorf("cannot open the sandbox's %s namespace: %w", entry.Type, err)
		}
		set = append(set, namespace{kind: entry.Type, file: f})
		if err := set[len(set)-1].check(); err != nil {
			return set, err
		}
	}
	return set, nil
}

// check refuses the open file if Resolve does not allow it, and sets host.
func (ns *namespace) check() error {
	refuse := func(what string) error {
		return fmt.Errorf("the sandbox's %s namespace %s %s: %w", ns.kind, ns.file.Name(), what, errdefs.ErrInvalidArgument)
	}
	host, err := HostNamespace(ns.kind)
	if err != nil {
		return err
	}
	ns.host = ns.file.ID == host
	switch {
	case ns.file.flag != cloneFlags[ns.kind]:
		return refuse("is of another type")
	case ns.kind == specs.PIDNamespace:
		return refuse("cannot be given by a path")
	case ns.kind == specs.UserNamespace && ns.host:
		return refuse("is the host's")
	}
	return nil
}

// Close closes the files of all namespaces in the set.
func (set Namespaces) Close() {
	for _, ns := range set {
		if ns.file != nil {
			ns.file.Close()
		}
	}
}

// find returns the entry of a type. It returns nil if there is none: the sandbox then uses
// the host's namespace.
func (set Namespaces) find(kind specs.LinuxNamespaceType) *namespace {
	for i := range set {
		if set[i].kind == kind {
			return &set[i]
		}
	}
	return nil
}

// newFlags returns the flags for unshare(2) of the new namespaces that a sandbox's thread
// enters.
func (set Namespaces) newFlags() (flags uint64) {
	for _, t := range NamespaceTypes {
		if ns := set.find(t.Kind); ns != nil && ns.file == nil {
			flags |= uint64(t.flag)
		}
	}
	return flags
}

// Own holds the types for which a sandbox does not use the host's namespace.
type Own map[specs.LinuxNamespaceType]bool

// Own returns the types for which the set has a namespace other than the host's. A path in
// a spec may lead to the host's.
func (set Namespaces) Own() Own {
	own := make(Own)
	for _, ns := range set {
		own[ns.kind] = !ns.host
	}
	return own
}
