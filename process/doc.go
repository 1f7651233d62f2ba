// Package process runs what containerd asks a shim to run: containers and execs,
// through an OCI runtime, and the pod sandbox. A sandbox is not a process, but the
// namespaces that a thread of the shim holds.
//
// A [Supervisor] creates both kinds of [Task] and keeps the registry of them. Each
// init, exec and sandbox is a [Process] with the same life cycle (see [State]). The
// package knows nothing about RPCs; it reports starts, exits and OOM kills to an
// [Events].
//
// The subpackages do the work and do not import this one: reap waits for children,
// stdio copies their input and output, oci calls the OCI runtime and reads the spec,
// and pod holds a pod's namespaces and files.
package process
