package reap

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// fork starts a shell command that nobody waits for.
func fork(t *testing.T, command string) int {
	t.Helper()
	// os/exec would hold a pidfd of the process.
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", command}, &syscall.ProcAttr{Env: os.Environ()})
	proctest.Must(t, err)
	return pid
}

func TestExitOfAChild(t *testing.T) {
	for command, want := range map[string]int{
		"exit 0":       0,
		"exit 1":       1,
		"exit 255":     255,
		"kill -9 $$":   128 + 9,
		"kill -15 $$":  128 + 15,
		"kill -ABRT 0": 128 + 6,
	} {
		t.Run(command, func(t *testing.T) {
			proctest.NoLeakedFDs(t)
			release := reaper.Hold()
			// In a new process group, because one of the commands signals its whole group.
			child := reaper.Claim(fork(t, "exec setsid sh -c '"+command+"'"))
			release()
			got, err := child.Wait()
			if err != nil || got != want {
				t.Errorf("got %d and error %v, want %d", got, err, want)
			}
			proctest.WantKind(t, child.Signal(unix.SIGKILL), errdefs.IsNotFound, "not found")
			if proctest.ProcessState(child.Pid) != "" {
				t.Error("it is not reaped")
			}
		})
	}
}

func TestChildThatEndsBeforeItIsClaimed(t *testing.T) {
	release := reaper.Hold()
	pid := fork(t, "exit 42")
	proctest.Eventually(t, "the child has ended", func() bool { return proctest.ProcessState(pid) == "Z" })
	child := reaper.Claim(pid)
	release()
	// The signal goes to a zombie, as kill(2) allows.
	proctest.Must(t, child.Signal(unix.SIGTERM))
	if status, err := child.Wait(); err != nil || status != 42 {
		t.Errorf("got %d and error %v", status, err)
	}
}

// crun forks twice. Its init becomes a child of the shim when the process in between ends.
func TestChildOfAnotherThatBecomesOne(t *testing.T) {
	proctest.NoLeakedFDs(t)
	defer reaper.Hold()()
	r, w, err := os.Pipe()
	proctest.Must(t, err)
	defer r.Close()
	between := exec.Command("sh", "-c", `sh -c 'sleep 0.4; exit 42' & echo $!; exec sleep 0.2`)
	between.Stdout = w
	proctest.Must(t, between.Start())
	w.Close()
	var pid int
	_, err = fmt.Fscan(r, &pid)
	proctest.Must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- between.Wait() }()
	status, err := reaper.Claim(pid).Wait()
	if err != nil || status != 42 {
		t.Errorf("got %d and error %v", status, err)
	}
	proctest.Must(t, <-ended)
}

func TestSignalEndsAChild(t *testing.T) {
	release := reaper.Hold()
	child := reaper.Claim(fork(t, "exec sleep 100000"))
	release()
	proctest.Must(t, child.Signal(unix.SIGUSR1))
	if status, err := child.Wait(); err != nil || status != 128+int(unix.SIGUSR1) {
		t.Errorf("got %d and error %v", status, err)
	}
}

// Until it has ended, the process might still become a child.
func TestWaitForWhatIsNoChild(t *testing.T) {
	parent := exec.Command("sh", "-c", `sleep 0.1 & echo $!; wait; exec sleep 10`)
	out, err := parent.StdoutPipe()
	proctest.Must(t, err)
	proctest.Must(t, parent.Start())
	defer func() { proctest.Must(t, parent.Process.Kill()); _ = parent.Wait() }()
	var pid int
	_, err = fmt.Fscan(out, &pid)
	proctest.Must(t, err)
	if status, err := reaper.Claim(pid).Wait(); err == nil || status != unknownStatus {
		t.Errorf("got %d and error %v, want %d and an error", status, err, unknownStatus)
	}
}

func TestOrphansAreReaped(t *testing.T) {
	orphan := fork(t, "exit 3")
	proctest.Eventually(t, "the child is reaped", func() bool { return proctest.ProcessState(orphan) == "" })
}

func TestOrphansOfAChildAreReaped(t *testing.T) {
	file := t.TempDir() + "/pid"
	release := reaper.Hold()
	child := reaper.Claim(fork(t, "sh -c 'kill -STOP $$' & echo $! >"+file+"; exit 4"))
	release()
	if status, err := child.Wait(); err != nil || status != 4 {
		t.Errorf("got %d and error %v", status, err)
	}
	text, err := os.ReadFile(file)
	proctest.Must(t, err)
	orphan, err := strconv.Atoi(strings.TrimSpace(string(text)))
	proctest.Must(t, err)
	proctest.Eventually(t, "the orphan has stopped", func() bool { return proctest.ProcessState(orphan) == "T" })
	proctest.Must(t, unix.Kill(orphan, unix.SIGKILL))
	proctest.Eventually(t, "the orphan is reaped", func() bool { return proctest.ProcessState(orphan) == "" })
}

