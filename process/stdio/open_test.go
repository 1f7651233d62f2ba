package stdio

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"
	"containerd-shim-pause-v2/process/reap"

	"golang.org/x/sys/unix"
)

// A reader that waits in open(2) must not see the end of the fifo before the output.
func TestReaderSeesNoEndBeforeTheOutput(t *testing.T) {
	path := proctest.Mkfifo(t)
	for range 300 {
		reading := proctest.ReadFifo(t, path)
		out, err := openSink(proctest.Context(t), path)
		proctest.Must(t, err)
		_, err = out.dst.WriteString("x")
		proctest.Must(t, err)
		select {
		case <-reading.Done:
			t.Fatal("the reader has seen the end")
		default:
		}
		// Output that nobody has read yet would be lost when the fifo is closed.
		proctest.Eventually(t, "the fifo is empty", func() bool {
			return bytesIn(out.dst) == 0
		})
		out.close()
		if got := reading.All(); got != "x" {
			t.Fatalf("got %q", got)
		}
	}
}

func TestLoggingProgramThatNeverGetsReady(t *testing.T) {
	proctest.NoLeakedFDs(t)
	uri := &url.URL{Scheme: "binary", Path: "/bin/sleep", RawQuery: "100000=0"}
	_, err := startLogger(proctest.Context(t), uri, &LoggerConfig{Reaper: reap.NewReaper(proctest.Context(t)), ReadyTimeout: 50 * time.Millisecond})
	if want := "/bin/sleep: it did not become ready: timed out after 50ms"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v", err)
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); err != unix.ECHILD {
		t.Errorf("process %d is left, error %v", pid, err)
	}
}
