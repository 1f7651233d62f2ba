package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"

	"containerd-shim-pause-v2/integration/node"
)

// The faults of a soak.

const (
	nothing         = "nothing"
	killsShim       = "SIGKILL of a shim"
	killsContainerd = "SIGKILL of containerd"
	stopsContainerd = "SIGSTOP of containerd"
	killsRuntime    = "SIGKILL of an OCI runtime"
	killsContainer  = "SIGKILL of containers"
	killsPodInit    = "SIGKILL of a pod's init"
	killsLogger     = "SIGKILL of a logger"
	slowRuntime     = "an OCI runtime that is slow"
	failingRuntime  = "an OCI runtime that fails"
	hangingRuntimes = "an OCI runtime that hangs"
	fullBundles     = "a full file system of bundles"
	readOnlyBundles = "a read-only file system of bundles"
	noFiles         = "no file descriptor for a shim"
	noProcesses     = "no process for a shim"
	noMemory        = "no memory for a shim"
	upgradesShims   = "upgrade of all shims"
)

// soakFaults are all kinds of them. The limits of a shim's processes and memory are those of cgroup v1 here.
func soakFaults() (all []string) {
	all = []string{
		nothing, killsShim, killsContainerd, stopsContainerd, killsRuntime, killsContainer, killsPodInit, killsLogger, slowRuntime,
		failingRuntime, hangingRuntimes, fullBundles, readOnlyBundles, noFiles, upgradesShims,
	}
	if !onV2() {
		all = append(all, noProcesses, noMemory)
	}
	return all
}

func isTroubleOfRuntime(fault string) bool {
	return fault == slowRuntime || fault == failingRuntime || fault == hangingRuntimes
}

// endsShims says whether the fault may end a shim. Go's runtime ends a program that cannot make a thread (newosproc in
// runtime/os_linux.go), or cannot get memory; the kernel ends one that uses more memory than its cgroup may.
func (r *soakRound) endsShims() bool {
	return r.fault == killsShim || r.fault == noProcesses || r.fault == noMemory
}

// trouble is an OCI runtime that does with a verb what a file says.
var trouble troubledRuntime

type troubledRuntime struct {
	path, does, met string
	sleep           string // for how many seconds it hangs, which no other process does
}

// handlersOfTrouble are CRI handlers with that runtime.
var handlersOfTrouble = []string{"pause-trouble", "pause-sandbox-trouble", "pause-shared-trouble", "pause-shared-sandbox-trouble"}

// troubledHandlers makes that runtime in dir.
func troubledHandlers(dir string) (list []node.Handler, err error) {
	trouble.path = filepath.Join(dir, "troubled-runtime")
	trouble.does, trouble.met, trouble.sleep = trouble.path+".does", trouble.path+".met", fmt.Sprint(1_000_000+os.Getpid())
	script := fmt.Appendf(nil, `#!/bin/sh
if read -r verb what 2>/dev/null <%[1]s; then
	for a; do
		if [ "$a" = "$verb" ]; then
			echo >>%[2]s
			case $what in
			slow) sleep 1 ;;
			fails) echo "this runtime is broken" >&2; exit 1 ;;
			hangs) exec sleep %[3]s ;;
			esac
		fi
	done
fi
exec %[4]s "$@"
`, trouble.does, trouble.met, trouble.sleep, ociRuntime)
	for _, name := range handlersOfTrouble {
		h := node.Handler{Name: name, Type: node.PauseType, OCIRuntime: trouble.path}
		if isShared(name) {
			h.Type = node.SharedType
		}
		if strings.Contains(name, "sandbox") {
			h.Sandboxer = "shim"
		}
		list = append(list, h)
	}
	return list, os.WriteFile(trouble.path, script, 0o755)
}

// begin has it do something with a verb from now on.
func (r *troubledRuntime) begin(verb, what string) error {
	next := r.does + ".next"
	if err := os.WriteFile(next, []byte(verb+" "+what+"\n"), 0o600); err != nil {
		return err
	}
	return os.Rename(next, r.does)
}

