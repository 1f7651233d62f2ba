package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// daemonDeadline is how long the daemon may take to answer, or to end.
func (n *Node) daemonDeadline() time.Duration { return n.options.Patience * time.Minute }

// DaemonPid is the pid of containerd, 0 if it does not run.
func (n *Node) DaemonPid() int {
	if n.daemon == nil {
		return 0
	}
	select {
	case <-n.done: // it has ended by itself
		return 0
	default:
		return n.daemon.Process.Pid
	}
}

// LogFile is the path of the daemon's log. It survives restarts of the daemon.
func (n *Node) LogFile() string { return filepath.Join(n.Dir, "log") }

// LogTail returns the last lines of the daemon's log.
func (n *Node) LogTail(lines int) string { return tail(n.LogFile(), lines) }

func (n *Node) startDaemon(ctx context.Context) error {
	path, err := n.LookPath("containerd")
	if err != nil {
		return err
	}
	log, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(path, "-c", n.configFile())
	cmd.Env = n.env()
	cmd.Stdout, cmd.Stderr = log, log
	// A ^C at the terminal is for the tests, which then stop the daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start containerd: %w", err)
	}
	n.daemon, n.done = cmd, make(chan struct{})
	done := n.done
	go func() { cmd.Wait(); close(done) }() //nolint:errcheck // how it ended is in its log

	ctx, cancel := context.WithTimeout(ctx, n.daemonDeadline())
	defer cancel()
	go func() {
		select {
		case <-done: // without the daemon there is nothing to wait for
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := n.connect(ctx); err != nil {
		return fmt.Errorf("cannot connect to containerd: %w\n%s", err, n.LogTail(20))
	}
	return nil
}

// Stop ends the daemon with SIGTERM. Pods go on.
func (n *Node) Stop() error { return n.endDaemon(syscall.SIGTERM) }

// Kill ends the daemon with SIGKILL. Pods go on.
func (n *Node) Kill() error { return n.endDaemon(syscall.SIGKILL) }

// Restart starts the daemon again after Stop, Kill, or an end of its own.
func (n *Node) Restart(ctx context.Context) error {
	if n.DaemonPid() != 0 {
		return errors.New("cannot restart containerd: it runs")
	}
	n.disconnect()
	return n.startDaemon(ctx)
}

// Upgrade stops the daemon and starts the containerd of another directory, with the
// same files and a configuration of its own. Pods go on.
func (n *Node) Upgrade(ctx context.Context, containerd string) error {
	if err := n.Stop(); err != nil {
		return err
	}
	if err := n.useContainerd(containerd); err != nil {
		return err
	}
	return n.startDaemon(ctx)
}

// MoveSockets starts the daemon again with the node's own directory for the sockets of
// shims, after an Upgrade from one that could not be told where they are. Pods go on.
func (n *Node) MoveSockets(ctx context.Context) error {
	if err := n.Stop(); err != nil {
		return err
	}
	n.oldSockets = false
	if err := n.writeConfig(); err != nil {
		return err
	}
	return n.startDaemon(ctx)
}

// useContainerd makes the containerd of a directory, or that of Path if it is "",
// the one that is started next.
func (n *Node) useContainerd(dir string) error {
	dirs := append(append([]string{n.programDir()}, n.options.Path...), os.Getenv("PATH"), "/usr/sbin", "/sbin")
	if dir != "" {
		dirs = append([]string{dir}, dirs...)
	}
	n.path = strings.Join(dirs, ":")
	path, err := n.LookPath("containerd")
	if err != nil {
		return err
	}
	if n.Version, n.Release, err = versionOf(path); err != nil {
		return err
	}
	if !n.Version.hasSocketDir() {
		if !isolated() {
			return fmt.Errorf("cannot run containerd %s in the host's %s: the program is not isolated", n.Release, runDir)
		}
		// Later ones have the same by default, and look for shims there.
		n.oldSockets = true
	}
	return n.writeConfig()
}

func (n *Node) endDaemon(sig syscall.Signal) error {
	n.disconnect()
	if n.daemon == nil {
		return nil
	}
	if err := n.daemon.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("cannot stop containerd: %w", err)
	}
	select {
	case <-n.done:
	case <-time.After(n.daemonDeadline()):
		n.daemon.Process.Kill() //nolint:errcheck // it has ended, or it cannot be helped
		<-n.done
		n.daemon = nil
		return fmt.Errorf("containerd did not end in %s after %s\n%s", n.daemonDeadline(), sig, n.LogTail(20))
	}
	n.daemon = nil
	return nil
}
