package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"containerd-shim-pause-v2/process/carry"
	"containerd-shim-pause-v2/process/reap"
)

// Streams can pass from a program to the one that the process executes in its place: Suspend
// stops all copies, Save writes down what there is, and Restore and Continue go on with it.
// Nothing is lost in between: what is in the pipes stays there.

// SavedStreams are suspended streams, with the numbers of their open files.
type SavedStreams struct {
	In      *savedFlow  `json:"in,omitempty"`
	Outputs []savedFlow `json:"outputs,omitempty"`
	TTY     int         `json:"tty"`
	// Logger is the pid of the logging program; 0 if there is none.
	Logger int `json:"logger,omitempty"`
}

// savedFlow is an input or output. With TTY, the process's end is the terminal.
type savedFlow struct {
	Src   int    `json:"src"`
	Dst   int    `json:"dst"`
	Keep  int    `json:"keep"`
	Rest  []byte `json:"rest,omitempty"`
	Ended bool   `json:"ended,omitempty"`
	File  bool   `json:"file,omitempty"`
	TTY   bool   `json:"tty,omitempty"`
}

// isSuspended says whether a read or write has ended because of Suspend.
func isSuspended(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// Suspend stops all copies. It fails if that takes longer than ctx; they are still about to
// stop then. The caller has to call Continue.
func (s *Streams) Suspend(ctx context.Context) error {
	if s.suspended == nil {
		suspended := make(chan struct{})
		s.suspended = suspended
		continued := s.continued
		go func() {
			if continued != nil {
				<-continued
			}
			s.setDeadlines(time.Unix(1, 0))
			s.runs.Wait()
			close(suspended)
		}()
	}
	select {
	case <-s.suspended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("a file or file system does not take the output: %w", ctx.Err())
	}
}

// Continue starts the copies again that Suspend has stopped, as soon as all have. It does
// nothing without a Suspend. Like Suspend it must not be called by two goroutines at once.
func (s *Streams) Continue() {
	suspended := s.suspended
	if suspended == nil {
		return
	}
	s.suspended = nil
	goOn := func() {
		s.setDeadlines(time.Time{})
		s.run()
	}
	select {
	case <-suspended:
		goOn()
	default:
		continued := make(chan struct{})
		s.continued = continued
		go func() {
			defer close(continued)
			<-suspended
			goOn()
		}()
	}
}

// setDeadlines sets until when files may be waited for. Files that are never waited for, such
// as those on disk, have no deadline.
func (s *Streams) setDeadlines(at time.Time) {
	flows := make([]*flow, 0, len(s.outputs)+1)
	for _, o := range s.outputs {
		flows = append(flows, &o.flow)
	}
	if s.in != nil {
		flows = append(flows, &s.in.flow)
	}
	for _, f := range flows {
		_ = f.src.SetReadDeadline(at)
		_ = f.dst.SetWriteDeadline(at)
	}
}

// Save returns the suspended streams, and adds their files to those that are taken along.
func (s *Streams) Save(files *carry.Files) *SavedStreams {
	saved := &SavedStreams{TTY: files.Add(s.tty)}
	save := func(f *flow, keep *os.File, ofProcess *os.File) savedFlow {
		is := savedFlow{Src: carry.None, Dst: carry.None, Keep: files.Add(keep), Rest: f.rest, Ended: f.ended, File: f.file}
		is.TTY = s.tty != nil && ofProcess == s.tty
		if !is.TTY || f.src != s.tty {
			is.Src = files.Add(f.src)
		}
		if !is.TTY || f.dst != s.tty {
			is.Dst = files.Add(f.dst)
		}
		return is
	}
	if s.in != nil {
		in := save(&s.in.flow, s.in.keep, s.in.dst)
		saved.In = &in
	}
	for _, o := range s.outputs {
		saved.Outputs = append(saved.Outputs, save(&o.flow, o.keep, o.src))
	}
	if s.logger != nil {
		select {
		case <-s.logger.ended:
		default:
			saved.Logger = s.logger.child.Pid
		}
	}
	return saved
}

// Restore returns streams that were saved by the program that this one has replaced, and
// are still suspended. sio is where they lead.
func Restore(saved *SavedStreams, sio Config, reaper *reap.Reaper) *Streams {
	s := &Streams{Patience: settleTimeout, tty: carry.Take(saved.TTY, "console"), suspended: make(chan struct{})}
	close(s.suspended)
	if in := saved.In; in != nil {
		s.in = &input{
			flow: flow{src: carry.Take(in.Src, sio.Stdin), dst: carry.Take(in.Dst, "standard input"), rest: in.Rest, ended: in.Ended, file: in.File},
			keep: carry.Take(in.Keep, sio.Stdin),
		}
		if in.TTY {
			s.in.dst = s.tty
		}
	}
	for _, out := range saved.Outputs {
		o := &output{
			flow: flow{src: carry.Take(out.Src, "output"), dst: carry.Take(out.Dst, "output"), rest: out.Rest, ended: out.Ended},
			keep: carry.Take(out.Keep, "output"),
		}
		if out.TTY {
			o.src = s.tty
		}
		s.outputs = append(s.outputs, o)
		if !o.ended {
			s.copies.Add(1)
		}
	}
	if saved.Logger != 0 {
		s.logger = &logger{child: reaper.Claim(saved.Logger), ended: make(chan struct{})}
		go s.logger.await()
	}
	return s
}

// Children returns the pids of the processes that belong to saved streams.
func (s *SavedStreams) Children() []int {
	if s == nil || s.Logger == 0 {
		return nil
	}
	return []int{s.Logger}
}
