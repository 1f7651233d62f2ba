//go:build amd64 || arm64

package entry

// starterFD is in entry_amd64.s and entry_arm64.s, beside the entry point.
func starterFD() int
