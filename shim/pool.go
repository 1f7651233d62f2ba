package shim

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
)

// pool is the set of shared shims that are alike: they serve the same containerd
// namespace for the same containerd, run the same build, and were started with the same
// options. A pod of any of them could as well be in any other. They are numbered; the
// socket of number n is <dir>/<name>-n.
type pool struct{ dir, name string }

// poolPrefix begins the names of the sockets of shared shims.
const poolPrefix = "pool-"

// isShared says whether a socket is that of a shared shim.
func isShared(path string) bool { return strings.HasPrefix(filepath.Base(path), poolPrefix) }

// seatLimit is how long `start` waits for the answer of a shared shim before it tries
// the next. One that does not answer has been stopped, or waits for the disk. It is a
// variable for the tests.
var seatLimit = 3 * time.Second

// mayShare says whether the shim to be started may be a shared one. What is a matter of
// the process and not of the pod cannot be shared: the core scheduling group, which
// all that is forked inherits, and the cgroup of the shim.
func (b *bootstrap) mayShare() bool {
	return os.Getenv(schedCoreEnv) == "" && b.options.Runc.ShimCgroup == ""
}

// poolOf returns the pool for what containerd asks.
func (c *call) poolOf(b *bootstrap, limit int) (pool, error) {
	// An update of the program may keep the version and change the code.
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		return pool{}, fmt.Errorf("cannot find the program: %w", err)
	}
	stat, ok := self.Sys().(*syscall.Stat_t)
	if !ok {
		return pool{}, errors.New("cannot find the program: no inode")
	}
	kind, err := json.Marshal([]any{
		c.namespace, b.grpcAddress, b.ttrpcAddress,
		c.config.Version, c.config.Revision, stat.Dev, stat.Ino, self.ModTime().UnixNano(),
		b.options, limit,
	})
	if err != nil {
		return pool{}, fmt.Errorf("cannot tell the kind of the shim: %w", err)
	}
	sum := sha256.Sum256(kind)
	return pool{b.socketDir, fmt.Sprintf("%s%x", poolPrefix, sum[:16])}, nil
}

func (p pool) path(number int) string {
	return filepath.Join(p.dir, p.name+"-"+strconv.Itoa(number))
}

// numbers returns those of the sockets that exist, in order.
func (p pool) numbers() (numbers []int, err error) {
	entries, err := os.ReadDir(p.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot find shared shims: %w", err)
	}
	for _, e := range entries {
		if text, ok := strings.CutPrefix(e.Name(), p.name+"-"); ok {
			if number, err := strconv.Atoi(text); err == nil {
				numbers = append(numbers, number)
			}
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// join finds a shim that takes the caller in, and returns the path of its socket. ask
// asks the shim at a path. If none does, it returns the socket of a new one, of the
// lowest number that is not in use, for the caller to serve.
func (p pool) join(ctx context.Context, ask func(path string) error) (path string, socket *os.File, err error) {
	for ctx.Err() == nil {
		numbers, err := p.numbers()
		if err != nil {
			return "", nil, err
		}
		next := 0
		for _, number := range numbers {
			err := ask(p.path(number))
			if err == nil {
				return p.path(number), nil, nil
			}
			if number == next && !isNobody(err) {
				next++
			}
		}
		socket, err := claimSocket(p.path(next))
		if err != nil || socket != nil {
			return p.path(next), socket, err
		}
		// Another `start` was faster. Its shim may have room.
	}
	return "", nil, fmt.Errorf("cannot find a shared shim: %w", ctx.Err())
}

// isNobody says whether connect(2) has found no process that listens.
func isNobody(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT)
}

// askForSeat asks the shared shim at path to take in what is in the bundle.
func (c *call) askForSeat(ctx context.Context, path, bundle string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, seatLimit)
	defer cancel()
	return callSeats(ctx, client, takeMethod, c.id, bundle)
}

// startShared is start for a shim that others may share. pod is the id of the sandbox to
// which the container belongs; empty if it belongs to none.
func (c *call) startShared(ctx context.Context, b *bootstrap, starter *starter, pod string) error {
	if pod != "" {
		if path := c.runningShim(pod); path != "" {
			return c.answer(b, unixScheme+path)
		}
	}
	bundle, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("cannot find the bundle: %w", err)
	}
	limit, err := b.options.podsPerShim()
	if err != nil {
		return err
	}
	pool, err := c.poolOf(b, limit)
	if err != nil {
		return err
	}
	path, socket, err := pool.join(ctx, func(path string) error { return c.askForSeat(ctx, path, bundle) })
	if err != nil {
		return err
	}
	if socket == nil {
		return c.answer(b, unixScheme+path)
	}
	return c.become(ctx, b, socket, starter, tenancy{seats: limit, shared: true})
}
