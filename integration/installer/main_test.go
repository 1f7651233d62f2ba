// Package installer tests the installer for Kubernetes nodes with real releases of containerd.
// Each test has a host of its own: a directory with containerd, a configuration, and the
// kernel's file systems, in which the installer runs programs by chroot(2).
//
// `make installer` runs it. These variables say what is tested:
//
//	PAUSE_TEST_PATH        directories of the tools and the shims, as in $PATH, with the
//	                       releases of containerd in subdirectories: containerd-1.6, ...
//	PAUSE_TEST_CONTAINERDS which releases to test: "1.6,2.4"; by default all there are.
//	                       What does not depend on it is tested with that of the tools
package installer

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	searchPath []string // of PAUSE_TEST_PATH
	releases   []string // that are tested
)

// newest is the release of which the tools are; the others have directories of their own.
const newest = "newest"

// isolatedEnv tells this program that it has its own namespaces.
const isolatedEnv = "PAUSE_TEST_INSTALLER_ISOLATED"

func TestMain(m *testing.M) {
	if os.Getenv(installEnv) != "" {
		os.Exit(installAndDie())
	}
	if os.Getenv(isolatedEnv) == "" {
		os.Exit(isolate())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// isolate runs the tests in mount and PID namespaces of their own. Nothing is left of either,
// however the tests end.
func isolate() int {
	dir, err := os.MkdirTemp("", "installer")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir) // What is mounted there is so for the tests only.
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolatedEnv+"=1", "TMPDIR="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: unix.SIGKILL}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot isolate the tests:", err)
		return 1
	}
	return 0
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cannot make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("cannot mount /proc: %w", err)
	}
	searchPath = filepath.SplitList(os.Getenv("PAUSE_TEST_PATH"))
	if len(searchPath) == 0 {
		return errors.New("these tests need a set-up of their own: run `make installer`")
	}
	for _, dir := range searchPath {
		found, err := filepath.Glob(filepath.Join(dir, "containerd-[0-9]*.[0-9]*", "containerd"))
		if err != nil {
			return err
		}
		for _, f := range found {
			releases = append(releases, strings.TrimPrefix(filepath.Base(filepath.Dir(f)), "containerd-"))
		}
	}
	slices.Sort(releases)
	releases = append(releases, newest)
	if s := os.Getenv("PAUSE_TEST_CONTAINERDS"); s != "" {
		releases = strings.Split(s, ",")
	}
	return nil
}

// program finds a program under test, or a tool.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range searchPath {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Fatalf("%s is in none of %q", name, searchPath)
	return ""
}
