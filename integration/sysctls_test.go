package integration

import (
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podSysctls are values that the host does not have.
func podSysctls(t *testing.T) map[string]string {
	t.Helper()
	forced := "1"
	if hostSysctl(t, "kernel.shm_rmid_forced") == "1" {
		forced = "0"
	}
	return map[string]string{
		"fs.mqueue.msg_max":            "12",
		"fs.mqueue.msgsize_max":        "8191",
		"kernel.msgmax":                "9002",
		"kernel.msgmnb":                "17001",
		"kernel.sem":                   "251 32002 101 129",
		"kernel.shm_rmid_forced":       forced,
		"kernel.shmmni":                "4095",
		"net.core.somaxconn":           "322",
		"net.ipv4.ip_local_port_range": "2001 3001",
		"net.ipv4.ping_group_range":    "7 1007",
		"net.ipv4.tcp_syncookies":      "2",
	}
}

func hostSysctl(t *testing.T, key string) string {
	t.Helper()
	return strings.TrimSpace(readFile(t, "/proc/sys/"+strings.ReplaceAll(key, ".", "/")))
}

// All users of a pod read what its configuration says, also where the values are
// IDs of users.
func TestSysctlsOfThePod(t *testing.T) {
	for _, m := range []mode{{pid: modeContainer}, {pid: modePod}, {pid: modeNode}, {pid: modeContainer, user: true}, {pid: modePod, user: true}} {
		t.Run(m.String(), func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) {
				p := runPod(t, m.handler(shim), func(c *runtime.PodSandboxConfig) {
					m.apply(c)
					c.Linux.Sysctls = podSysctls(t)
				})
				checkSysctls(t, p, p.start("c", "exec sleep 1000"))
			})
		})
	}
}

// The values are the host's present ones, so that no harm is done if they are
// written.
func TestSysctlsThatAreNotThePodsAreRefused(t *testing.T) {
	pod := mode{pid: modeContainer}
	for key, m := range map[string]mode{
		"net.core.somaxconn":        {pid: modeContainer, net: modeNode},
		"net.ipv4.ping_group_range": {pid: modeContainer, net: modeNode},
		"kernel.msgmax":             {pid: modeContainer, ipc: modeNode},
		"kernel.shm_rmid_forced":    {pid: modeContainer, ipc: modeNode},
		"fs.mqueue.msg_max":         {pid: modeContainer, ipc: modeNode},
		"kernel.panic":              pod,
		"kernel.pid_max":            {pid: modeContainer, user: true},
		"fs.file-max":               pod,
		"vm.overcommit_memory":      pod,
		"kernel.core_pattern":       {pid: modePod, user: true},
	} {
		t.Run(key, func(t *testing.T) {
			m.eachHandler(t, func(t *testing.T, shim string) {
				moveIn(t, m.handler(shim))
				p, err := theNode.RunPod(testContext(t), m.handler(shim), func(c *runtime.PodSandboxConfig) {
					m.apply(c)
					c.Linux.Sysctls = map[string]string{key: hostSysctl(t, key)}
				})
				if err == nil {
					atEnd(t, p.Remove)
					t.Fatal("no error")
				}
				if !strings.Contains(err.Error(), key) {
					t.Errorf("error does not name the key: %v", err)
				}
			})
		})
	}
}
