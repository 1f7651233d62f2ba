package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/process/proctest"
)

func TestSysctlsAreWrittenInsideOnly(t *testing.T) {
	values := map[string]string{
		"net.ipv4.ip_unprivileged_port_start": "7",
		"net.ipv4.ping_group_range":           "3 2147483647",
		"kernel.shmmax":                       "123456789",
		"kernel.sem":                          "251 32001 33 129",
		"kernel.shm_rmid_forced":              "1",
		"fs.mqueue.msg_max":                   "11",
		"kernel.domainname":                   "a=b+c d",
	}
	host := make(map[string]string)
	read := func(key string) string {
		data, err := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(key, ".", "/")))
		if err != nil {
			t.Error(err)
		}
		return strings.Join(strings.Fields(string(data)), " ")
	}
	for key := range values {
		host[key] = read(key)
	}

	n := newNode(t)
	spec := sandboxSpec()
	spec.Linux.Sysctl = values
	n.make(n.request("pod", spec))
	proctest.Must(t, podThread.Do(func() error {
		for key, want := range values {
			if got := read(key); got != want {
				t.Errorf("%s is %q inside, want %q", key, got, want)
			}
		}
		return nil
	}))
	for key, want := range host {
		if got := read(key); got != want {
			t.Errorf("%s of the host is %q, was %q", key, got, want)
		}
	}
}

func TestSysctlThatTheKernelRefusesIsNamed(t *testing.T) {
	for key, value := range map[string]string{
		"net.ipv4.no_such_key": "1",
		"net.ipv4.ip_forward":  "many",
	} {
		n := newNode(t)
		spec := sandboxSpec()
		spec.Linux.Sysctl = map[string]string{key: value}
		_, err := n.Create(proctest.Context(t), n.request("pod", spec))
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("got %v, want an error that names %s", err, key)
		}
		if !proctest.AtHome(t, podTID) {
			t.Error("the thread has not come back")
		}
	}
}