// end ends it, and what hangs.
func (r *troubledRuntime) end() error {
	if err := os.Remove(r.does); err != nil {
		return err
	}
	for range 10 { // one may have read the file before
		for _, p := range node.Processes() {
			if slices.Equal(p.Args, []string{"sleep", r.sleep}) {
				if err := ignoreGone(unix.Kill(p.Pid, unix.SIGKILL)); err != nil {
					return err
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// faultPlan is what is chosen about a fault.
type faultPlan struct {
	after  int           // calls that the pods have begun
	jitter time.Duration // after that
	length time.Duration // if it lasts
	which  int           // of the victims that there are
	verb   string        // of an OCI runtime
}

func planFault(random *rand.Rand, longest time.Duration) faultPlan {
	// "start" and "delete" are asked of an OCI runtime that is not runc itself.
	verbs := []string{"create", "start", "exec", "delete", "kill"}
	return faultPlan{
		after: random.IntN(soakPods * 7), jitter: time.Duration(random.IntN(50)) * time.Millisecond,
		length: 100*time.Millisecond + time.Duration(random.Int64N(int64(longest))), which: random.IntN(1000), verb: verbs[random.IntN(len(verbs))],
	}
}

// strike does what the plan of a round says, and undoes it. It returns what has been met.
func (s *soak) strike(r *soakRound) (met string, err error) {
	switch r.fault {
	case killsShim:
		return s.strikeShim(r, true, true, func(pid int) error { return ignoreGone(unix.Kill(pid, unix.SIGKILL)) })
	case killsContainerd:
		r.restarted = true
		for _, p := range r.pods {
			if p.isStock() { // an exit while containerd is away is lost, see exitWhileAway
				p.forgive(r.fault, false)
			}
		}
		return "containerd", s.restartContainerd()
	case stopsContainerd:
		return s.stopContainerd(r)
	case killsRuntime:
		return s.killRuntime(r)
	case killsPodInit:
		return s.killPodInit(r)
	case killsLogger:
		return s.killLogger(r)
	case slowRuntime, failingRuntime, hangingRuntimes:
		return s.troubleRuntime(r)
	case fullBundles:
		return "bundles", s.fillBundles(r)
	case readOnlyBundles:
		return "bundles", s.protectBundles(r)
	case noFiles:
		return s.strikeShim(r, false, false, func(pid int) error { return limitFiles(pid, r.plan.length) })
	case noProcesses:
		return s.strikeShim(r, false, false, func(pid int) error {
			return s.limitCgroup(pid, "pids", "pids.max", "pids.current", 0, r.plan.length)
		})
	case noMemory:
		return s.strikeShim(r, false, false, func(pid int) error {
			return s.limitCgroup(pid, "memory", "memory.limit_in_bytes", "", 512<<10, r.plan.length)
		})
	case upgradesShims:
		return s.upgradeShims()
	}
	return "containers", nil // by their plan, or nothing
}

// victims are the pods that live now and fit.
func (r *soakRound) victims(fits func(p *soakPod) bool) (pods []*soakPod) {
	for _, p := range r.pods {
		if p.isRunning() && fits(p) {
			pods = append(pods, p)
		}
	}
	return pods
}

// await returns the victim that the plan chooses as soon as there is one, and nil if all pods have come and gone.
func (r *soakRound) await(fits func(p *soakPod) bool) *soakPod {
	for !r.isOver() {
		if pods := r.victims(fits); len(pods) > 0 {
			return pods[r.plan.which%len(pods)]
		}
		time.Sleep(time.Millisecond)
	}
	return nil
}

// strikeShim does something to the shim of a pod, and forgives all pods of the shim, or that may be about to get into
// it. Those that stay live in other shims. stock says whether it may be a stock shim.
func (s *soak) strikeShim(r *soakRound, stock, ends bool, f func(pid int) error) (string, error) {
	victim := r.await(func(p *soakPod) bool { return (stock || !p.isStock()) && !s.isOfThoseThatStay(p) })
	if victim == nil {
		return "", nil
	}
	_, shim := victim.where()
	r.stockDies = victim.isStock()
	for _, p := range r.pods {
		switch _, other := p.where(); {
		case other == shim:
			p.forgive(r.fault, ends)
		case other == 0 && isShared(p.handler) && isShared(victim.handler):
			p.forgive(r.fault, false)
		}
	}
	return victim.handler, f(shim)
}

// isOfThoseThatStay says whether a pod is in the same shim as one that stays.
func (s *soak) isOfThoseThatStay(p *soakPod) bool {
	_, shim := p.where()
	return slices.Contains(shimsOf(tenantsOf(s.stay)), shim)
}

// restartContainerd is wave.restart, and goes on with the events.
func (s *soak) restartContainerd() error {
	s.era.Add(1)
	defer s.era.Add(1)
	s.events.end()
	if err := theNode.Kill(); err != nil {
		return err
	}
	if err := theNode.Restart(s.ctx); err != nil {
		return err
	}
	s.events.subscribe()
	return nil
}

func (s *soak) stopContainerd(r *soakRound) (string, error) {
	pid := theNode.DaemonPid()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return "", err
	}
	time.Sleep(r.plan.length)
	return "containerd", unix.Kill(pid, unix.SIGCONT)
}

// killRuntime kills a call of runc for one of the pods.
func (s *soak) killRuntime(r *soakRound) (string, error) {
	for !r.isOver() {
		for _, process := range node.Processes() {
			if !slices.Contains([]string{filepath.Base(ociRuntime), currentRuntime}, filepath.Base(process.Args[0])) ||
				!slices.ContainsFunc(process.Args, isInRuntimeRoot) || !isShimUnderTest(process.Parent) {
				continue
			}
			pod := podOfRuntime(process.Args)
			var victims []*soakPod
			for _, p := range r.pods {
				if is, _ := p.where(); !p.isStock() && (is == nil || is.ID == pod || slices.Contains(process.Args, is.ID)) {
					victims = append(victims, p)
				}
			}
			if len(victims) == 0 {
				continue
			}
			for _, p := range victims {
				p.forgive(r.fault, false)
			}
			verbs := []string{"create", "start", "exec", "delete", "kill", "run", "state", "update"}
			verb := process.Args[max(0, slices.IndexFunc(process.Args, func(a string) bool { return slices.Contains(verbs, a) }))]
			return verb, ignoreGone(unix.Kill(process.Pid, unix.SIGKILL))
		}
	}
	return "", nil
}

// isShimUnderTest says so of a process; the stock shim leaves a cgroup if an OCI runtime is killed.
func isShimUnderTest(pid int) bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return err == nil && strings.HasPrefix(filepath.Base(program), "containerd-shim-pause")
}

func isInRuntimeRoot(argument string) bool { return strings.HasPrefix(argument, theNode.RuntimeRoot()) }

// podOfRuntime is the pod of a container for which an OCI runtime is called; "" if it is not known.
func podOfRuntime(args []string) string {
	id := args[len(args)-1]
	var spec struct{ Annotations map[string]string }
	text, err := os.ReadFile(filepath.Join(theNode.Bundle(node.CRINamespace, id), "config.json"))
	if err != nil || json.Unmarshal(text, &spec) != nil {
		return ""
	}
	return spec.Annotations["io.kubernetes.cri.sandbox-id"]
}

// killPodInit kills the init of a shared PID namespace, with which the pod ends.
func (s *soak) killPodInit(r *soakRound) (string, error) {
	for !r.isOver() {
		victim := r.await(func(p *soakPod) bool { return kinds[p.kind].pid == modePod && !s.isOfThoseThatStay(p) })
		if victim == nil {
			return "", nil
		}
		_, shim := victim.where()
		for _, process := range node.Processes() {
			if process.Args[0] != "/pause" {
				continue
			}
			victims := r.victims(func(p *soakPod) bool { _, other := p.where(); return other == shim && kinds[p.kind].pid == modePod })
			if !descendsFrom(process.Pid, shim) {
				continue
			}
			for _, p := range victims { // one of these; which one does not show
				p.forgive(r.fault, len(victims) == 1)
			}
			return victim.handler, ignoreGone(unix.Kill(process.Pid, unix.SIGKILL))
		}
		time.Sleep(time.Millisecond)
	}
	return "", nil
}

func descendsFrom(pid, ancestor int) bool {
	parents := make(map[int]int)
	for _, p := range node.Processes() {
		parents[p.Pid] = p.Parent
	}
	for ; pid > 1; pid = parents[pid] {
		if pid == ancestor {
			return true
		}
	}
	return false
}

// soakLogger says who it is before it is ready, and reads until the end.
const soakLogger = `#!/bin/sh
echo $$ >"$2/pid"
exec 5>&-
exec cat <&3 >"$2/out"
`

// killLogger runs a container with a logger, and kills that. The container goes on.
func (s *soak) killLogger(r *soakRound) (string, error) {
	shim := []string{"pause", sharedShim}[r.plan.which%2]
	s.t.Run(fmt.Sprintf("logger of round %d", r.number), func(t *testing.T) {
		dir := t.TempDir()
		cfg := sh("i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 7")
		cfg.options = func(*options.Options) {} // no neighbours
		c := newContainer(t, shim, cfg)
		c.run(cio.BinaryIO(script(t, soakLogger), map[string]string{"dir": dir}))
		eventually(t, "the logger writes", func() bool {
			text, err := os.ReadFile(filepath.Join(dir, "out"))
			return err == nil && len(text) > 0
		})
		pid, err := strconv.Atoi(strings.TrimSpace(readFile(t, filepath.Join(dir, "pid"))))
		must(t, err)
		must(t, unix.Kill(pid, unix.SIGKILL))
		expectEqual(t, "exit code", exitCode(t, c.exited), 7)
	})
	return shim, nil
}

// troubleRuntime lets an OCI runtime be slow, fail or hang.
func (s *soak) troubleRuntime(r *soakRound) (string, error) {
	what := map[string]string{slowRuntime: "slow", failingRuntime: "fails", hangingRuntimes: "hangs"}[r.fault]
	if r.fault != slowRuntime {
		r.forgiveAll(func(p *soakPod) bool { return slices.Contains(handlersOfTrouble, p.handler) })
	}
	if err := trouble.begin(r.plan.verb, what); err != nil {
		return "", err
	}
	r.last()
	err := trouble.end()
	calls, _ := os.ReadFile(trouble.met)
	os.Remove(trouble.met)
	return fmt.Sprintf("%s: %d", r.plan.verb, len(calls)), err
}

// mountBundles gives bundles a file system of their own until the end of the test.
func (s *soak) mountBundles() {
	s.t.Helper()
	for _, plugin := range []string{"io.containerd.runtime.v2.task", "io.containerd.sandbox.controller.v1.shim"} {
		dir := filepath.Join(theNode.Dir, "state", plugin)
		must(s.t, os.MkdirAll(dir, 0o711))
		must(s.t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m,mode=711"))
		s.bundles = append(s.bundles, dir)
		s.t.Cleanup(func() {
			eventually(s.t, "no shim is in a bundle any more", func() bool { return !errors.Is(unix.Unmount(dir, 0), unix.EBUSY) })
		})
	}
}

// fillBundles leaves no byte in the file systems of bundles.
func (s *soak) fillBundles(r *soakRound) (err error) {
	r.forgiveAll(func(*soakPod) bool { return true })
	var ballast []string
	for _, dir := range s.bundles {
		path := filepath.Join(dir, ".ballast")
		ballast = append(ballast, path)
		if err := fill(path); err != nil {
			return err
		}
	}
	r.last()
	for _, path := range ballast {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

func fill(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size >= 1; size /= 4 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
	return nil
}

// protectBundles lets nothing be written into bundles.
func (s *soak) protectBundles(r *soakRound) (err error) {
	r.forgiveAll(func(*soakPod) bool { return true })
	for _, dir := range s.bundles {
		err = errors.Join(err, protect(dir))
	}
	r.last()
	for _, dir := range s.bundles {
		err = errors.Join(err, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	}
	return err
}

// protect makes a mount read-only as soon as no file is being written.
func protect(dir string) (err error) {
	for start := time.Now(); time.Since(start) < patience*20*time.Second; time.Sleep(time.Millisecond) {
		if err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); !errors.Is(err, unix.EBUSY) {
			break
		}
	}
	return err
}

// limitFiles lets a process open no more files for a while.
func limitFiles(pid int, length time.Duration) error {
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		return ignoreGone(err)
	}
	limit := unix.Rlimit{Cur: 3, Max: was.Max} // those that are open stay open
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		return ignoreGone(err)
	}
	time.Sleep(length)
	return ignoreGone(unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil))
}

// limitCgroup moves a process into a cgroup with a limit for a while: a number, or what the file current says.
func (s *soak) limitCgroup(pid int, controller, file, current string, limit int, length time.Duration) (err error) {
	was := cgroupDir(s.t, pid, controller)
	dir := filepath.Join(cgroupMount, controller, theNode.ID, "soak")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	write := func(dir, file string, n int) error {
		return os.WriteFile(filepath.Join(dir, file), []byte(fmt.Sprint(n)), 0)
	}
	if err := ignoreGone(write(dir, "cgroup.procs", pid)); err != nil {
		return err
	}
	if current != "" {
		text, err := os.ReadFile(filepath.Join(dir, current))
		if err != nil {
			return err
		}
		if limit, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return err
		}
	}
	err = write(dir, file, limit)
	time.Sleep(length)
	for start := time.Now(); time.Since(start) < patience*20*time.Second; time.Sleep(5 * time.Millisecond) {
		text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(text)) {
			n, err := strconv.Atoi(field)
			if err != nil {
				return err
			}
			_ = write(was, "cgroup.procs", n) // it may have ended
		}
		if err := os.Remove(dir); err == nil {
			break
		}
	}
	if _, gone := os.Stat(dir); gone == nil {
		err = errors.Join(err, fmt.Errorf("cannot remove cgroup %s", dir))
	}
	return err
}

// upgradeShims has all shims execute their program again.
func (s *soak) upgradeShims() (string, error) {
	program, err := theNode.LookPath("containerd-shim-pause-v2")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(s.ctx, patience*3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "-upgrade", "-address", theNode.Socket()).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Exited() && exit.ExitCode() == 1 {
		err = nil // the table tells
	}
	upgraded := 0
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "upgraded to ") {
			upgraded++
		}
		if _, reason, ok := strings.Cut(line, "not upgraded: "); ok {
			s.count("shim that was not upgraded: " + strings.TrimSpace(reason))
		}
	}
	if upgraded == 0 {
		err = errors.Join(err, fmt.Errorf("no shim has been upgraded: %s", out))
	}
	return fmt.Sprint(upgraded), err
}
