package shim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// A shim is upgraded in place: its process executes the new program (execve(2)), and keeps its
// pid, its children and the files that stay open. Nobody but the caller of `-upgrade` notices:
//
//	old program                             new program
//	───────────                             ───────────
//	gate: nothing is under way any more
//	connections: nothing is read any more
//	events: none is being sent
//	tasks: copies of streams stop
//	write the state down ──── memfd ──────► read it
//	execve ───────────────────────────────► tasks, events, connections: go on
//
// A connection goes along with the requests that have not been answered, such as those that
// wait for the end of a container. The new program reads them once more. One of them is the
// request for the upgrade, which the new program answers.

const (
	// upgradeService is the ttrpc service of every shim through which `-upgrade` asks.
	upgradeService = "containerd.shim.pause.v1.Program"
	// upgradeMethod takes a CreateSandboxRequest: the sandbox id is a token of the caller's,
	// and the bundle path that of the new program. It answers with a RuntimeVersion.
	upgradeMethod = "Upgrade"

	// stateEnv is the environment variable that has the number of the open file with the
	// state of the program before this one.
	stateEnv = "PAUSE_SHIM_STATE"

	// noAction ends the arguments of an upgraded shim.
	noAction = "--"

	// stateFormat is changed when a program can no longer read what another has written.
	stateFormat = 1

	// closeLimit is how long the shim waits for what is under way, and pauseLimit how long it
	// does not answer at most: containerd waits 2 s for the state of a task.
	closeLimit = 15 * time.Second
	pauseLimit = time.Second

	// checkLimit is how long the new program may take to look at the state.
	checkLimit = 20 * time.Second
)

// state is what a shim process writes down for another program.
type state struct {
	Format  int    `json:"format"`
	Version string `json:"version"` // of the program that has written it, for messages
	Token   string `json:"token"`   // of the request for the upgrade

	Shared       bool            `json:"shared,omitempty"`
	Bundle       string          `json:"bundle"`
	Debug        bool            `json:"debug,omitempty"`
	TTRPCAddress string          `json:"ttrpc_address"`
	Options      *HandlerOptions `json:"options"`

	Socket   string          `json:"socket"`
	Listener int             `json:"listener"`
	Peers    []savedPeer     `json:"peers"`
	Seats    savedSeats      `json:"seats"`
	Removed  *savedRemoval   `json:"removed,omitempty"`
	Events   []savedEvent    `json:"events,omitempty"`
	Tasks    json.RawMessage `json:"tasks"`
}

// upgrader replaces the program of a shim process.
type upgrader struct {
	call       *call
	process    *serverProcess
	bootstrap  *bootstrap
	socket     net.Listener
	socketPath string
	end        context.Context // ends when a signal asks the process to end
	token      string          // of the upgrade that has brought this program; empty if there was none

	mu sync.Mutex // held over an upgrade
}

// register serves requests for upgrades.
func (u *upgrader) register(server *ttrpc.Server) {
	server.RegisterService(upgradeService, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		upgradeMethod: func(ctx context.Context, unmarshal func(any) error) (any, error) {
			var r sandboxapi.CreateSandboxRequest
			if err := unmarshal(&r); err != nil {
				return nil, err
			}
			if u.token == "" || r.SandboxID != u.token {
				if err := u.upgrade(ctx, r.SandboxID, r.BundlePath); err != nil {
					return nil, fmt.Errorf("the shim goes on with version %s: %w", u.call.config.Version, err)
				}
			}
			return &types.RuntimeVersion{Version: u.call.config.Version, Revision: u.call.config.Revision}, nil
		},
	}})
}

// upgrade executes the program at a path. It returns only if that was not possible; then the
// shim goes on as before.
func (u *upgrader) upgrade(ctx context.Context, token, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("the program %q is not an absolute path: %w", path, errdefs.ErrInvalidArgument)
	}
	// The new program opens what cannot be handed over, and could not go back if it failed.
	if !hasSpareFiles() {
		return fmt.Errorf("the shim's limit of open files (RLIMIT_NOFILE) is too near: %w", errdefs.ErrResourceExhausted)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	// A rehearsal shows whether the program understands the state, before there is no way back.
	var rehearsed []byte
	err := u.paused(ctx, func(ctx context.Context) (err error) {
		rehearsed, _, err = u.write(ctx, token)
		return err
	})
	if err != nil {
		return err
	}
	if err := u.check(ctx, path, token, rehearsed); err != nil {
		return err
	}
	return u.paused(ctx, func(ctx context.Context) error {
		data, files, err := u.write(ctx, token)
		if err != nil {
			return err
		}
		return u.execute(path, data, files)
	})
}

