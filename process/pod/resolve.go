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
	host bool    // it is the host's, however the path to it is spelled
}

// enter puts the calling thread into the namespace, which has the given flag of
// unshare(2) and setns(2).
func (ns *namespace) enter(flag int) error {
	if ns.file == nil {
		return os.NewSyscallError("unshare", unix.Unshare(flag))
	}
	// With the flag given, setns(2) refuses a file of any other type.
	if err := unix.Setns(int(ns.file.Fd()), flag); err != nil {
		return &os.PathError{Op: "setns", Path: ns.file.Name(), Err: err}
	}
	return nil
}

// Namespaces is the list of namespaces of a sandbox's spec. Each path in it has
// been opened once: what was checked is what is entered, wherever the path leads by
// then.
type Namespaces []namespace

// Resolve opens the paths in the list of a sandbox's spec. It refuses those
// that lead to no namespace of the type that they are for; to the host's user
// namespace, for who asks for one is not to be without it unawares; and all for PID
// namespaces: a sandbox can hold none but the one that its init comes up in.
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
			return set, fmt.Errorf("cannot find the %s namespace: %w", entry.Type, err)
		}
		set = append(set, namespace{kind: entry.Type, file: f})
		if err := set[len(set)-1].check(); err != nil {
			return set, err
		}
	}
	return set, nil
}

// check checks what the path has led to, and says whether that is the host's.
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
		return refuse("is not one")
	case ns.kind == specs.PIDNamespace:
		return refuse("cannot be given by a path")
	case ns.kind == specs.UserNamespace && ns.host:
		return refuse("is the host's")
	}
	return nil
}

// Close closes the files of the set.
func (set Namespaces) Close() {
	for _, ns := range set {
		if ns.file != nil {
			ns.file.Close()
		}
	}
}

// find returns the entry of a type, nil if there is none: then it is the host's.
func (set Namespaces) find(kind specs.LinuxNamespaceType) *namespace {
	for i := range set {
		if set[i].kind == kind {
			return &set[i]
		}
	}
	return nil
}

// newFlags returns the flags of unshare(2) for the new namespaces of those types that
// a sandbox's thread takes.
func (set Namespaces) newFlags() (flags uint64) {
	for _, t := range NamespaceTypes {
		if ns := set.find(t.Kind); ns != nil && ns.file == nil {
			flags |= uint64(t.flag)
		}
	}
	return flags
}

// Own are the types of which a sandbox has a namespace of its own. The
// path in a spec may lead to the host's, which is not.
type Own map[specs.LinuxNamespaceType]bool

// Own returns the types of which the set has a namespace that is not the host's.
func (set Namespaces) Own() Own {
	own := make(Own)
	for _, ns := range set {
		own[ns.kind] = !ns.host
	}
	return own
}
