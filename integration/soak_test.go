package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"containerd-shim-pause-v2/integration/node"
)

// A fire drill: rounds of pods of all kinds and by all handlers, during each of which one thing goes wrong. What counts
// is that the pods that it has not met notice nothing, that of the others nothing is left, and that what is reported of
// any container is true.

// soakErrors is after how many failures no more rounds are begun.
const soakErrors = 10

// soakLongest is how long a fault lasts that has a length.
const soakLongest = 1500 * time.Millisecond

// TestSoak is `make soak`, and a short form of it: PAUSE_TEST_SOAK says how long it lasts. PAUSE_TEST_SEED plans the
// same pods and the same faults, and after how many calls of a round its fault comes, but what they meet may differ.
// PAUSE_TEST_SOAK_FAULTS is a regular expression for the kinds of faults, if not all are wanted; with PAUSE_TEST_SOAK_ERRORS=1
// the errors of calls are shown that are forgiven.
func TestSoak(t *testing.T) {
	withShared(t, "soak", func(t *testing.T) {
		length := 40 * time.Second
		if text := os.Getenv("PAUSE_TEST_SOAK"); text != "" {
			var err error
			length, err = time.ParseDuration(text)
			must(t, err)
		}
		seed := numberFrom(t, "PAUSE_TEST_SEED", uint64(time.Now().UnixNano()))
		s := newSoak(t, length)
		fmt.Printf("    PAUSE_TEST_SEED=%d PAUSE_TEST_SOAK=%s\n", seed, length) // before it may be ended from outside
		s.settle()
		before := heldByShimsOf(t, s.stay)

		s.began = time.Now()
		stop := s.report()
		for number := 0; time.Since(s.began) < length && s.failures.Load() < soakErrors; number++ {
			s.round(s.plan(seed, number))
		}
		stop()
		s.summarize()
		if t.Failed() {
			t.Logf("it was PAUSE_TEST_SEED=%d", seed)
			return
		}
		s.settle()
		expectHeldByShimsOf(t, s.stay, before)
		for _, r := range s.stay {
			r.remove()
		}
		expectEnded(t, slices.Collect(maps.Keys(before))...)
	})
}

// soak is what is done to a node.
type soak struct {
	*wave
	events   *soakEvents
	bundles  []string       // where they are, each a file system of its own
	notes    string         // where containers write down what they exit with
	only     *regexp.Regexp // the kinds of faults
	stay     []*resident
	began    time.Time
	logged   int // how much of containerd's log has been searched
	failures atomic.Int64

	mu     sync.Mutex
	rounds int             // guarded by mu
	faults map[string]int  // guarded by mu: that have met something
	missed map[string]int  // guarded by mu: that have met nothing, since there was nothing
	came   map[string]int  // guarded by mu: pods by handler and kind
	hit    map[string]int  // guarded by mu: pods that a fault has met, by the fault
	stock  map[string]bool // guarded by mu: paths of the sockets of stock shims
}

// soakRound is one round.
type soakRound struct {
	number int
	fault  string
	plan   faultPlan
	pods   []*soakPod
	healed chan struct{} // closed when the fault is over

	restarted bool         // containerd has been killed
	stockDies bool         // what was killed is a stock shim
	calls     atomic.Int64 // that pods have begun

	mu     sync.Mutex
	excuse func(p *soakPod) bool // guarded by mu: for pods that come while the fault lasts; nil if there is none
}

