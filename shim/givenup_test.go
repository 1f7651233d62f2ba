package shim

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mustDelete calls `delete` for a bundle, and returns what it prints to standard error.
func (d *daemonSide) mustDelete(id, bundle string) (warnings string) {
	d.t.Helper()
	_, stderr, err := d.call(bundle, nil, "-namespace", "test", "-id", id, "-address", "/run/test/containerd.sock", "-bundle", bundle, "delete")
	if err != nil {
		d.t.Fatalf("%v: %s", err, stderr)
	}
	if !exists(d.t, filepath.Join(bundle, "deleted")) {
		d.t.Error("what is left has not been removed")
	}
	return stderr
}

func TestDeleteEndsAShimThatContainerdHasGivenUp(t *testing.T) {
	for name, giveUp := range map[string]func(s *server) error{
		"its socket is gone":                func(s *server) error { return os.Remove(s.path) },
		"it does not answer":                func(s *server) error { return unix.Kill(s.pid, unix.SIGSTOP) },
		"only the connection was closed":    func(s *server) error { return s.client.Close() },
		"a member of its group was removed": func(s *server) error { s.do("removed " + t.TempDir()); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonSide(t)
			bundle := d.bundle("c1")
			s := d.mustStart("c1", bundle)
			if err := giveUp(s); err != nil {
				t.Fatal(err)
			}
			if stderr := d.mustDelete("c1", bundle); stderr != "" {
				t.Errorf("it warns: %s", stderr)
			}
			// It has ended before the answer.
			var status unix.WaitStatus
			if pid, err := unix.Wait4(s.pid, &status, unix.WNOHANG, nil); pid != s.pid || err != nil || status.Signal() != unix.SIGKILL {
				t.Errorf("got process %d, which ended with %v, error %v", pid, status, err)
			}
			if exists(t, s.path) {
				t.Error("its socket is left")
			}
		})
	}
}

func TestDeleteLeavesAShimThatServesOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		group string // of the first; "" for its id
		id    string // of the container to delete
		do    string // through an RPC, before the delete
	}{
		"the first has been removed":           {id: "c1", do: "removed"},
		"the first, of a group with a name":    {group: "g", id: "c1"},
		"another of the group":                 {id: "c2"},
		"another of a group that has a name":   {group: "g", id: "c2"},
		"another, when the first has gone too": {id: "c2", do: "removed"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonSide(t)
			group := tc.group
			if group == "" {
				group = "c1"
			}
			bundles := map[string]string{"c1": d.bundle(group), "c2": d.bundle(group)}
			s := d.mustStart("c1", bundles["c1"])
			if other := d.mustStart("c2", bundles["c2"]); other.pid != s.pid {
				t.Fatalf("%d and %d serve the group", s.pid, other.pid)
			}
			if tc.do != "" {
				s.do(tc.do)
			}
			if stderr := d.mustDelete(tc.id, bundles[tc.id]); stderr != "" {
				t.Errorf("it warns: %s", stderr)
			}
			s.do("pid")
		})
	}
}

// containerd was killed between the RPCs Delete and Shutdown.
func TestDeleteEndsAShimThatServesNothing(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	s := d.mustStart("c1", bundle)
	s.do("removed")
	s.do("serve nothing")
	d.mustDelete("c1", bundle)
	select {
	case <-s.closed:
	case <-time.After(30 * time.Second):
		t.Fatal("it serves on")
	}
	if status := s.wait(); !status.Exited() || status.ExitStatus() != 0 {
		t.Errorf("it ended with %v", status)
	}
}

// A shim that does not answer may serve others.
func TestDeleteTellsOfAShimThatDoesNotAnswer(t *testing.T) {
	d := newDaemonSide(t)
	bundle := d.bundle("")
	s := d.mustStart("c1", bundle)
	s.do("removed")
	if err := unix.Kill(s.pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if stderr := d.mustDelete("c1", bundle); !strings.Contains(stderr, "may still be running") {
		t.Errorf("it prints %q", stderr)
	}
	if err := unix.Kill(s.pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.do("pid")
}

// Another process may have got the pid of a shim that has ended, and a bundle may outlive a
// reboot.
func TestDeleteEndsNoOtherProcess(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	_, is := startOther(t, sleep)
	encode := func(p shimProcess) string {
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for name, tc := range map[string]struct {
		record string
		warns  bool
	}{
		"another start":              {encode(shimProcess{is.Pid, is.Start + 1, is.Name}), false},
		"another program":            {encode(shimProcess{is.Pid, is.Start, "containerd-shim"}), false},
		"nobody has the pid":         {encode(shimProcess{1 << 30, is.Start, is.Name}), false},
		"a group":                    {encode(shimProcess{-is.Pid, is.Start, is.Name}), true},
		"one's own group":            {encode(shimProcess{0, is.Start, is.Name}), true},
		"all processes":              {encode(shimProcess{-1, is.Start, is.Name}), true},
		"init":                       {encode(shimProcess{1, is.Start, is.Name}), true},
		"an empty record":            {"", true},
		"a record that is no object": {"null", true},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemonSide(t)
			bundle := d.bundle("")
			if err := os.WriteFile(filepath.Join(bundle, processFile), []byte(tc.record), 0o600); err != nil {
				t.Fatal(err)
			}
			stderr := d.mustDelete("c1", bundle)
			if warns := strings.Contains(stderr, "may still be running"); warns != tc.warns {
				t.Errorf("it prints %q", stderr)
			}
			if runs, err := is.runs(); err != nil || !runs {
				t.Errorf("the other runs: %t, error %v", runs, err)
			}
		})
	}
}

// startOther starts a program that sleeps, and waits for its name. The kernel sets the new
// name only a moment after the parent sees exec succeed (begin_new_exec in fs/exec.c).
func startOther(t *testing.T, program string) (*exec.Cmd, shimProcess) {
	t.Helper()
	cmd := exec.Command(program, "100000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		p, runs, err := findProcess(cmd.Process.Pid)
		switch {
		case err != nil || !runs || time.Now().After(end):
			t.Fatalf("got %+v, runs: %t, error %v", p, runs, err)
		case p.Name == filepath.Base(program):
			return cmd, p
		}
	}
}

func TestFindProcess(t *testing.T) {
	// A name that looks like the fields after it.
	const name = "a) Z 1 (b"
	program := filepath.Join(t.TempDir(), name)
	sleep, err := exec.LookPath("sleep")
	if err == nil {
		err = os.Symlink(sleep, program)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd, p := startOther(t, program)
	pid := cmd.Process.Pid
	if p.Pid != pid || p.Start == 0 {
		t.Errorf("got %+v of process %d", p, pid)
	}
	if err := p.kill(t.Context()); err != nil {
		t.Error(err)
	}
	zombie, runs, err := findProcess(pid)
	if err != nil || runs || zombie != p {
		t.Errorf("a zombie is %+v, runs: %t, error %v", zombie, runs, err)
	}
	_ = cmd.Wait()
	if _, _, err := findProcess(pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is gone has the error %v", err)
	}
	if err := p.kill(t.Context()); err != nil {
		t.Errorf("the kill of one that is gone has the error %v", err)
	}
}
