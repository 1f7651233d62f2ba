// Package oci calls an OCI runtime, such as runc or crun, and reads and changes the spec in a
// bundle. Where system calls do the same as a run of runc would, it does without that.
package oci
