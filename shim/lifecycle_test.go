package shim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/sys"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"containerd-shim-pause-v2/shim/entry"
)

// These tests run the binary as containerd 2.4 does, see daemon_test.go.

func TestLifeOfAShim(t *testing.T) {
	events := newReceiver(t)
	events.start()
	d := newDaemonSide(t)
	d.events = events.path
	bundle := d.bundle("")

	s := d.mustStart("c1", bundle)
	want := socketAddress(d.socketDir, "/run/test/containerd.sock", "test", "c1")
	if unixScheme+s.path != want {
		t.Errorf("the address is %s, want %s", s.path, want)
	}
	if got, want := s.do("process"), "test c1 "+bundle+" false"; got != want {
		t.Errorf("the process is %q, want %q", got, want)
	}
	if group, err := unix.Getpgid(s.pid); err != nil || group != s.pid {
		t.Errorf("its process group is %d, error %v", group, err)
	}
	daemon, err := sys.GetOOMScoreAdj(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if score, err := sys.GetOOMScoreAdj(s.pid); err != nil || score != min(daemon+1, sys.OOMScoreAdjMax) {
		t.Errorf("its OOM score is %d with %d for its daemon, error %v", score, daemon, err)
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.pid))
	if args := strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00"); err != nil || strings.Join(args[1:], " ") != "-namespace test -id c1" {
		t.Errorf("its command line is %q, error %v", args, err)
	}
	s.do("publish")
	s.do("shutdown")
	if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("it ended with %v", status)
	}
	if exists(t, s.path) {
		t.Error("it left its socket")
	}
	if got := strings.Join(events.topics(), " "); got != "/test/publish /test/stop" {
		t.Errorf("events were %s", got)
	}
}

func TestTheRPCThatEndsAServerIsAnswered(t *testing.T) {
	d := newDaemonSide(t)
	for range 10 {
		s := d.mustStart("c1", d.bundle(""))
		s.do("shutdown")
		s.client.Close() // The server need not wait for us.
		s.wait()
	}
}

func TestServerTakesOrphans(t *testing.T) {
	orphan := 0
	t.Cleanup(func() { // After the server's cleanup, when the orphan is a child of this process.
		if orphan > 0 {
			unix.Kill(orphan, unix.SIGKILL)
			unix.Wait4(orphan, nil, 0, nil)
		}
	})
	d := newDaemonSide(t)
	s := d.mustStart("c1", d.bundle(""))
	var err error
	if orphan, err = strconv.Atoi(s.do("orphan")); err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", orphan))
	if err != nil {
		t.Fatal(err)
	}
	// The fields behind the name are state and parent (proc(5)).
	_, rest, _ := strings.Cut(string(stat), ") ")
	if parent := strings.Fields(rest)[1]; parent != strconv.Itoa(s.pid) {
		t.Errorf("its parent is %s, not the server (%d)", parent, s.pid)
	}
}

func TestServerLetsInNoOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be another user")
	}
	d := newDaemonSide(t)
	s := d.mustStart("c1", d.bundle(""))
	// The check must hold without the modes of the file system.
	for path, mode := range map[string]os.FileMode{filepath.Dir(d.socketDir): 0o711, d.socketDir: 0o711, s.path: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	conn := dialAs(t, 65534, s.path)
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read %d bytes, error %v, want the connection closed", n, err)
	}
	s.do("pid")
}

