package shim

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// A seat is the room that a shim keeps for a pod, or for a container without one, from
// `start` until nothing is left of it. A shim that has no seat taken may end: between
// `start` and the request that creates the pod, the seat is all that the shim knows of it.
//
// The shim of a single pod has one seat, which `start` takes. A shared shim has many;
// further calls of `start` ask for one through an RPC.

const (
	// seatService is the ttrpc service through which other processes of this program
	// speak to a shared shim. Its messages are those of containerd's Sandbox API.
	seatService  = "containerd.shim.pause.v1.Seats"
	takeMethod   = "Take"   // CreateSandboxRequest, of which id and bundle count
	giveUpMethod = "GiveUp" // likewise

	// spareFiles is how many more files a shim must be able to open to take in one
	// more pod: a sandbox needs about 10, each container with pipes about 8, and an
	// exec as many for as long as it runs.
	spareFiles = 128
)

// seats are the seats of one shim process.
type seats struct {
	limit   int
	address string // of the shim's socket
	// log is where the log of a shared shim goes: the fifo in one of its bundles. Guarded
	// by mu; nil if the shim keeps its log.
	log *sharedLog

	// giveUp removes a pod or container that containerd has given up, and releases its
	// seat. It is set before the first RPC.
	giveUp func(ctx context.Context, id, bundle string) error
	// idle is [Instance.Idle]. It is set likewise; nil in a shim that is not shared.
	idle func()

	settle time.Duration // see settleInterval
	// begin is [Instance.Begin].
	begin func() (end func())

	mu      sync.Mutex
	taken   map[string]seat // guarded by mu: by the id of the pod or container
	leaving map[string]int  // guarded by mu: by the same id, how many calls of giveUp are under way
	closed  bool            // guarded by mu: the process is about to end
}

// settleInterval is how often a shared shim looks whether a seat is still used.
// It is a variable for the tests.
var settleInterval = 10 * time.Second

// seat is a seat that is taken.
type seat struct {
	bundle string
	dir    fs.FileInfo // of the bundle when the seat was taken
	since  time.Time
}

// newSeats returns the seats of a shim that was started for what is in a bundle, which has
// the first.
func newSeats(limit int, address, id, bundle string) (*seats, error) {
	dir, err := os.Stat(bundle)
	if err != nil {
		return nil, fmt.Errorf("cannot find the bundle: %w", err)
	}
	s := emptySeats(limit, address)
	s.taken[id] = seat{bundle, dir, time.Now()}
	return s, nil
}

func emptySeats(limit int, address string) *seats {
	return &seats{
		limit: limit, address: address, settle: settleInterval, begin: func() func() { return func() {} },
		taken: make(map[string]seat), leaving: make(map[string]int),
	}
}

// take takes a seat for a pod or container. It fails with [errdefs.ErrResourceExhausted]
// if the shim is full and with [errdefs.ErrUnavailable] if it is about to end: then
// another shim has to take it in.
func (s *seats) take(id, bundle string) error {
	dir, err := os.Stat(bundle)
	if err != nil {
		return fmt.Errorf("cannot take %s in: %w: %w", id, err, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	_, again := s.taken[id] // containerd may call `start` again after one that it has killed
	switch {
	case s.closed:
		return fmt.Errorf("cannot take %s in: the shim is about to end: %w", id, errdefs.ErrUnavailable)
	case s.leaving[id] > 0:
		return fmt.Errorf("cannot take %s in: an earlier one is being removed: %w", id, errdefs.ErrUnavailable)
	case !again && len(s.taken) >= s.limit:
		return fmt.Errorf("cannot take %s in: all %d seats are taken: %w", id, s.limit, errdefs.ErrResourceExhausted)
	case !hasSpareFiles():
		return fmt.Errorf("cannot take %s in: the shim's limit of open files (RLIMIT_NOFILE) is too near: %w", id, errdefs.ErrResourceExhausted)
	}
	taken := seat{bundle, dir, time.Now()}
	s.taken[id] = taken
	s.moveLog()
	s.checkLater(id, taken)
	return nil
}

func (s *seats) checkLater(id string, taken seat) {
	time.AfterFunc(s.settle, func() { s.check(id, taken) })
}

// check gives a seat back once nobody uses it: the `start` which has taken it was killed, or
// has gone to another shim, or its pod has been given up while this shim could not be
// reached. Nobody else may come to ask the shim to end. It goes on for as long as the seat
// is taken.
func (s *seats) check(id string, taken seat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.taken[id] != taken:
	case s.isUnused(taken):
		s.evict(id, taken)
	default:
		s.checkLater(id, taken)
	}
}

// release gives the seat of a pod or container back, if it has one.
func (s *seats) release(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leave(id)
}

// leave is release for a caller that holds mu.
func (s *seats) leave(id string) {
	gone, ok := s.taken[id]
	if !ok {
		return
	}
	delete(s.taken, id)
	if s.log != nil && s.log.bundle == gone.bundle {
		s.log.bundle = "" // containerd is about to stop reading the fifo
		s.moveLog()
	}
	if len(s.taken) == 0 && s.idle != nil {
		// containerd asks the shim to end, unless it has been killed. And what it asked for
		// last may still be under way then.
		s.idleLater()
	}
}

// idleLater asks for the end of the shim if it is still idle after some time.
func (s *seats) idleLater() {
	time.AfterFunc(s.settle, func() {
		defer s.begin()()
		s.idle()
	})
}

// moveLog finds a bundle for the log, if it has none. The caller holds mu.
func (s *seats) moveLog() {
	if s.log == nil || s.log.bundle != "" {
		return
	}
	for _, taken := range s.taken {
		if s.log.follow(filepath.Join(taken.bundle, logFile)) == nil {
			s.log.bundle = taken.bundle
			return
		}
	}
}

// sharedLog is the log of a shared shim.
type sharedLog struct {
	*logWriter
	bundle string // the log goes to the fifo in it; empty if there was none left to go to
}

// expects says whether a pod or container has a seat, and since when.
func (s *seats) expects(id string) (since time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken, ok := s.taken[id]
	return taken.since, ok
}

// close lets nobody in any more, if no seat is taken. It says whether that is so.
func (s *seats) close() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep()
	s.closed = s.closed || len(s.taken) == 0
	return s.closed
}