func newSoak(t *testing.T, length time.Duration) *soak {
	t.Helper()
	s := &soak{
		wave: newWave(t, 0), notes: filepath.Join(theNode.Dir, "notes"), stock: make(map[string]bool),
		faults: make(map[string]int), missed: make(map[string]int), came: make(map[string]int), hit: make(map[string]int),
	}
	ctx, cancel := context.WithTimeout(theNode.Context(t.Context()), length+patience*10*time.Minute)
	t.Cleanup(cancel)
	s.ctx = ctx
	var err error
	s.only, err = regexp.Compile(os.Getenv("PAUSE_TEST_SOAK_FAULTS"))
	must(t, err)
	must(t, os.Mkdir(s.notes, 0o777))
	must(t, os.Chmod(s.notes, 0o777)) // for containers in user namespaces, whatever the umask is
	t.Cleanup(func() { os.RemoveAll(s.notes) })
	s.mountBundles()
	atEnd(t, theNode.RemoveAll) // before they are unmounted
	for _, handler := range slices.Concat(handlersOfSoak, handlersOfTrouble) {
		s.addPool(handler)
	}
	for _, handler := range handlersOfUserSoak {
		s.addPool(mode{user: true}.handler(handler))
	}
	s.events = &soakEvents{ctx: s.ctx, of: make(map[string][]soakEvent)}
	s.events.subscribe()
	s.settleIn()
	s.logged = len(readFile(t, theNode.LogFile()))
	return s
}

func (s *soak) addPool(handler string) {
	name := strings.Replace(handler, sharedSandboxHandler, sharedShim, 1)
	if s.pools[name] == nil {
		s.pools[name] = &wavePool{name: name, bound: podsPerShim}
	}
}

// settleIn runs the pods that stay, in shims of each kind.
func (s *soak) settleIn() {
	s.t.Helper()
	user := mode{user: true}
	for _, r := range []struct{ handler, kind string }{
		{sharedShim, "usual"},
		{sharedSandboxHandler, "shared PID"},
		{user.handler(sharedShim), "user namespace, shared PID"},
		{"pause", "shared PID"},
		{sandboxHandler, "usual"},
	} {
		p, err := theNode.RunPod(s.ctx, r.handler, kinds[r.kind].apply)
		must(s.t, err)
		id, pid, err := startSleeper(s.ctx, p)
		must(s.t, err)
		shim, err := p.ShimPid()
		must(s.t, err)
		s.stay = append(s.stay, &resident{tenant: &tenant{&pod{p, s.t, s.ctx}, id, pid, shim}})
	}
	s.has = theNode.Present()
}

// settle has shims that stay be as an upgrade leaves them, so that those of two moments can be compared.
func (s *soak) settle() {
	s.t.Helper()
	expectWorks(s.t, tenantsOf(s.stay)...)
	_, err := s.upgradeShims()
	must(s.t, err)
	expectWorks(s.t, tenantsOf(s.stay)...)
}

// plan chooses what a round has, whatever happened in those before it. All kinds of faults come before one comes again.
func (s *soak) plan(seed uint64, number int) *soakRound {
	faults := slices.DeleteFunc(soakFaults(), func(fault string) bool { return !s.only.MatchString(fault) })
	order := rand.New(rand.NewPCG(seed, uint64(number/len(faults)))).Perm(len(faults))
	random := rand.New(rand.NewPCG(seed, 1<<32+uint64(number)))
	r := &soakRound{number: number, fault: faults[order[number%len(faults)]], healed: make(chan struct{})}
	longest := soakLongest
	if r.fault == stopsContainerd && number > len(faults) && random.IntN(4) == 0 {
		longest = patience * time.Minute
	}
	r.plan = planFault(random, longest)
	r.pods = planSoakPods(random, number, r.fault, s.notes)
	return r
}

// round runs the pods of a round, and its fault.
func (s *soak) round(r *soakRound) {
	s.t.Helper()
	var living sync.WaitGroup
	for _, p := range r.pods {
		living.Go(func() { s.live(r, p) })
	}
	for !r.isOver() && r.calls.Load() < int64(r.plan.after) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(r.plan.jitter)
	met, err := s.strike(r)
	r.forgiveAll(nil)
	close(r.healed)
	if err != nil {
		s.fail(r, "cannot do it, or undo it: %v", err)
	}
	s.mu.Lock()
	s.rounds++
	if met == "" {
		s.missed[r.fault]++
	} else {
		s.faults[r.fault]++
	}
	s.mu.Unlock()
	living.Wait()
	if r.fault == readOnlyBundles {
		// containerd tries once to remove what it made for a task that it cannot create (TaskManager.Create in
		// core/runtime/v2/task_manager.go of 2.4.2). The next one removes what it finds (loadShims and cleanupWorkDirs in shim_load.go).
		r.restarted = true
		must(s.t, s.restartContainerd())
	}
	s.check(r)
	if s.t.Failed() {
		s.t.Logf("round %d, %s (%s): %+v\n%v", r.number, r.fault, met, r.plan, r.pods)
	}
}

