//go:build !amd64 && !arm64

package program

import (
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"
)

func podInitFile() ([]byte, error) {
	return nil, fmt.Errorf("this build, for %s, has no init for a PID namespace that containers share: %w", runtime.GOARCH, errdefs.ErrNotImplemented)
}

func holderFile() ([]byte, error) {
	return nil, fmt.Errorf("this build, for %s, cannot make namespaces in a user namespace: %w", runtime.GOARCH, errdefs.ErrNotImplemented)
}