// stop lets nobody in any more.
func (s *seats) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// sweep gives back seats that nobody will use, which a `start` or a containerd that was
// killed has left. The caller holds mu.
func (s *seats) sweep() {
	for id, taken := range s.taken {
		if s.isUnused(taken) {
			s.evict(id, taken)
		}
	}
}

// evict gives back a seat that nobody uses. If there is a pod, it has been given up. The
// caller holds mu.
func (s *seats) evict(id string, taken seat) {
	s.leave(id)
	s.leaving[id]++
	go func() {
		defer s.begin()()
		s.abandon(id, taken)
	}()
}

// isUnused says whether containerd knows a seat's bundle no longer, or has another shim for
// it: a `start` that has not waited for this shim's answer has gone on to that.
func (s *seats) isUnused(taken seat) bool {
	dir, err := os.Stat(taken.bundle)
	if err != nil {
		return os.IsNotExist(err)
	}
	if !os.SameFile(dir, taken.dir) {
		return true
	}
	path, err := readAddress(taken.bundle)
	return err == nil && path != "" && unixScheme+path != s.address
}

// abandonLimit is how long it may take to remove a pod that has been given up.
const abandonLimit = time.Minute

func (s *seats) abandon(id string, taken seat) {
	defer s.abandoned(id)
	ctx, cancel := context.WithTimeout(context.Background(), abandonLimit)
	defer cancel()
	if err := s.giveUp(ctx, id, taken.bundle); err != nil {
		log.L.WithError(err).WithField("id", id).Warn("the bundle has gone, but not all of its pod; trying again")
		s.mu.Lock()
		defer s.mu.Unlock()
		s.taken[id] = taken
		s.checkLater(id, taken)
	}
}

// abandoned counts the end of a call of giveUp. While one is under way, nobody can take a
// seat for the same id, which would be given up with the old one.
func (s *seats) abandoned(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leaving[id]--; s.leaving[id] == 0 {
		delete(s.leaving, id)
	}
}

// savedSeats are the seats of a shim that is handed over.
type savedSeats struct {
	Limit  int         `json:"limit"`
	Closed bool        `json:"closed,omitempty"`
	Taken  []savedSeat `json:"taken"`
	// Log is the bundle to whose fifo the log goes.
	Log string `json:"log,omitempty"`
}

type savedSeat struct {
	ID     string    `json:"id"`
	Bundle string    `json:"bundle"`
	Since  time.Time `json:"since"`
}

func (s *seats) save() savedSeats {
	s.mu.Lock()
	defer s.mu.Unlock()
	saved := savedSeats{Limit: s.limit, Closed: s.closed}
	if s.log != nil {
		saved.Log = s.log.bundle
	}
	for id, taken := range s.taken {
		saved.Taken = append(saved.Taken, savedSeat{id, taken.bundle, taken.since})
	}
	return saved
}

// restore returns the seats of the program before this one.
func (saved savedSeats) restore(address string) *seats {
	s := emptySeats(saved.Limit, address)
	s.closed = saved.Closed
	for _, is := range saved.Taken {
		dir, _ := os.Stat(is.Bundle) // a seat whose bundle has gone is given back
		s.taken[is.ID] = seat{is.Bundle, dir, is.Since}
	}
	return s
}

// register serves the RPCs of a shared shim, and begins to check the seats that are taken.
func (s *seats) register(server *ttrpc.Server) {
	s.mu.Lock()
	for id, taken := range s.taken {
		s.checkLater(id, taken)
	}
	if len(s.taken) == 0 {
		s.idleLater()
	}
	s.mu.Unlock()
	method := func(f func(ctx context.Context, id, bundle string) error) ttrpc.Method {
		return func(ctx context.Context, unmarshal func(any) error) (any, error) {
			var r sandboxapi.CreateSandboxRequest
			if err := unmarshal(&r); err != nil {
				return nil, err
			}
			return &sandboxapi.CreateSandboxResponse{}, f(ctx, r.SandboxID, r.BundlePath)
		}
	}
	server.RegisterService(seatService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		takeMethod: method(func(_ context.Context, id, bundle string) error { return s.take(id, bundle) }),
		giveUpMethod: method(func(ctx context.Context, id, bundle string) error {
			s.mu.Lock()
			s.leaving[id]++
			s.mu.Unlock()
			defer s.abandoned(id)
			err := s.giveUp(ctx, id, bundle)
			if err != nil { // containerd does not ask again, but removes the bundle
				s.mu.Lock()
				defer s.mu.Unlock()
				if taken, ok := s.taken[id]; ok {
					s.checkLater(id, taken)
				}
			}
			return err
		}),
	}})
}

// callSeats calls a method of the shared shim at the other end of a connection.
func callSeats(ctx context.Context, client *ttrpc.Client, method, id, bundle string) error {
	return client.Call(ctx, seatService, method,
		&sandboxapi.CreateSandboxRequest{SandboxID: id, BundlePath: bundle}, &sandboxapi.CreateSandboxResponse{})
}

// hasSpareFiles says whether the process may open as many files as one more pod needs.
func hasSpareFiles() bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return true
	}
	open, err := os.ReadDir("/proc/self/fd")
	return err == nil && uint64(len(open)+spareFiles) <= limit.Cur
}