// check expects what must be true after each round.
func (s *soak) check(r *soakRound) {
	s.t.Helper()
	failed := s.t.Failed()
	s.checkEvents(r)
	s.removeStockSockets()
	if r.stockDies {
		s.removeStockCgroups()
	}
	s.expectOnly(s.stay)
	expectLives(s.t, tenantsOf(s.stay)...)
	expectWorks(s.t, s.stay[r.number%len(s.stay)].tenant)
	s.expectNoThreadOfOthers()
	s.checkLog(r)
	if s.t.Failed() && !failed {
		s.fail(r, "this is the round in which it has failed")
	}
}

// expectNoThreadOfOthers expects that no thread of a shim that stays is in a namespace but those of the pods that stay.
func (s *soak) expectNoThreadOfOthers() {
	s.t.Helper()
	for _, kind := range []string{"net", "ipc", "uts"} {
		own := []string{namespace(s.t, "self", kind)}
		for _, r := range s.stay {
			own = append(own, namespace(s.t, r.pid, kind))
		}
		for _, shim := range shimsOf(tenantsOf(s.stay)) {
			links, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/%s", shim, kind))
			must(s.t, err)
			for _, link := range links {
				if target, err := os.Readlink(link); err == nil && !slices.Contains(own, target) {
					s.t.Errorf("%s is %s", link, target)
				}
			}
		}
	}
}

var fatal = regexp.MustCompile(`(?m)^.*(panic: |panicked|fatal error: ).*$`)

// checkLog expects that nothing has panicked.
func (s *soak) checkLog(r *soakRound) {
	s.t.Helper()
	log := readFile(s.t, theNode.LogFile())
	for _, line := range fatal.FindAllString(log[s.logged:], -1) {
		if r.endsShims() && r.fault != killsShim {
			s.count("shim that Go has ended") // see endsShims
			continue
		}
		s.fail(r, "in the log: %.300s", line)
	}
	s.logged = len(log)
}

// noteStockSocket remembers the socket of a pod's stock shim, which nothing removes if that is killed.
func (s *soak) noteStockSocket(p *node.Pod) error {
	text, err := os.ReadFile(filepath.Join(theNode.Bundle(node.CRINamespace, p.ID), "address"))
	if errors.Is(err, os.ErrNotExist) {
		text, err = os.ReadFile(filepath.Join(theNode.Bundle(node.CRINamespace, p.ID), "bootstrap.json"))
	}
	if err != nil {
		return fmt.Errorf("cannot find the socket of a stock shim: %w", err)
	}
	_, path, _ := strings.Cut(string(text), "unix://")
	path, _, _ = strings.Cut(strings.TrimSpace(path), `"`)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stock[path] = true
	return nil
}

// removeStockSockets removes those that stock shims have left, see isStockSocket.
func (s *soak) removeStockSockets() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for path := range s.stock {
		conn, err := net.Dial("unix", path)
		if err == nil {
			conn.Close()
			continue // not yet ended; the next round looks again
		}
		if errors.Is(err, unix.ECONNREFUSED) && os.Remove(path) == nil {
			s.count("socket that the stock shim has left")
		}
		delete(s.stock, path)
	}
}

