package integration

import (
	"context"
	"io"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
)

// A client that stops to read when it hears of the exit loses what is on its way then. With
// the stock shim that is what fits into a pipe, the shim's buffer and a FIFO, and here it is
// no more, though pipes are larger while a client is slow.
func TestOutputThatIsOnItsWayAtTheExit(t *testing.T) {
	const written, onItsWay = 1_500_000, (64 + 32 + 64) << 10
	eachShim(t, func(t *testing.T, shim string) {
		c := newContainer(t, shim, sh("head -c 1500000 /dev/zero"))
		var streams *cio.DirectIO
		c.run(func(id string) (cio.IO, error) {
			fifos, err := cio.NewFIFOSetInDir(theNode.FIFODir(), id, false)
			if err != nil {
				return nil, err
			}
			fifos.Stdin = ""
			streams, err = cio.NewDirectIO(context.WithoutCancel(c.ctx), fifos)
			return streams, err
		})
		read := 0
		for buf := make([]byte, 4<<10); ; {
			select {
			case status := <-c.exited:
				must(t, status.Error())
				if lost := written - read; lost > onItsWay {
					t.Errorf("%d bytes would be lost, more than %d", lost, onItsWay)
				}
				_, err := io.Copy(io.Discard, streams.Stdout) // the stock shim waits for it
				must(t, err)
				must(t, streams.Close())
				return
			default:
			}
			n, err := streams.Stdout.Read(buf)
			read += n
			if err == io.EOF {
				continue // the exit has not been told yet
			}
			must(t, err)
			time.Sleep(200 * time.Microsecond)
		}
	})
}
