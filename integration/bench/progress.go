package main

import (
	"fmt"
	"os"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

// progress shows what is measured and how far that is: a bar for each part on a
// terminal, elsewhere a line.
type progress struct {
	out  *os.File
	bars *mpb.Progress // nil if out is no terminal
}

func newProgress(out *os.File) *progress {
	p := &progress{out: out}
	if _, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS); err == nil {
		p.bars = mpb.New(mpb.WithOutput(out))
	}
	return p
}

func (p *progress) say(what string) {
	if p.bars == nil {
		fmt.Fprintln(p.out, "bench:", what)
	}
}

// start begins a part of so many steps. done is called after each.
func (p *progress) start(what string, steps int) (done func()) {
	if p.bars == nil {
		p.say(what)
		return func() {}
	}
	const width = 60
	bar := p.bars.AddBar(int64(steps),
		mpb.PrependDecorators(decor.Name(what, decor.WC{W: width, C: decor.DindentRight})),
		mpb.AppendDecorators(decor.CountersNoUnit("%d / %d "), decor.Elapsed(decor.ET_STYLE_MMSS)))
	return bar.Increment
}
