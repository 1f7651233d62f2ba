// Package reap waits for the shim's children. The kernel keeps a child's exit status, in the
// zombie, until the child's owner asks for it. So no exit is lost, however early it comes.
package reap
