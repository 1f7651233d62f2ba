// Package stdio connects the standard streams of a process to what a client has asked for:
// fifos, files, logging programs and terminals.
package stdio
