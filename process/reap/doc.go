// Package reap waits for the shim's children. A child's exit status waits in the kernel, in
// the zombie, until its owner asks for it: so no exit is lost, whenever it comes.
package reap
