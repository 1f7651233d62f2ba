// Package process runs the things that a shim is asked to run: containers and
// the processes executed in them, through an OCI runtime, and the pod sandbox,
// which is no process at all but the namespaces that a thread of the shim holds.
//
// A [Supervisor] makes a [Task] of either kind, and knows all there are; every
// running thing in a task is a [Process] with one life cycle (see [State]). The
// package knows nothing of RPCs: what happens by itself is told to an [Events].
//
// What this is made of is in rooms of their own below: reap waits for children,
// stdio moves their input and output, oci calls the OCI runtime and reads the
// spec, and pod holds a pod's namespaces and files. None of them knows of this
// package.
package process
