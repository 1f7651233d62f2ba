package integration

import (
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The stock shim forgets what clients ask of the streams of an exec before they start it:
// its streams are yet to come.

func TestCloseIOBeforeStart(t *testing.T) {
	withPause(t, func(t *testing.T) {
		c := startContainer(t, "pause", sh("sleep 1000"))
		for name, input := range map[string]string{"empty": "", "input": "in\n"} {
			p, err := c.addExec(name, strings.NewReader(input), nil, "sh", "-c", "cat; echo end")
			must(t, err)
			must(t, p.CloseIO(c.ctx, containerd.WithStdinCloser))
			p.start()
			p.mustFinish(0)
			expectEqual(t, "output of "+name, p.out.String(), input+"end\n")
		}
	})
}

func TestResizeBeforeStart(t *testing.T) {
	withPause(t, func(t *testing.T) {
		c := startContainer(t, "pause", sh("sleep 1000"))
		p, err := c.addExec("e", nil, func(s *specs.Process) { s.Terminal = true }, "stty", "size")
		must(t, err)
		must(t, p.Resize(c.ctx, 80, 24))
		must(t, p.Resize(c.ctx, 120, 30))
		p.start()
		p.mustFinish(0)
		expectEqual(t, "size", p.out.String(), "30 120\r\n")
	})
}

// start starts an exec that was added.
func (p *process) start() {
	p.c.t.Helper()
	var err error
	p.exited, err = p.Wait(p.c.ctx)
	must(p.c.t, err)
	must(p.c.t, p.Start(p.c.ctx))
}
