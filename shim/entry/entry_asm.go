//go:build amd64 || arm64

package entry

// starterFD is implemented in entry_amd64.s and entry_arm64.s.
func starterFD() int