func TestEnvironmentOfAServer(t *testing.T) {
	for name, tc := range map[string]struct {
		godebug   string // of containerd; "" for none
		hugePages bool   // the heap may have some
	}{
		"no GODEBUG":                    {"", false},
		"one of others":                 {"GODEBUG=asynctimerchan=0", true},
		"one of others, with the right": {"GODEBUG=asynctimerchan=0,disablethp=1", false},
		"an empty one":                  {"GODEBUG=", true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonSide(t)
			d.events = "/run/test/ttrpc"
			d.env = append(d.env, "GOMAXPROCS=4", "TTRPC_ADDRESS=/wrong")
			if tc.godebug != "" {
				d.env = append(d.env, tc.godebug)
			}
			s := d.mustStart("c1", d.bundle(""))

			environment := strings.Split(s.do("environment"), "\n")
			if !slices.Contains(environment, "TTRPC_ADDRESS=/run/test/ttrpc") {
				t.Errorf("TTRPC_ADDRESS is not in the environment %q", environment)
			}
			// The OCI runtime, a Go program as well, gets what containerd gave, and must not be
			// held to one P.
			var got string
			for _, entry := range environment {
				if strings.HasPrefix(entry, "GOMAXPROCS=") {
					t.Errorf("%s is in the environment", entry)
				}
				if strings.HasPrefix(entry, "GODEBUG=") {
					got += entry
				}
			}
			if got != tc.godebug {
				t.Errorf("the environment has %q, want %q", got, tc.godebug)
			}
			// Only the server's own heap may be without huge pages (VM_NOHUGEPAGE, "nh" in
			// smaps, proc(5)). Its child processes must find huge pages as the host has them.
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.pid))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(status), "THP_enabled:\t0") {
				t.Error("huge pages are off for the process and its descendants")
			}
			address, err := strconv.ParseUint(s.do("heap"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if flags := vmFlags(t, s.pid, address); strings.Contains(flags, " nh") == tc.hugePages {
				t.Errorf("flags of the heap: %s", flags)
			}
		})
	}
}

func TestDeleteAfterAKilledShim(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	s := d.mustStart("c1", bundle)
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wait()
	if !exists(t, s.path) {
		t.Fatal("there is no socket left to remove")
	}

	for _, args := range [][]string{{"-bundle", bundle, "delete"}, {"delete"}} {
		stdout, stderr, err := d.call(bundle, nil, append([]string{"-namespace", "test", "-id", "c1", "-address", "/run/test/containerd.sock"}, args...)...)
		if err != nil || stderr != "" {
			t.Fatalf("%v: %s", err, stderr)
		}
		var response taskapi.DeleteResponse
		if err := proto.Unmarshal([]byte(stdout), &response); err != nil {
			t.Fatal(err)
		}
		if response.Pid != 42 || response.ExitStatus != 137 || response.ExitedAt.AsTime().UnixNano() != 1700000000000000005 {
			t.Errorf("the answer is %v", &response)
		}
		if got, err := os.ReadFile(filepath.Join(bundle, "deleted")); err != nil || string(got) != "test c1 "+bundle {
			t.Errorf("Delete was called for %q, error %v", got, err)
		}
		if exists(t, s.path) {
			t.Error("the socket is left")
		}
	}
}

// containerd logs what is printed, and passes it on in messages.
func TestDeleteAnswersEvenIfSomethingIsLeft(t *testing.T) {
	d := newDaemonSide(t)
	d.env = []string{programEnv + "=fail", noExitDelay}
	bundle := d.bundle("")
	stdout, stderr, err := d.call(bundle, nil, "-namespace", "test", "-id", "c1", "-bundle", bundle, "delete")
	var response taskapi.DeleteResponse
	if err := errors.Join(err, proto.Unmarshal([]byte(stdout), &response)); err != nil || response.ExitStatus != 137 {
		t.Errorf("the answer is %v, error %v", &response, err)
	}
	if !strings.HasPrefix(stderr, "cannot remove all of c1: \ufffdüü") || !utf8.ValidString(stderr) || len(stderr) > maxText+1 {
		t.Errorf("%d bytes are printed, of which UTF-8 is %t: %.40q", len(stderr), utf8.ValidString(stderr), stderr)
	}
}

// `delete` need not look for what the shim has removed itself: package entry answers.
func TestAnswersToDelete(t *testing.T) {
	d := newDaemonSide(t)
	own, member := d.bundle(""), d.bundle("c1")
	s := d.mustStart("c1", own)
	s.do("removed " + member)
	if a := answerIn(t, member); a == nil || a.Pid != 8 || a.ExitStatus != 2 || a.ExitedAt.AsTime().UnixNano() != 1700000000000000007 {
		t.Errorf("the answer for a member is %v", a)
	}
	s.do("removed " + filepath.Join(t.TempDir(), "gone"))
	s.do("removed")
	if a := answerIn(t, own); a != nil {
		t.Errorf("the process is there, and the answer is %v", a)
	}
	s.do("shutdown")
	s.wait()
	if a := answerIn(t, own); a == nil || a.Pid != 7 || a.ExitStatus != 1 || a.ExitedAt.AsTime().UnixNano() != 1700000000000000006 {
		t.Errorf("the answer is %v", a)
	}
}

