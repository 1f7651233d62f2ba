package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"containerd-shim-pause-v2/integration/node"
)

// readmeBlock returns the shell commands under a heading of the README.
func readmeBlock(t *testing.T, heading string) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	must(t, err)
	_, section, found := strings.Cut(string(readme), "\n"+heading+"\n")
	if !found {
		t.Fatalf("the README has no heading %q", heading)
	}
	_, block, found := strings.Cut(section, "\n```sh\n")
	if !found {
		t.Fatalf("the README has no shell commands under %q", heading)
	}
	block, _, _ = strings.Cut(block, "\n```\n")
	return block
}

// nodeShell runs shell commands for which ctr leads to the node, and returns what
// they print on stdout.
func nodeShell(t *testing.T, commands string) string {
	t.Helper()
	ctr, err := theNode.LookPath("ctr")
	must(t, err)
	dir := t.TempDir()
	config := filepath.Join(dir, "options.toml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "Root = %q\nBinaryName = %q\n", theNode.RuntimeRoot(), ociRuntime), 0o600))
	wrapper := fmt.Sprintf(`#!/bin/sh
if [ "$1" = run ]; then
	shift
	set -- run --runtime-config-path %s --snapshotter %s "$@"
fi
exec %s --address %s --namespace %s "$@"
`, config, theNode.Snapshotter, ctr, theNode.Socket(), theNode.ID)
	must(t, os.WriteFile(filepath.Join(dir, "ctr"), []byte(wrapper), 0o700))
	cmd := exec.CommandContext(testContext(t), "bash", "-eux", "-o", "pipefail", "-c", commands)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "IMAGE="+theNode.BusyboxImage)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, stderr.String())
	}
	return string(out)
}

func TestReadmePodByHand(t *testing.T) {
	withPause(t, func(t *testing.T) {
		commands := readmeBlock(t, "### Pods by hand")
		run, remove, found := strings.Cut(commands, "ctr task kill")
		if !found {
			t.Fatal("the commands do not end the pod")
		}
		nodeShell(t, run)
		checkPodByHand(t)
		nodeShell(t, "ctr task kill"+remove)
	})
}

// checkPodByHand compares the namespaces of the tasks web and app.
func checkPodByHand(t *testing.T) {
	t.Helper()
	list, err := theNode.Ctr(testContext(t), theNode.ID, "task", "ls")
	must(t, err)
	pids := make(map[string]string)
	for line := range strings.Lines(list) {
		if fields := strings.Fields(line); len(fields) == 3 {
			pids[fields[0]] = fields[1]
		}
	}
	shim, err := theNode.ShimPid(theNode.ID, "web")
	must(t, err)
	expectEqual(t, "pid of the sandbox", pids["web"], fmt.Sprint(shim))
	for _, kind := range []string{"net", "ipc", "uts"} {
		expectEqual(t, kind, namespace(t, pids["app"], kind), namespace(t, pids["web"], kind))
		if namespace(t, pids["web"], kind) == namespace(t, "self", kind) {
			t.Errorf("%s is the host's", kind)
		}
	}
	for _, kind := range []string{"pid", "mnt"} {
		if namespace(t, pids["app"], kind) == namespace(t, "self", kind) {
			t.Errorf("%s of the container is the host's", kind)
		}
	}
}

func TestMemberByHandSharesPIDNamespace(t *testing.T) {
	withPause(t, func(t *testing.T) {
		pod := "--runtime " + node.PauseType + " --annotation io.kubernetes.cri.sandbox-id=web"
		out := nodeShell(t, `
			ctr run --detach `+pod+` --annotation io.kubernetes.cri.container-type=sandbox $IMAGE web
			pid=$(ctr task ls | awk '$1 == "web" { print $2 }')
			for app in a b; do
				ctr run --detach `+pod+` --annotation io.kubernetes.cri.container-type=container \
					--with-ns pid:/proc/$pid/ns/pid $IMAGE $app sleep 1000
			done
			ctr task exec --exec-id e b ps -o pid,args
		`)
		expectLine(t, out, "1", "/pause")
		expectEqual(t, "processes that sleep", strings.Count(out, "sleep 1000\n"), 2)
	})
}
