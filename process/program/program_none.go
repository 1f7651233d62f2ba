//go:build !amd64 && !arm64

package program

import (
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"
)

func podInitFile() ([]byte, error) {
	return nil, fmt.Errorf("cannot make a pod init on %s: %w", runtime.GOARCH, errdefs.ErrNotImplemented)
}

func holderFile() ([]byte, error) {
	return nil, fmt.Errorf("cannot make namespaces in a user namespace on %s: %w", runtime.GOARCH, errdefs.ErrNotImplemented)
}
