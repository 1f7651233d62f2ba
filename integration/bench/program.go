package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"containerd-shim-pause-v2/integration/node"
)

const (
	programGroup   = "The binary"
	programVersion = "`-v`"
	programStart   = "`start`: until containerd can connect"
	programSize    = "size"
)

// program measures the shims' binaries by themselves. Pods that share shims are put into
// one that runs.
func (b *bench) program(ctx context.Context) error {
	for _, e := range b.engines {
		if e.shim != "" && e.shimOf != nil {
			return b.besideShim(ctx, e, b.programs)
		}
	}
	return b.programs(ctx)
}

// besideShim calls f while a shared shim of an engine runs.
func (b *bench) besideShim(ctx context.Context, e *engine, f func(context.Context) error) error {
	path, err := b.shimProgram(e)
	if err != nil {
		return err
	}
	const id = "bench-other"
	defer os.RemoveAll(b.bundle(id))
	if _, err := b.startShim(ctx, path, id); err != nil {
		return err
	}
	return errors.Join(f(ctx), b.endShim(id))
}

func (b *bench) programs(ctx context.Context) error {
	done := b.progress.start("binaries", b.amount.programs*len(b.engines))
	for n := range b.amount.programs {
		err := b.each(n, func(e *engine) error {
			defer done()
			if e.shim == "" {
				return nil
			}
			path, err := b.shimProgram(e)
			if err != nil {
				return err
			}
			if n == 0 {
				st, err := os.Stat(path)
				if err != nil {
					return err
				}
				b.result.add(programGroup, programSize, "MB", e.name, float64(st.Size())/1e6)
			}
			start := time.Now()
			if err := exec.CommandContext(ctx, path, "-v").Run(); err != nil {
				return err
			}
			b.result.add(programGroup, programVersion, "ms", e.name, milliseconds(time.Since(start)))
			id := fmt.Sprintf("bench-%d-%s", n, e.handler)
			defer os.RemoveAll(b.bundle(id))
			took, err := b.startShim(ctx, path, id)
			if err != nil {
				return err
			}
			b.result.add(programGroup, programStart, "ms", e.name, milliseconds(took))
			if e.shimOf != nil {
				return nil // it is in the other shim, until its bundle has gone
			}
			return b.endShim(id)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shimProgram is the path of an engine's shim.
func (b *bench) shimProgram(e *engine) (string, error) {
	return b.node.LookPath(map[string]string{
		node.StockType:  "containerd-shim-runc-v2",
		node.PauseType:  "containerd-shim-pause-v2",
		node.SharedType: "containerd-shim-pause-shared-v2",
	}[e.shim])
}

// namespace is that of the shims that are started without containerd.
const namespace = "bench"

func (b *bench) bundle(id string) string { return filepath.Join(b.node.Dir, id) }

// startShim calls `start` as containerd 2.4 does (core/runtime/v2/command.go), in a new
// bundle.
func (b *bench) startShim(ctx context.Context, path, id string) (took time.Duration, err error) {
	bundle := b.bundle(id)
	if err := os.Mkdir(bundle, 0o700); err != nil {
		return 0, err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte("{}"), 0o600); err != nil {
		return 0, err
	}
	// containerd reads the shim's log there.
	log := filepath.Join(bundle, "log")
	if err := unix.Mkfifo(log, 0o600); err != nil {
		return 0, err
	}
	reader, err := os.OpenFile(log, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer reader.Close()
	address, sockets := b.node.Socket(), filepath.Join(b.node.Dir, "s")
	params, err := proto.Marshal(&bootapi.BootstrapParams{
		InstanceID: id, Namespace: namespace, ContainerdVersion: b.node.Release,
		ContainerdGrpcAddress: address, ContainerdTtrpcAddress: address + ".ttrpc", SocketDir: &sockets,
	})
	if err != nil {
		return 0, err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "-namespace", namespace, "-address", address, "-id", id, "-bundle", bundle, "start")
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = bundle, bytes.NewReader(params), &out, &out
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+address+".ttrpc", "GRPC_ADDRESS="+address, "NAMESPACE="+namespace)
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out.String())
	}
	return time.Since(start), nil
}

// endShim kills a shim, since the stock one does not always heed SIGTERM; its socket goes
// with the node. It may still be about to become one: `start` need not wait for that.
func (b *bench) endShim(id string) error {
	const patience = 10 * time.Second
	pid := 0
	for start := time.Now(); time.Since(start) < patience; time.Sleep(time.Millisecond) {
		found, err := b.node.ShimPid(namespace, id)
		switch {
		case pid == 0 && err == nil:
			pid = found
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				return err
			}
		case pid != 0 && err != nil:
			return nil
		}
	}
	if pid == 0 {
		return fmt.Errorf("`start` of %s has started no shim", id)
	}
	return fmt.Errorf("shim %d is killed and does not end", pid)
}

// cpuTimeOf is the CPU time, user and system, of processes that run, in ms
// (proc_pid_stat(5)).
func cpuTimeOf(pids []int) (ms float64, err error) {
	const tick = 1000.0 / 100 // USER_HZ, which is 100 on all of Linux' machines but alpha
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, err
		}
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		var user, system float64
		if _, err := fmt.Sscan(string(fields[11])+" "+string(fields[12]), &user, &system); err != nil {
			return 0, fmt.Errorf("cannot read the CPU time of %d: %w", pid, err)
		}
		ms += (user + system) * tick
	}
	return ms, nil
}
