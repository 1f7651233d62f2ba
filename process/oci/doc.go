// Package oci calls an OCI runtime, such as runc or crun, and reads and changes the spec in a
// bundle. Where a few system calls do the same as a runc command, it makes these instead.
package oci
