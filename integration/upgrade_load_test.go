package integration

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// counting is a script that prints numbers in order, many at once, until /stop is there.
const counting = "i=0; while [ ! -e /stop ]; do seq $i $((i+99)); i=$((i+100)); sleep 0.01; done; exit 3"

// expectCounted expects that lines are all numbers from 0, each once and in order, and more than
// none.
func expectCounted(t *testing.T, what, text string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if line != fmt.Sprint(i) {
			t.Errorf("%s: line %d of %d is %q", what, i, len(lines), line)
			return
		}
	}
	t.Logf("%s: %d lines", what, len(lines))
}

// background is what goes on during upgrades until it is told to stop.
type background struct {
	t    *testing.T
	stop chan struct{}
	all  sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	counts map[string]int
	errs   []error
}

func newBackground(t *testing.T) *background {
	t.Helper()
	b := &background{t: t, stop: make(chan struct{}), counts: make(map[string]int)}
	t.Cleanup(b.end)
	return b
}

// repeat calls f again and again.
func (b *background) repeat(what string, f func() error) {
	b.all.Go(func() {
		for !b.hasEnded() {
			err := f()
			b.mu.Lock()
			b.counts[what]++
			if err != nil {
				b.errs = append(b.errs, fmt.Errorf("%s, call %d: %w", what, b.counts[what], err))
			}
			b.mu.Unlock()
			if err != nil {
				return
			}
			time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
		}
	})
}

func (b *background) hasEnded() bool {
	select {
	case <-b.stop:
		return true
	default:
		return false
	}
}

// end stops it, and expects that nothing has failed.
func (b *background) end() {
	b.t.Helper()
	if !b.hasEnded() {
		close(b.stop)
	}
	b.all.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := errors.Join(b.errs...); err != nil {
		b.t.Error(err)
	}
	b.errs = nil
}

// expectCalled expects that each call has been made, and logs how often.
func (b *background) expectCalled(calls ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.t.Logf("calls: %v", b.counts)
	for _, call := range calls {
		if b.counts[call] == 0 {
			b.t.Errorf("%s was not called", call)
		}
	}
}

// frameClient is a client of a shim that sends requests without waiting for answers, and
// counts the answers to each.
type frameClient struct {
	conn net.Conn

	writing sync.Mutex // held while a request is written; a client that is slow to write still reads

	mu       sync.Mutex // guards the fields below
	next     uint32
	requests map[uint32]string // by stream id
	answers  map[uint32]int
	errs     []error
	done     chan struct{} // closed when the connection ends
}

func newFrameClient(t *testing.T, namespace, id string) *frameClient {
	t.Helper()
	conn, err := net.Dial("unix", shimSocket(t, namespace, id))
	must(t, err)
	c := &frameClient{conn: conn, next: 1, requests: make(map[uint32]string), answers: make(map[uint32]int), done: make(chan struct{})}
	t.Cleanup(func() {
		conn.Close()
		<-c.done
	})
	go c.read()
	return c
}

// send sends a request of the Task API.
func (c *frameClient) send(namespace, method string, request proto.Message) error {
	payload, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	message, err := proto.Marshal(&ttrpc.Request{
		Service: "containerd.task.v3.Task", Method: method, Payload: payload,
		Metadata: []*ttrpc.KeyValue{{Key: "containerd-namespace-ttrpc", Value: namespace}},
	})
	if err != nil {
		return err
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.mu.Lock()
	id := c.next
	c.next += 2
	c.requests[id] = method
	c.mu.Unlock()
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(message)))
	frame = binary.BigEndian.AppendUint32(frame, id)
	frame = append(frame, 1, 0) // a request, without flags
	_, err = c.conn.Write(append(frame, message...))
	return err
}

func (c *frameClient) read() {
	defer close(c.done)
	for {
		var header [10]byte
		if _, err := io.ReadFull(c.conn, header[:]); err != nil {
			return
		}
		message := make([]byte, binary.BigEndian.Uint32(header[:]))
		if _, err := io.ReadFull(c.conn, message); err != nil {
			return
		}
		c.note(binary.BigEndian.Uint32(header[4:]), header[8], message)
	}
}

