package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
)

const ownAddress = unixScheme + "/run/test/pool-x-0"

// newTestSeats returns two seats, of which "first" has one. What is given up is sent to the
// channel.
func newTestSeats(t *testing.T) (s *seats, givenUp chan string) {
	t.Helper()
	bundle := t.TempDir()
	mustAddress(t, bundle, ownAddress)
	s, err := newSeats(2, ownAddress, "first", bundle)
	if err != nil {
		t.Fatal(err)
	}
	s.settle = time.Hour
	givenUp = make(chan string, 10)
	s.giveUp = func(_ context.Context, id, bundle string) error {
		givenUp <- id + " " + bundle
		s.release(id)
		return nil
	}
	return s, givenUp
}

func mustAddress(t *testing.T, bundle, address string) {
	t.Helper()
	if err := writeAddress(bundle, address); err != nil {
		t.Fatal(err)
	}
}

func mustTake(t *testing.T, s *seats, id, bundle string) {
	t.Helper()
	if err := s.take(id, bundle); err != nil {
		t.Fatal(err)
	}
}

func wantSeat(t *testing.T, s *seats, id string, want bool) {
	t.Helper()
	if since, got := s.expects(id); got != want || got && time.Since(since) < 0 {
		t.Errorf("%s has a seat: %t, since %v", id, got, since)
	}
}

func TestSeats(t *testing.T) {
	s, _ := newTestSeats(t)
	a := t.TempDir()
	wantSeat(t, s, "first", true)
	wantSeat(t, s, "a", false)
	mustTake(t, s, "a", a)
	wantSeat(t, s, "a", true)
	if err := s.take("b", t.TempDir()); !errdefs.IsResourceExhausted(err) {
		t.Errorf("with all seats taken: got error %v", err)
	}
	mustTake(t, s, "a", a) // containerd may call `start` again
	if s.close() {
		t.Error("it lets nobody in any more, with seats taken")
	}
	s.release("a")
	s.release("a")
	s.release("none")
	wantSeat(t, s, "a", false)
	mustTake(t, s, "b", t.TempDir())
	s.release("b")
	s.release("first")
	for range 2 {
		if !s.close() {
			t.Error("it waits for somebody")
		}
	}
	if err := s.take("c", t.TempDir()); !errdefs.IsUnavailable(err) {
		t.Errorf("about to end: got error %v", err)
	}
	wantSeat(t, s, "c", false)
	if err := s.take("d", filepath.Join(t.TempDir(), "none")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without a bundle: got error %v", err)
	}
}

func TestSeatsThatNobodyWillUseAreGivenBack(t *testing.T) {
	for name, change := range map[string]func(bundle string) error{
		"its bundle is gone": os.RemoveAll,
		"another bundle is there": func(bundle string) error {
			return errors.Join(os.Rename(bundle, bundle+".old"), os.Mkdir(bundle, 0o700))
		},
		"another shim has taken it": func(bundle string) error { return writeAddress(bundle, unixScheme+"/run/test/pool-x-1") },
	} {
		for when, sweep := range map[string]func(s *seats){
			"at the next start":   func(s *seats) { _ = s.take("b", t.TempDir()) },
			"when it is to close": func(s *seats) { s.close() },
		} {
			t.Run(name+" "+when, func(t *testing.T) {
				s, givenUp := newTestSeats(t)
				bundle := filepath.Join(t.TempDir(), "a")
				if err := os.Mkdir(bundle, 0o700); err != nil {
					t.Fatal(err)
				}
				mustTake(t, s, "a", bundle)
				sweep(s)
				wantSeat(t, s, "a", true)
				s.release("b")
				if err := change(bundle); err != nil {
					t.Fatal(err)
				}
				sweep(s)
				wantSeat(t, s, "a", false)
				wantSeat(t, s, "first", true)
				if got := <-givenUp; got != "a "+bundle {
					t.Errorf("given up is %s", got)
				}
			})
		}
	}
}

// A `start` has not got far enough to say which shim it has found.
func TestSeatWithoutAnAddressIsKept(t *testing.T) {
	s, _ := newTestSeats(t)
	s.settle = time.Millisecond
	bundle := t.TempDir()
	mustTake(t, s, "a", bundle)
	for range 10 {
		time.Sleep(time.Millisecond)
		s.close()
	}
	wantSeat(t, s, "a", true)
}

