// Package stdio connects the streams of a process with what a client has asked for: fifos,
// files, logging programs and terminals.
package stdio