func (c *frameClient) note(id uint32, kind byte, message []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers[id]++
	var r ttrpc.Response
	err := proto.Unmarshal(message, &r)
	switch {
	case kind != 2:
		err = fmt.Errorf("a message of type %d", kind)
	case err == nil && r.Status.GetCode() != 0:
		err = errors.New(r.Status.GetMessage())
	}
	if err != nil {
		c.errs = append(c.errs, fmt.Errorf("%s: %w", c.requests[id], err))
	}
}

// missing is how many requests of the methods have not been answered.
func (c *frameClient) missing(methods ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, method := range c.requests {
		if c.answers[id] == 0 && slices.Contains(methods, method) {
			n++
		}
	}
	return n
}

// expectAnswered expects that each request of the methods is answered, once and without an
// error.
func (c *frameClient) expectAnswered(t *testing.T, methods ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("all of %v are answered", methods), func() bool { return c.missing(methods...) == 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	must(t, errors.Join(c.errs...))
	for id, n := range c.answers {
		if n != 1 || c.requests[id] == "" {
			t.Errorf("%d answers to request %d, %q", n, id, c.requests[id])
		}
	}
	t.Logf("%d requests by one connection", len(c.requests))
}

// feed writes random bytes until it is told to stop, then ends. It is the standard input
// of an exec that echoes it.
type feed struct {
	b    *background
	sum  hash.Hash
	size int
}

func (f *feed) Read(buf []byte) (int, error) {
	if f.b.hasEnded() && f.size > 4<<20 {
		return 0, io.EOF
	}
	n := min(len(buf), 1+rand.IntN(32<<10))
	for i := range n {
		buf[i] = byte(rand.Uint32())
	}
	f.sum.Write(buf[:n])
	f.size += n
	time.Sleep(time.Millisecond)
	return n, nil
}

// slowReader reads what a container prints slower than that prints it.
type slowReader struct {
	streams *cio.DirectIO
	hurry   chan struct{} // closed when it may read as fast as it can
	text    strings.Builder
	done    chan struct{} // closed when all is read
	err     error         // of the reading, when done is closed
}

// create is a [cio.Creator].
func (r *slowReader) create(ctx context.Context) cio.Creator {
	return func(id string) (cio.IO, error) {
		fifos, err := cio.NewFIFOSetInDir(theNode.FIFODir(), id, false)
		if err != nil {
			return nil, err
		}
		fifos.Stdin, fifos.Stderr = "", ""
		r.streams, err = cio.NewDirectIO(context.WithoutCancel(ctx), fifos)
		return r.streams, err
	}
}

func (r *slowReader) read() {
	buf := make([]byte, 2<<10)
	for {
		n, err := r.streams.Stdout.Read(buf)
		r.text.Write(buf[:n])
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			r.err = err
			close(r.done)
			return
		}
		select {
		case <-r.hurry:
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// touchStop makes /stop in the container of a process, which may end before an exec would.
func touchStop(t *testing.T, pid int) {
	t.Helper()
	touch(t, pid, "/stop")
}

// touch makes a file in the container of a process.
func touch(t *testing.T, pid int, path string) {
	t.Helper()
	must(t, os.WriteFile(fmt.Sprintf("/proc/%d/root%s", pid, path), nil, 0o600))
}

// runByCtr has ctr run a container, which ends when /stop is there, and waits for it.
func runByCtr(ctx context.Context, t *testing.T, shim, id string) *later {
	t.Helper()
	config := filepath.Join(t.TempDir(), "options.toml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "Root = %q\nBinaryName = %q\n", theNode.RuntimeRoot(), ociRuntime), 0o600))
	l := start(t, "ctr run", func() error {
		out, err := theNode.Ctr(ctx, theNode.ID, "run", "--rm", "--snapshotter", theNode.Snapshotter, "--runtime", runtimeType(shim),
			"--runtime-config-path", config, theNode.BusyboxImage, id, "sh", "-c", "echo begin; until [ -e /stop ]; do sleep 0.1; done; echo end; exit 5")
		if out != "begin\nend\n" {
			return fmt.Errorf("output %q: %w", out, err)
		}
		if err == nil || !strings.Contains(err.Error(), "exit status 5") {
			return fmt.Errorf("not exit status 5: %w", err)
		}
		return nil
	})
	eventually(t, "container of ctr runs", func() bool {
		out, err := theNode.Ctr(ctx, theNode.ID, "task", "ls")
		return err == nil && strings.Contains(out, id) && strings.Contains(out, "RUNNING")
	})
	return l
}

// Whatever goes through a shim goes on through ten upgrades in a row.
func TestUpgradesUnderLoad(t *testing.T) {
	eachPauseHandler(t, func(t *testing.T, handler string) {
		shim := "pause"
		if isShared(handler) {
			shim = sharedShim
		}
		since := len(readFile(t, theNode.LogFile()))
		b := newBackground(t)

		// A terminal with a client.
		cfg := sh(`stty -echo; echo ready; while read l; do echo "got $l $(stty size)"; [ "$l" != end ] || exit 6; done`)
		cfg.spec = []oci.SpecOpts{oci.WithTTY}
		terminal := newContainer(t, shim, cfg)
		stdin, in, err := os.Pipe()
		must(t, err)
		defer in.Close()
		terminal.run(terminal.terminal(stdin))
		terminal.out.expect(t, "ready")
		must(t, terminal.task.Resize(terminal.ctx, 80, 24))

		// An exec that echoes, and clients that ask.
		busy := startContainer(t, shim, sh("exec sleep 1000"))
		input := &feed{b: b, sum: sha256.New()}
		echo := busy.exec("echo", input, nil, "cat")

		// Outputs to a logging program and to a file.
		logs := t.TempDir()
		logged := newContainer(t, shim, sh(counting))
		logged.run(cio.BinaryIO(script(t, loggerScript), map[string]string{"dir": logs}))
		file := filepath.Join(t.TempDir(), "output")
		filed := newContainer(t, shim, sh(counting))
		filed.run(cio.LogFile(file))

		// A client that reads slowly, so that all pipes are full.
		slow := &slowReader{hurry: make(chan struct{}), done: make(chan struct{})}
		full := newContainer(t, shim, sh("seq 0 3000000"))
		full.run(slow.create(full.ctx))
		go slow.read()

		// A pod by CRI.
		p := runPod(t, handler, nil)
		counter := p.start("counter", counting)
		synced := start(t, "ExecSync", func() error {
			r, err := theNode.Exec(p.ctx, counter, "sh", "-c", "until [ -e /end ]; do sleep 0.1; done; exit 5")
			if err == nil && r.ExitCode != 5 {
				err = fmt.Errorf("exit code %d", r.ExitCode)
			}
			return err
		})
		ctrID := "by-ctr-" + handler
		byCtr := runByCtr(busy.ctx, t, shim, ctrID)

		direct, done, err := theNode.Shim(theNode.ID, busy.ID())
		must(t, err)
		t.Cleanup(done)
		raw := newFrameClient(t, theNode.ID, busy.ID())
		must(t, raw.send(theNode.ID, "Wait", &taskv3.WaitRequest{ID: busy.ID()}))
		ctx := busy.ctx
		for _, c := range []*container{busy, terminal} {
			b.repeat("State", func() error {
				status, err := c.task.Status(ctx)
				if err == nil && status.Status != containerd.Running {
					err = fmt.Errorf("status %s", status.Status)
				}
				return err
			})
			b.repeat("Stats", func() error { _, err := c.task.Metrics(ctx); return err })
			b.repeat("Pids", func() error {
				pids, err := c.task.Pids(ctx)
				if err == nil && len(pids) == 0 {
					err = errors.New("no pids")
				}
				return err
			})
			b.repeat("kill", func() error { return c.task.Kill(ctx, unix.SIGCONT) }) // which changes nothing
		}
		execs := 0
		b.repeat("exec", func() error { execs++; return numberedExec(busy, execs%100) })
		b.repeat("exec by CRI", func() error {
			r, err := theNode.Exec(p.ctx, counter, "sh", "-c", "echo x; exit 9")
			if err == nil && (r.ExitCode != 9 || string(r.Stdout) != "x\n") {
				err = fmt.Errorf("exit code %d, output %q", r.ExitCode, r.Stdout)
			}
			return err
		})
		b.repeat("State past containerd", func() error {
			_, err := direct.State(namespaces.WithNamespace(ctx, theNode.ID), &taskv3.StateRequest{ID: busy.ID()})
			return err
		})
		b.repeat("requests without waiting", func() error {
			if raw.missing("State", "Stats", "Pids", "Kill") > 40 {
				return nil
			}
			return errors.Join(
				raw.send(theNode.ID, "State", &taskv3.StateRequest{ID: busy.ID()}),
				raw.send(theNode.ID, "Stats", &taskv3.StatsRequest{ID: busy.ID()}),
				raw.send(theNode.ID, "Pids", &taskv3.PidsRequest{ID: busy.ID()}),
				raw.send(theNode.ID, "Kill", &taskv3.KillRequest{ID: busy.ID(), Signal: uint32(unix.SIGCONT)}),
			)
		})
		lines := 0
		b.repeat("line", func() error {
			_, err := fmt.Fprintf(in, "%d\n", lines)
			lines++
			return err
		})

		shimPids := []int{busy.shimPid(), terminal.shimPid(), logged.shimPid(), filed.shimPid(), full.shimPid(), p.shimPid()}
		var took time.Duration
		for i := range uint32(10) {
			must(t, terminal.task.Resize(ctx, 100+i, 50+i))
			begin := time.Now()
			mustUpgrade(t, shimPids...)
			took += time.Since(begin)
			terminal.out.expect(t, fmt.Sprintf(" %d %d\r\n", 50+i, 100+i))
		}
		t.Logf("ten upgrades took %s", took)
		select {
		case <-slow.done:
			t.Error("the slow client has read all before the last upgrade")
		default:
		}
		b.end()
		b.expectCalled("State", "Stats", "Pids", "kill", "exec", "exec by CRI", "State past containerd", "requests without waiting", "line")
		raw.expectAnswered(t, "State", "Stats", "Pids", "Kill")
		expectEqual(t, "requests that wait", raw.missing("Wait"), 1)

		must(t, echo.CloseIO(ctx, containerd.WithStdinCloser))
		echo.mustFinish(0)
		t.Logf("%d bytes have been echoed", input.size)
		expectEqual(t, "echo", fmt.Sprintf("%x", sha256.Sum256([]byte(echo.out.String()))), fmt.Sprintf("%x", input.sum.Sum(nil)))

		close(slow.hurry)
		<-slow.done
		must(t, slow.err)
		expectEqual(t, "exit code of what is read slowly", exitCode(t, full.exited), 0)
		expectCounted(t, "slow reader", slow.text.String())
		must(t, slow.streams.Close())

		_, err = in.WriteString("end\n")
		must(t, err)
		expectEqual(t, "exit code behind the terminal", terminal.wait(), 6)
		got := strings.Split(strings.TrimSuffix(terminal.out.String(), "\r\n"), "\r\n")
		expectEqual(t, "lines of the terminal", len(got), lines+2)
		for i, line := range got[1 : len(got)-1] {
			if !strings.HasPrefix(line, fmt.Sprintf("got %d ", i)) {
				t.Errorf("line %d of the terminal is %q", i, line)
				break
			}
		}

		touchStop(t, int(logged.task.Pid()))
		expectEqual(t, "exit code behind the logger", logged.wait(), 3)
		logged.remove()
		expectCounted(t, "logger", readFile(t, filepath.Join(logs, "out")))
		expectEqual(t, "end of the logger", readFile(t, filepath.Join(logs, "end")), "done\n")
		touchStop(t, int(filed.task.Pid()))
		expectEqual(t, "exit code behind the file", filed.wait(), 3)
		filed.remove()
		expectCounted(t, "file", readFile(t, file))

		p.exec(counter, "touch /end")
		must(t, synced.wait())
		touchStop(t, p.containerPid(counter))
		p.expectExited(counter, 3)
		log := filepath.Join(p.Config.LogDirectory, "counter.log")
		var numbers strings.Builder
		for line := range strings.Lines(readFile(t, log)) {
			_, number, _ := strings.Cut(line, " stdout F ")
			numbers.WriteString(number)
		}
		expectCounted(t, "CRI's log", numbers.String())

		loaded, err := theNode.Client().LoadContainer(ctx, ctrID)
		must(t, err)
		task, err := loaded.Task(ctx, nil)
		must(t, err)
		touchStop(t, int(task.Pid()))
		must(t, byCtr.wait())

		must(t, busy.task.Kill(ctx, unix.SIGKILL))
		expectEqual(t, "exit code", busy.wait(), 137)
		raw.expectAnswered(t, "Wait")
		expectConnected(t, since, p.ID)
		expectEqual(t, "state of the pod", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
	})
}