func TestNothingIsReapedUnderHold(t *testing.T) {
	release, releaseOther := reaper.Hold(), reaper.Hold()
	first := fork(t, "exit 1")
	proctest.Eventually(t, "the child has ended", func() bool { return proctest.ProcessState(first) == "Z" })
	// The exit of another child makes the reaper search again, also if that is claimed.
	child := reaper.Claim(fork(t, "exit 2"))
	if status, err := child.Wait(); err != nil || status != 2 {
		t.Errorf("got %d and error %v", status, err)
	}
	releaseOther()
	if proctest.ProcessState(first) != "Z" {
		t.Error("a child was reaped although there is a hold")
	}
	release()
	proctest.Eventually(t, "the child is reaped", func() bool { return proctest.ProcessState(first) == "" })
}

// Probes may be executed in containers at any time, so that some OCI runtime is always at work.
func TestOrphanIsReapedThoughThereAreAlwaysHolds(t *testing.T) {
	release := reaper.Hold()
	defer func() { release() }()
	orphan := fork(t, "exit 1")
	proctest.Eventually(t, "the orphan has ended", func() bool { return proctest.ProcessState(orphan) == "Z" })
	proctest.Eventually(t, "the orphan is reaped", func() bool {
		next := reaper.Hold() // before the previous one is released
		release()
		release = next
		return proctest.ProcessState(orphan) == ""
	})
}

// An OCI runtime may be at work for long. The reaper must leave its children alone.
func TestChildOfAHoldThatLastsIsNotReaped(t *testing.T) {
	defer reaper.Hold()()
	pid := fork(t, "exit 42")
	proctest.Eventually(t, "the child has ended", func() bool { return proctest.ProcessState(pid) == "Z" })
	for range 3 {
		reaper.mu.Lock()
		reaper.searched = time.Now().Add(-searchInterval) // make the next search due
		reaper.mu.Unlock()
		reaper.Hold()()
	}
	if status, err := reaper.Claim(pid).Wait(); err != nil || status != 42 {
		t.Errorf("got %d and error %v", status, err)
	}
}

func TestManyChildren(t *testing.T) {
	var wg sync.WaitGroup
	var orphans []int
	for i := range 100 {
		release := reaper.Hold()
		pid := fork(t, "exit "+strconv.Itoa(i))
		if i%2 == 0 {
			orphans = append(orphans, pid)
			release()
			continue
		}
		child := reaper.Claim(pid)
		release()
		wg.Go(func() {
			if status, err := child.Wait(); err != nil || status != i {
				t.Errorf("child %d: got %d and error %v", i, status, err)
			}
		})
	}
	wg.Wait()
	proctest.Eventually(t, "all orphans are reaped", func() bool {
		for _, pid := range orphans {
			if proctest.ProcessState(pid) != "" {
				return false
			}
		}
		return true
	})
}

// A claimed zombie hides others from the reaper (see reapAll). They must be reaped after it.
func TestOrphansBehindAClaimedZombie(t *testing.T) {
	release := reaper.Hold()
	claimed := fork(t, "exit 5")
	proctest.Eventually(t, "the claimed child has ended", func() bool { return proctest.ProcessState(claimed) == "Z" })
	orphan := fork(t, "exit 6")
	proctest.Eventually(t, "the orphan has ended", func() bool { return proctest.ProcessState(orphan) == "Z" })
	child := reaper.Claim(claimed)
	release()
	if status, err := child.Wait(); err != nil || status != 5 {
		t.Errorf("got %d and error %v", status, err)
	}
	proctest.Eventually(t, "the orphan is reaped", func() bool { return proctest.ProcessState(orphan) == "" })
}

func TestChildrenOfPackageExecAreNotStolenUnderHold(t *testing.T) {
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				fork(t, "exit 7") // its exit makes the reaper search
				release := reaper.Hold()
				err := exec.Command("/bin/sh", "-c", "exit 8").Run()
				release()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 8 {
					t.Errorf("got %v, want exit status 8", err)
				}
			}
		})
	}
	wg.Wait()
}