func answerIn(t *testing.T, bundle string) *taskapi.DeleteResponse {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bundle, entry.AnswerFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var response taskapi.DeleteResponse
	if err := errors.Join(err, proto.Unmarshal(data, &response)); err != nil {
		t.Fatal(err)
	}
	return &response
}

// The socket is not recorded in the last member's bundle, but goes with it.
func TestAnswerToTheLastDelete(t *testing.T) {
	for name, tc := range map[string]struct {
		between func(s *server, bundle string)
		want    bool
	}{
		"the last member": {func(s *server, _ string) { s.do("shutdown") }, true},
		"another bundle in its place": {func(s *server, bundle string) {
			if err := errors.Join(os.Rename(bundle, bundle+".old"), os.Mkdir(bundle, 0o700)); err != nil {
				t.Fatal(err)
			}
			s.do("shutdown")
		}, false},
		"the shim is asked to end": {func(s *server, _ string) {
			if err := unix.Kill(s.pid, unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonSide(t)
			own, last := d.bundle(""), d.bundle("c1")
			s := d.mustStart("c1", own)
			s.do("removed")
			s.do("removed " + d.bundle("c1"))
			s.do("removed " + last)
			if a := answerIn(t, last); a != nil {
				t.Errorf("the process is there, and the answer is %v", a)
			}
			tc.between(s, last)
			s.wait()
			if a := answerIn(t, last); (a != nil) != tc.want {
				t.Errorf("the answer is %v", a)
			}
			if a := answerIn(t, own); a != nil {
				t.Errorf("the answer of a bundle that containerd has removed before is %v", a)
			}
		})
	}
}

// containerd's deadline has passed while the socket directory was locked.
func TestShimEndsIfItsStarterIsKilled(t *testing.T) {
	d := newDaemonSide(t)
	if err := os.MkdirAll(d.socketDir, 0o700); err != nil {
		t.Fatal(err)
	}
	unlock, err := lockDir(d.socketDir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	cmd := exec.Command("/proc/self/exe", "-namespace", "test", "-id", "c1", "-address", "/run/test/containerd.sock", "start")
	cmd.Dir = d.bundle("")
	cmd.Env = append(os.Environ(), d.env...)
	params, err := proto.Marshal(&bootapi.BootstrapParams{InstanceID: "c1", Namespace: "test", SocketDir: &d.socketDir})
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = bytes.NewReader(params)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The child that is to become the shim.
	children := fmt.Sprintf("/proc/%d/task/%[1]d/children", cmd.Process.Pid)
	for {
		if text, err := os.ReadFile(children); err != nil || len(text) > 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Every process that held its output open has ended.
	if answer, err := io.ReadAll(out); err != nil || len(answer) > 0 {
		t.Errorf("the answer is %q, error %v", answer, err)
	}
	_ = cmd.Wait()
	var status unix.WaitStatus
	if _, err := unix.Wait4(-1, &status, 0, nil); err != nil || status.ExitStatus() != 1 {
		t.Errorf("the shim ended with %v, error %v", status, err)
	}
}

func TestNoAnswerToDeleteOfAKilledShim(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	s := d.mustStart("c1", bundle)
	s.do("removed")
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.wait()
	if exists(t, filepath.Join(bundle, entry.AnswerFile)) || !exists(t, s.path) {
		t.Error("delete is told that nothing is left, and the socket is")
	}
}

func TestStartThatFailsLeavesNothing(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	result, err := d.start("c1", bundle, &options.Options{ShimCgroup: "/no/such/cgroup"})
	if err == nil || !strings.Contains(err.Error(), "/no/such/cgroup") || !strings.Contains(err.Error(), "io.containerd.test.v2: ") {
		t.Errorf("got %v and error %v, want one that names the cgroup", result, err)
	}
	sockets, err := os.ReadDir(d.socketDir)
	if err != nil || len(sockets) != 0 {
		t.Errorf("sockets %v are left, error %v", sockets, err)
	}
	// Orphans become children of this process.
	if pid, err := unix.Wait4(-1, nil, 0, nil); err != unix.ECHILD {
		t.Errorf("process %d is left, error %v", pid, err)
	}
}

// containerd has ended: nobody reads the answer.
func TestStartThatCannotAnswer(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	params := encode(t, &bootapi.BootstrapParams{
		InstanceID: "a", Namespace: "test", ContainerdGrpcAddress: "/run/test/containerd.sock", SocketDir: &d.socketDir,
	})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	var stderr bytes.Buffer
	cmd := exec.Command("/proc/self/exe", "-namespace", "test", "-id", "a", "start")
	cmd.Dir, cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = bundle, append(os.Environ(), d.env...), bytes.NewReader(params), w, &stderr
	_ = cmd.Run()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(stderr.String(), "cannot write answer to containerd: "+unix.EPIPE.Error()) {
		t.Errorf("exit code %d, standard error %q", code, stderr.String())
	}
	if left, err := os.ReadDir(d.socketDir); err != nil || len(left) != 0 {
		t.Errorf("left are %v, error %v", left, err)
	}
}

func TestServerThatCannotServeRemovesItsSocketAndSaysWhy(t *testing.T) {
	d := newDaemonSide(t)
	d.env = []string{programEnv + "=fail", noExitDelay}
	bundle := d.bundle("")
	log := openLogAsContainerd(t, bundle)
	result, err := d.start("c1", bundle, nil)
	if err != nil {
		t.Fatal(err)
	}
	if line := readUntil(t, log, "on demand"); !strings.HasPrefix(line, "io.containerd.test.v2: ") || !utf8.ValidString(line) {
		t.Errorf("the log is %q", line)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(-1, &status, 0, nil); err != nil || status.ExitStatus() != 1 {
		t.Errorf("it ended with %v, error %v", status, err)
	}
	if exists(t, strings.TrimPrefix(result.Address, unixScheme)) {
		t.Error("it left its socket")
	}
}

func TestSignalsToAServer(t *testing.T) {
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			d := newDaemonSide(t)
			s := d.mustStart("c1", d.bundle(""))
			if err := unix.Kill(s.pid, signal); err != nil {
				t.Fatal(err)
			}
			if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 || exists(t, s.path) {
				t.Errorf("it ended with %v, its socket exists: %t", status, exists(t, s.path))
			}
		})
	}
	t.Run("SIGUSR1", func(t *testing.T) {
		d := newDaemonSide(t)
		bundle := d.bundle("")
		log := openLogAsContainerd(t, bundle)
		s := d.mustStart("c1", bundle)
		if err := unix.Kill(s.pid, unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		readUntil(t, log, "=== goroutine stacks")
		readUntil(t, log, "goroutine ")
		readUntil(t, log, "=== end of stacks")
		s.do("pid")
	})
}

func TestServerOutlivesItsLog(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	log := openLogAsContainerd(t, bundle)
	s := d.mustStart("c1", bundle)
	s.do("log") // Nobody reads.
	readUntil(t, log, "message 0,")
	log.Close() // containerd is gone.
	s.do("log")
	s.do("pid")
}

func TestServerOnAGivenSocket(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	path := filepath.Join(shortDir(t), "given")
	cmd := exec.Command("/proc/self/exe", "-namespace", "test", "-id", "c1", "-socket", path)
	cmd.Dir = bundle
	cmd.Env = append(os.Environ(), d.env...)
	log := openLogAsContainerd(t, bundle)
	cmd.Args = append(cmd.Args, "-debug")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	readUntil(t, log, "shim serves")
	s := connect(t, path)
	if got := s.do("process"); !strings.HasSuffix(got, " true") {
		t.Errorf("the process is %q, want it in debug mode", got)
	}
	s.do("shutdown")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if exists(t, path) {
		t.Error("it left its socket")
	}
}