// paused calls f while nothing in the shim changes.
func (u *upgrader) paused(ctx context.Context, f func(ctx context.Context) error) error {
	p := u.process
	busy, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	if err := p.gate.close(busy); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer p.gate.open()
	ctx, cancel = context.WithTimeout(ctx, pauseLimit)
	defer cancel()
	defer p.peers.release()
	if err := p.peers.hold(ctx, p.gate.handled); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	defer p.Events.release()
	if err := p.Events.hold(ctx); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	if u.isEnding() {
		return fmt.Errorf("the shim is about to end: %w", errdefs.ErrUnavailable)
	}
	defer p.Continue()
	return f(ctx)
}

// isEnding says whether the shim has been asked to end.
func (u *upgrader) isEnding() bool {
	select {
	case <-u.process.ended:
		return true
	case <-u.end.Done():
		return true
	default:
		return false
	}
}

// write writes the state down, while nothing changes. It returns the descriptors that have to
// be open in the other program.
func (u *upgrader) write(ctx context.Context, token string) (data []byte, files []int, err error) {
	p := u.process
	tasks, files, err := p.Save(ctx)
	if err != nil {
		return nil, nil, err
	}
	events, err := p.Events.save()
	if err != nil {
		return nil, nil, err
	}
	add := func(socket any) int {
		number := numberOf(socket)
		if number >= 0 {
			files = append(files, number)
		}
		return number
	}
	data, err = json.Marshal(state{
		Format: stateFormat, Version: u.call.config.Version, Token: token,
		Shared: p.Shared, Bundle: p.Bundle, Debug: p.Debug, TTRPCAddress: u.bootstrap.ttrpcAddress, Options: p.Options,
		Socket: u.socketPath, Listener: add(u.socket), Peers: p.peers.save(func(conn net.Conn) int { return add(conn) }),
		Seats: p.seats.save(), Removed: p.answers.save(), Events: events, Tasks: tasks,
	})
	return data, files, err
}

// numberOf returns the descriptor of a socket of package net; -1 if it is closed.
func numberOf(socket any) int {
	number := -1
	if s, ok := socket.(syscall.Conn); ok {
		if conn, err := s.SyscallConn(); err == nil {
			_ = conn.Control(func(fd uintptr) { number = int(fd) })
		}
	}
	return number
}

// inherit lets files stay open when the process executes a program, or not, as is usual
// (FD_CLOEXEC). While they stay open, the process must start no other program.
func inherit(files []int, stay bool) error {
	flag := unix.FD_CLOEXEC
	if stay {
		flag = 0
	}
	for _, fd := range files {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag); err != nil {
			return fmt.Errorf("cannot take file %d along: %w", fd, os.NewSyscallError("fcntl", err))
		}
	}
	return nil
}