// removeStockCgroups removes the cgroups of a container that a stock shim was creating when it was killed: those that
// are still there when all else has had time to go. No other shim has been touched in such a round.
func (s *soak) removeStockCgroups() {
	s.t.Helper()
	var left []string
	for start := time.Now(); time.Since(start) < patience*5*time.Second; time.Sleep(20 * time.Millisecond) {
		left = slices.DeleteFunc(theNode.Present(), func(l string) bool { return !strings.HasPrefix(l, "cgroup ") || slices.Contains(s.has, l) })
		if len(left) == 0 {
			return
		}
	}
	for _, l := range left {
		must(s.t, os.Remove(strings.TrimPrefix(l, "cgroup ")))
		s.count("cgroup that the stock shim has left")
	}
}

// fail reports a failure of a round.
func (s *soak) fail(r *soakRound, format string, args ...any) {
	s.failures.Add(1)
	s.t.Errorf("round %d, %s: %s", r.number, r.fault, fmt.Sprintf(format, args...))
}

// explain counts an error that is forgiven.
func (s *soak) explain(r *soakRound, p *soakPod, err error) {
	if os.Getenv("PAUSE_TEST_SOAK_ERRORS") != "" && err != nil {
		fmt.Printf("    round %d, %s: %s: %v\n", r.number, r.fault, p, err)
	}
}

// countPod counts a pod that has come and gone.
func (s *soak) countPod(p *soakPod, excuse string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.came[p.handler]++
	s.came[p.kind]++
	if excuse != "" {
		s.hit[excuse]++
	}
}

// report prints a line every 5 s until the function that it returns is called.
func (s *soak) report() (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(5 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				s.mu.Lock()
				fmt.Printf("    %s: %d rounds, %d pods (%d of them met by a fault), %d faults, %d failures\n", time.Since(s.began).Round(time.Second),
					s.rounds, s.rounds*soakPods, total(s.hit), total(s.faults), s.failures.Load())
				s.mu.Unlock()
			}
		}
	})
	return func() { close(done); running.Wait() }
}

// summarize logs what the soak has done.
func (s *soak) summarize() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.t.Logf("%d rounds of %d pods in %s; %d containers of pods that no fault has met, each with the right exit code, output and events",
		s.rounds, soakPods, time.Since(s.began).Round(time.Second), s.exits.Load())
	for _, list := range []struct {
		what   string
		counts map[string]int
	}{
		{"faults", s.faults},
		{"faults that came when there was nothing to meet", s.missed},
		{"pods that a fault has met", s.hit},
		{"pods by handler and kind", s.came},
	} {
		s.t.Logf("%s:", list.what)
		for _, key := range slices.Sorted(maps.Keys(list.counts)) {
			s.t.Logf("  %5d %s", list.counts[key], key)
		}
	}
	s.wave.mu.Lock()
	defer s.wave.mu.Unlock()
	s.t.Logf("what containerd's end has cut off, and what else it or the stock shim has done: %v", s.repeated)
}

func (r *soakRound) step() { r.calls.Add(1) }

// begin forgives a pod that comes while a fault lasts.
func (r *soakRound) begin(p *soakPod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.excuse != nil && r.excuse(p) {
		p.forgive(r.fault, false)
	}
}

// forgiveAll forgives the pods that there are, and those that come until it is called with nil.
func (r *soakRound) forgiveAll(which func(p *soakPod) bool) {
	r.mu.Lock()
	r.excuse = which
	r.mu.Unlock()
	if which == nil {
		return
	}
	for _, p := range r.pods {
		if which(p) {
			p.forgive(r.fault, false)
		}
	}
}

// isOver says whether the life of all pods has ended, so that nothing can meet a fault any more.
func (r *soakRound) isOver() bool {
	for _, p := range r.pods {
		p.mu.Lock()
		done := p.done
		p.mu.Unlock()
		if !done {
			return false
		}
	}
	return true
}

// last waits for as long as the fault is to last, or until it can meet nothing any more.
func (r *soakRound) last() {
	for start := time.Now(); time.Since(start) < r.plan.length && !r.isOver(); {
		time.Sleep(5 * time.Millisecond)
	}
}

func isNotFound(err error) bool { return status.Code(err) == codes.NotFound }
