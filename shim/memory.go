package shim

import (
	"os"
	"runtime/debug"
	"strings"
)

const (
	// gcPercent is how much garbage, in percent of what is in use, makes the
	// collector run; Go's own value is 100. It also scales the 4 MiB below
	// which the collector never runs (https://go.dev/doc/gc-guide), and a shim
	// has less than that in use all its life: with 40 garbage stops at 1.6 MiB.
	gcPercent = 40

	godebugEnv = "GODEBUG"

	// noHugePages keeps the Go heap from huge pages (runtime, "Environment
	// Variables"): with transparent_hugepage=always the first byte in use
	// would cost 2 MiB. The runtime reads it from the environment before main
	// runs; the process cannot set it for itself.
	//
	// Not PR_SET_THP_DISABLE: fork and exec inherit that (prctl(2)), so it
	// would take huge pages from every container that the shim starts.
	noHugePages = "disablethp=1"
)

// withoutHugePages returns the environment entry that switches huge pages off
// in a Go program, besides what the variable says already.
func withoutHugePages() string {
	if v := os.Getenv(godebugEnv); v != "" {
		return godebugEnv + "=" + v + "," + noHugePages
	}
	return godebugEnv + "=" + noHugePages
}

// saveMemory tunes the Go runtime of a server for a small process that mostly
// waits, and takes back what withoutHugePages put into the environment: it has
// been read, and is not meant for the OCI runtime.
func saveMemory() {
	debug.SetGCPercent(gcPercent)
	switch v, _ := strings.CutSuffix(os.Getenv(godebugEnv), noHugePages); v {
	case "":
		os.Unsetenv(godebugEnv)
	default:
		os.Setenv(godebugEnv, strings.TrimSuffix(v, ","))
	}
}
