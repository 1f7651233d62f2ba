//go:build !amd64 && !arm64

package entry

// starterFD returns -1: on this architecture there is no entry point that forks.
func starterFD() int { return -1 }