// check has a program look whether it could take over a state. A program that can says the
// state's token.
func (u *upgrader) check(ctx context.Context, path, token string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-check-state")
	cmd.Stdin = bytes.NewReader(data)
	var said, complaint beginning
	cmd.Stdout, cmd.Stderr = &said, &complaint
	cmd.WaitDelay = time.Second
	err := u.process.RunCommand(cmd)
	if err == nil && string(said) != token {
		err = errors.New("it is not a program of this shim")
	}
	if err != nil {
		if text := bytes.TrimSpace(complaint); len(text) > 0 {
			err = fmt.Errorf("%w: %s", err, text)
		}
		return fmt.Errorf("%s cannot take over: %w: %w", path, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// beginning keeps the beginning of what is written to it.
type beginning []byte

// Write implements [io.Writer].
func (b *beginning) Write(data []byte) (int, error) {
	const limit = 1 << 10
	*b = append(*b, data[:min(len(data), limit-len(*b))]...)
	return len(data), nil
}

// execute executes a program in place of this one. It returns only with an error.
func (u *upgrader) execute(path string, data []byte, files []int) error {
	memory, err := sealedFile(data)
	if err != nil {
		return err
	}
	defer memory.Close()
	files = append(files, int(memory.Fd()))
	// The name tells whether the shim is shared. There is no action any more (see detach), and
	// nothing that package entry could take for one.
	args := slices.DeleteFunc(slices.Clone(os.Args), func(arg string) bool { return arg == "" || arg[0] == 0 || arg == noAction })
	args = append(args, noAction)
	env := append(serverEnvironment(os.Environ()), stateEnv+"="+strconv.Itoa(int(memory.Fd())))
	defer func() { _ = inherit(files, false) }()
	if err := inherit(files, true); err != nil {
		return err
	}
	return fmt.Errorf("cannot execute %s: %w", path, syscall.Exec(path, args, env))
}

// sealedFile returns a file in memory that cannot be changed.
func sealedFile(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("shim state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("cannot make a file for the state: %w", os.NewSyscallError("memfd_create", err))
	}
	f := os.NewFile(uintptr(fd), "shim state")
	_, err = f.Write(data)
	if err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write the state down: %w", err)
	}
	return f, nil
}

// takeFile returns a file that the program before this one has left open. It is not passed on to
// other programs.
func takeFile(fd int, name string) *os.File {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// readState reads a state that another program has written.
func readState(r io.Reader) (*state, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("cannot read the shim's state: %w", err)
	}
	var format struct {
		Format  int    `json:"format"`
		Version string `json:"version"`
	}
	if err := json.Unmarshal(data, &format); err != nil {
		return nil, fmt.Errorf("cannot decode the shim's state: %w", err)
	}
	if format.Format != stateFormat {
		return nil, fmt.Errorf("the shim's state has format %d, of version %s, and this program reads %d", format.Format, format.Version, stateFormat)
	}
	// What this program does not know it would lose.
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	s := new(state)
	if err := decoder.Decode(s); err != nil {
		return nil, fmt.Errorf("cannot decode the shim's state, of version %s: %w", format.Version, err)
	}
	if s.Options == nil || s.Options.Runc == nil {
		return nil, fmt.Errorf("the shim's state, of version %s, has no options", format.Version)
	}
	return s, nil
}

// checkState looks whether this program could take over the state on standard input.
func (c *call) checkState() error {
	s, err := readState(c.stdin)
	if err != nil {
		return err
	}
	if err := c.config.CheckSaved(s.Tasks); err != nil {
		return err
	}
	_, err = fmt.Fprint(c.stdout, s.Token)
	return err
}

// takeOver goes on as the shim that the program before this one was.
func (c *call) takeOver(ctx context.Context, number string) error {
	os.Unsetenv(stateEnv)
	restoreEnvironment()
	fd, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("cannot decode $%s: %w", stateEnv, err)
	}
	memory := takeFile(fd, "shim state")
	s, err := readState(memory)
	memory.Close()
	if err != nil {
		return err
	}
	logs, err := openLog("", s.Debug) // it is where it was
	if err != nil {
		return err
	}
	end, signaled := context.WithCancel(ctx)
	defer signaled()
	handleSignals(signaled, logs)
	socket := takeFile(s.Listener, s.Socket)
	removed := sync.OnceValue(func() error { return removeSocket(s.Socket) })
	defer func() { _ = removed() }()
	ready := make(chan struct{})
	close(ready)
	b := &bootstrap{ttrpcAddress: s.TTRPCAddress, debug: s.Debug, options: s.Options}
	t := tenancy{seats: s.Seats.Limit, shared: s.Shared}
	p, err := c.newServerProcess(b, t, s.Seats.restore(unixScheme+s.Socket), s.Bundle, s.Socket, ready)
	if err != nil {
		return err
	}
	p.Saved, p.before, p.upgrader.token = s.Tasks, s.Peers, s.Token
	p.answers.restore(s.Removed)
	if t.shared {
		p.seats.log = &sharedLog{logs, s.Seats.Log}
		if err := prepareShared(); err != nil {
			return err
		}
	}
	if err := p.Events.restore(s.Events); err != nil {
		return err
	}
	// The new program may have another name.
	if recorded, err := recordedProcess(s.Bundle); err == nil && recorded.Pid == os.Getpid() {
		if err := recordProcess(s.Bundle); err != nil {
			log.L.WithError(err).Warn("containerd may leave this shim behind if it gives it up")
		}
	}
	log.L.WithField("from", s.Version).WithField("to", c.config.Version).Info("the shim has been upgraded in place")
	return c.serveTasks(ctx, end, p, socket, removed)
}