// Nobody asks the shim again.
func TestSeatOfAStartThatWasKilledIsGivenBack(t *testing.T) {
	s, givenUp := newTestSeats(t)
	s.settle = time.Millisecond
	killed, elsewhere, settled := filepath.Join(t.TempDir(), "a"), t.TempDir(), t.TempDir()
	s.limit = 10
	if err := os.Mkdir(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	mustTake(t, s, "killed", killed)
	mustTake(t, s, "elsewhere", elsewhere)
	mustTake(t, s, "settled", settled)
	mustAddress(t, settled, ownAddress)
	if err := os.Remove(killed); err != nil {
		t.Fatal(err)
	}
	if got := <-givenUp; got != "killed "+killed {
		t.Errorf("given up is %s", got)
	}
	mustAddress(t, elsewhere, unixScheme+"/run/test/pool-x-1")
	if got := <-givenUp; got != "elsewhere "+elsewhere {
		t.Errorf("given up is %s", got)
	}
	wantSeat(t, s, "settled", true)
	wantSeat(t, s, "killed", false)
	wantSeat(t, s, "elsewhere", false)
}

// A containerd that could not reach the shim has removed the bundle, and nobody asks this
// shim for a seat again. That can be long after the pod was started.
func TestPodOfWhichTheBundleGoesLaterIsGivenUp(t *testing.T) {
	for name, begin := range map[string]func(s *seats, bundle string){
		"the first": func(s *seats, _ string) {
			server, err := ttrpc.NewServer()
			if err != nil {
				t.Fatal(err)
			}
			s.register(server)
		},
		"another": func(s *seats, bundle string) { mustTake(t, s, "first", bundle) },
	} {
		t.Run(name, func(t *testing.T) {
			s, givenUp := newTestSeats(t)
			s.settle = time.Millisecond
			bundle := s.taken["first"].bundle
			begin(s, bundle)
			time.Sleep(20 * s.settle) // it has been looked at often
			wantSeat(t, s, "first", true)
			if err := os.RemoveAll(bundle); err != nil {
				t.Fatal(err)
			}
			if got := <-givenUp; got != "first "+bundle {
				t.Errorf("given up is %s", got)
			}
		})
	}
}

// What is given up late must not be the next of the same name.
func TestNoSeatForAnIDThatIsBeingGivenUp(t *testing.T) {
	s, _ := newTestSeats(t)
	begun, goOn := make(chan struct{}), make(chan struct{})
	s.giveUp = func(_ context.Context, id, _ string) error {
		close(begun)
		<-goOn
		s.release(id)
		return nil
	}
	bundle := filepath.Join(t.TempDir(), "a")
	for range 2 { // the second is another directory
		if err := os.Mkdir(bundle, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, taken := s.expects("a"); !taken {
			mustTake(t, s, "a", bundle)
			if err := os.Rename(bundle, bundle+".old"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.take("a", bundle); !errdefs.IsUnavailable(err) {
		t.Errorf("got error %v", err)
	}
	<-begun
	mustTake(t, s, "b", t.TempDir()) // others are not concerned
	if err := s.take("a", bundle); !errdefs.IsUnavailable(err) && !errdefs.IsResourceExhausted(err) {
		t.Errorf("got error %v", err)
	}
	close(goOn)
	s.release("b")
	eventually(t, "the id can be taken again", func() bool { return s.take("a", bundle) == nil })
	wantSeat(t, s, "a", true)
	if s.close() {
		t.Error("the seat has been given back")
	}
}

func TestWhatCannotBeGivenUpIsTriedAgain(t *testing.T) {
	s, _ := newTestSeats(t)
	s.settle = time.Millisecond
	const failures = 3
	calls := make(chan int, 10)
	n := 0 // guarded by the order of the calls
	s.giveUp = func(_ context.Context, id, _ string) error {
		n++
		calls <- n
		if n <= failures {
			return errors.New("no more bananas")
		}
		s.release(id)
		return nil
	}
	bundle := filepath.Join(t.TempDir(), "a")
	if err := os.Mkdir(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	mustTake(t, s, "a", bundle)
	if err := os.Remove(bundle); err != nil {
		t.Fatal(err)
	}
	for call := 1; call <= failures+1; call++ {
		if got := <-calls; got != call {
			t.Fatalf("call %d comes after %d", got, call)
		}
	}
	eventually(t, "the seat is free", func() bool {
		_, taken := s.expects("a")
		return !taken
	})
	mustTake(t, s, "b", t.TempDir())
	if len(calls) > 0 {
		t.Error("it is given up once more")
	}
}
