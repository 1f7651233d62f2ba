package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// attacker is a container with more rights than it should have, and its pod.
type attacker struct {
	name       string
	mode       mode
	privileged bool // which CRI refuses in a user namespace
	add        []string
}

func attackers() []attacker {
	shared, user, both := mode{pid: modePod}, mode{pid: modeContainer, user: true}, mode{pid: modePod, user: true}
	tracer, all := []string{"SYS_PTRACE"}, []string{"ALL"}
	return []attacker{
		{name: "tracer, shared PID", mode: shared, add: tracer},
		{name: "privileged, shared PID", mode: shared, privileged: true},
		{name: "tracer, user namespace", mode: user, add: tracer},
		{name: "all capabilities, user namespace", mode: user, add: all},
		{name: "tracer, user namespace, shared PID", mode: both, add: tracer},
		{name: "all capabilities, user namespace, shared PID", mode: both, add: all},
	}
}

// meetsInit says whether the attacker's PID 1 is the pod's init, not its own.
func (a attacker) meetsInit() bool { return a.mode.pid == modePod }

// invade runs the attacker in a pod of its own.
func (a attacker) invade(t *testing.T, shim string) (p *pod, id string) {
	t.Helper()
	p = runPod(t, a.mode.handler(shim), func(c *runtime.PodSandboxConfig) {
		a.mode.apply(c)
		c.Linux.SecurityContext.Privileged = a.privileged
	})
	id = p.startAs("attacker", "exec sleep 1000", func(c *runtime.ContainerConfig) {
		c.Linux.SecurityContext.Privileged = a.privileged
		c.Linux.SecurityContext.Capabilities = &runtime.Capability{AddCapabilities: a.add}
	})
	return p, id
}

// eachInvader runs a test with attackers that see the pod's init as PID 1.
func eachInvader(t *testing.T, test func(t *testing.T, a attacker, p *pod, id string)) {
	t.Helper()
	for _, a := range attackers() {
		if !a.meetsInit() {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			withPause(t, func(t *testing.T) {
				p, id := a.invade(t, "pause")
				test(t, a, p, id)
			})
		})
	}
}

// try runs a script that may fail, and returns all that it prints.
func (p *pod) try(id, script string) (output string, code int32) {
	p.t.Helper()
	r, err := theNode.Exec(p.ctx, id, "sh", "-c", script)
	must(p.t, err)
	return string(r.Stdout) + string(r.Stderr), r.ExitCode
}

// What the kernel says, by strerror(3), when something is not to be.
const (
	readOnly  = "Read-only file system"
	busyText  = "Text file busy"
	noAccess  = "Permission denied"
	notAllow  = "Operation not permitted"
	noProcess = "No such process"
	noFile    = "No such file or directory"
)

// expectDenied runs a script that has to fail for one of the reasons.
func (p *pod) expectDenied(id, script string, reasons ...string) {
	p.t.Helper()
	output, code := p.try(id, script)
	if code == 0 {
		p.t.Errorf("%s: no error, output %q", script, output)
	} else if !slices.ContainsFunc(reasons, func(r string) bool { return strings.Contains(output, r) }) {
		p.t.Errorf("%s: %q, but not for one of the reasons %q", script, output, reasons)
	}
}

// secretText is what no container may read.
const secretText = "the host's secret"

// plantSecret makes a file on the host that anybody there may read.
func plantSecret(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(theNode.Dir, "secret")
	must(t, os.WriteFile(path, []byte(secretText), 0o600))
	must(t, os.Chmod(path, 0o644))
	t.Cleanup(func() { os.Remove(path) })
	return path
}

// searchScript looks for a file of the host by all ways out that /proc offers.
func searchScript(path string) string {
	return `for p in /proc/[0-9]*; do for way in $p/root $p/cwd $p/fd/* $p/task/*/root $p/task/*/cwd; do
		for up in "" /.. /../.. /../../../../../..; do cat "$way$up` + path + `" 2>/dev/null; done
	done; done; true`
}

func TestHostFilesAreOutOfReach(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				secret := plantSecret(t)
				p, id := a.invade(t, shim)
				expectEqual(t, "what is found", p.exec(id, searchScript(secret)), "")
			})
		})
	}
}

// The search finds the file where it can be found: by the processes of the host.
func TestHostFilesAreInReachOfHostPidPod(t *testing.T) {
	a := attacker{mode: mode{pid: modeNode}, privileged: true}
	eachShim(t, func(t *testing.T, shim string) {
		secret := plantSecret(t)
		p, id := a.invade(t, shim)
		if !strings.Contains(p.exec(id, searchScript(secret)), secretText) {
			t.Error("the file is not found")
		}
	})
}

func TestPodInitHoldsNothing(t *testing.T) {
	eachInvader(t, func(t *testing.T, _ attacker, p *pod, id string) {
		expectEqual(t, "root", p.exec(id, "ls -A /proc/1/root/"), "dev\npause\nproc")
		expectEqual(t, "files that could hold something", p.exec(id, "find /proc/1/root/dev -type b -o -type f"), "")
		expectEqual(t, "open files", p.exec(id, "ls -A /proc/1/fd/"), "")
		expectEqual(t, "cwd", p.exec(id, "stat -L -c %d:%i /proc/1/cwd"), p.exec(id, "stat -L -c %d:%i /proc/1/root"))
		// The variable is from runc.
		expectEqual(t, "environment", strings.TrimPrefix(p.exec(id, `tr '\0' '\n' </proc/1/environ`), "HOME=/"), "")
		for _, file := range []string{"mountinfo", "maps"} {
			if text := p.exec(id, "cat /proc/1/"+file); strings.Contains(text, theNode.Dir) {
				t.Errorf("%s names the host's directories: %s", file, text)
			}
		}
		expectEqual(t, "arguments", p.exec(id, `tr '\0' '\n' </proc/1/cmdline`), "/pause")
	})
}

func TestPodInitRootIsReadOnly(t *testing.T) {
	eachInvader(t, func(_ *testing.T, _ attacker, p *pod, id string) {
		for _, path := range []string{"file", "dev/file", "pause/../file"} {
			p.expectDenied(id, "touch /proc/1/root/"+path, readOnly, noAccess, notAllow, "Not a directory")
		}
		for _, command := range []string{"rm -f", "chmod 777", "chown 1000", "mv -f /proc/1/root/dev"} {
			p.expectDenied(id, command+" /proc/1/root/pause", readOnly, noAccess, notAllow)
		}
	})
}

// A key whose present value is written does no harm if that is possible.
func TestHostSettingsAreNotWritableByPodInitsProc(t *testing.T) {
	eachInvader(t, func(_ *testing.T, a attacker, p *pod, id string) {
		if a.privileged {
			return // it may write these by its own /proc, as on any host
		}
		for _, key := range []string{"sys/kernel/panic", "sys/vm/swappiness", "sys/kernel/core_pattern"} {
			path := "/proc/1/root/proc/" + key
			p.expectDenied(id, fmt.Sprintf(`v=$(cat %[1]s) && echo "$v" >%[1]s`, path), readOnly, noAccess, notAllow)
		}
	})
}

func TestPodInitProgramIsNotWritable(t *testing.T) {
	eachInvader(t, func(t *testing.T, _ attacker, p *pod, id string) {
		before := initSum(p, id)
		for _, path := range []string{"/proc/1/exe", "/proc/1/root/pause", "/proc/1/cwd/pause"} {
			for _, command := range []string{"echo x >", "echo x >>", "dd if=/dev/zero bs=1 count=1 conv=notrunc of="} {
				p.expectDenied(id, command+path, busyText, readOnly, noAccess, notAllow)
			}
		}
		expectEqual(t, "sum of the program", initSum(p, id), before)
	})
}

// initSum is a sum of the program that PID 1 executes.
func initSum(p *pod, id string) string {
	p.t.Helper()
	fields := strings.Fields(p.exec(id, "sha256sum </proc/1/exe"))
	return fields[0]
}

// inInit is a script that runs another one in the mount namespace of the pod's
// init, with the attacker's own shell: there is none in it. The exit keeps the
// outer shell, by whose root it is found, from becoming nsenter.
func inInit(script string) string {
	return fmt.Sprintf(`export b=/proc/$$/root/bin/busybox; nsenter -t 1 -m $b sh -c '%s'; exit $?`, script)
}

// Whoever may do all in its pod may overwrite the file of that pod's init. No
// other pod has the same file, and the host sees nothing of it.
func TestPodInitOfOnePodIsNotThatOfAnother(t *testing.T) {
	eachInvader(t, func(t *testing.T, a attacker, p *pod, id string) {
		other, witness := a.invade(t, "pause")
		before := initSum(other, witness)
		mounts := hostMounts(t)
		output, _ := p.try(id, inInit("$b mount -o remount,rw /; $b mount -o remount,bind,rw /; $b rm /pause; echo evil >/pause; $b cat /pause"))
		expectEqual(t, "the program was overwritten", output == "evil\n", a.privileged)
		p.try(id, inInit("$b mount -t tmpfs evil /dev"))
		expectEqual(t, "mounts of the host", hostMounts(t), mounts)
		expectEqual(t, "sum of the other pod's program", initSum(other, witness), before)
		third, late := a.invade(t, "pause")
		expectEqual(t, "sum of a later pod's program", initSum(third, late), before)
		expectEqual(t, "root of a later pod's init", third.exec(late, "ls -A /proc/1/root/"), "dev\npause\nproc")
		// It ends as any other.
		must(t, p.Stop(p.ctx))
		must(t, p.Remove(p.ctx))
	})
}

// smashScript overwrites the code of PID 1 in memory and wakes it up.
const smashScript = `start=$(sed -n '/ r-xp /{s/-.*//;p;q}' /proc/1/maps)
	dd if=/dev/zero of=/proc/1/mem bs=4096 count=1 conv=notrunc seek=$((0x$start / 4096)) && kill -CHLD 1`

// Who may trace PID 1 can break it, which is the end of that pod and of no other.
func TestPodInitThatIsBrokenEndsItsPodOnly(t *testing.T) {
	eachInvader(t, func(t *testing.T, a attacker, p *pod, id string) {
		other, witness := a.invade(t, "pause")
		before := initSum(other, witness)
		theNode.Exec(p.ctx, id, "sh", "-c", smashScript) // it ends with the pod
		p.expectExited(id, 137)
		p.expectNotReady()
		expectEqual(t, "state of the other", other.status().State, runtime.PodSandboxState_SANDBOX_READY)
		expectEqual(t, "sum of the other pod's program", initSum(other, witness), before)
		checkReaping(t, other, a.mode, witness)
		p.removeInTheEnd()
	})
}

// hostMounts are the node's mount points, as the host sees them.
func hostMounts(t *testing.T) string {
	t.Helper()
	var points []string
	for line := range strings.Lines(readFile(t, "/proc/self/mountinfo")) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], theNode.Dir) {
			points = append(points, fields[4])
		}
	}
	slices.Sort(points)
	return strings.Join(points, "\n")
}

// Who may enter what PID 1 is in gets nothing of the host by that.
func TestPodInitIsInNoNamespaceOfTheHost(t *testing.T) {
	eachInvader(t, func(t *testing.T, a attacker, p *pod, id string) {
		init := p.podInit(id)
		for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
			if namespace(t, init, kind) == namespace(t, "self", kind) {
				t.Errorf("%s is the host's", kind)
			}
		}
		expectEqual(t, "user is the host's", namespace(t, init, "user") == namespace(t, "self", "user"), !a.mode.user)
	})
}

func TestPodInitHasNoRights(t *testing.T) {
	eachInvader(t, func(t *testing.T, _ attacker, p *pod, id string) {
		status := make(map[string]string)
		for line := range strings.Lines(p.exec(id, "cat /proc/1/status")) {
			key, value, _ := strings.Cut(line, ":")
			status[key] = strings.Join(strings.Fields(value), " ")
		}
		const none, user = "0000000000000000", "65535 65535 65535 65535"
		for key, want := range map[string]string{
			"Name": "pause", "Seccomp": "2", "NoNewPrivs": "1", "Uid": user, "Gid": user, "Threads": "1",
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapBnd": none, "CapAmb": none,
		} {
			expectEqual(t, key, status[key], want)
		}
		anonymous, err := strconv.Atoi(strings.TrimSuffix(status["RssAnon"], " kB"))
		must(t, err)
		if anonymous >= 64 {
			t.Errorf("RssAnon: %d kB", anonymous)
		}
	})
}

// namesScript prints the name and program of each process, with a shell that
// forks nothing.
const namesScript = `for p in /proc/[0-9]*; do read name <$p/comm; echo $name; done`

func TestShimIsNotInThePIDNamespace(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p, id := a.invade(t, shim)
				want := []string{"sh", "sleep"}
				if a.meetsInit() {
					want = []string{"pause", "sh", "sleep"}
				}
				names := strings.Fields(p.exec(id, namesScript))
				slices.Sort(names)
				expectEqual(t, "processes", strings.Join(names, " "), strings.Join(want, " "))
				if programs := p.exec(id, "readlink /proc/[0-9]*/exe || true"); strings.Contains(programs, "shim") {
					t.Errorf("programs: %s", programs)
				}
			})
		})
	}
}

func TestShimCannotBeReachedByItsPid(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p, id := a.invade(t, shim)
				pid, err := p.ShimPid()
				must(t, err)
				p.expectDenied(id, fmt.Sprintf("ls /proc/%d", pid), noFile)
				for _, signal := range []string{"0", "9", "15", "19"} {
					p.expectDenied(id, fmt.Sprintf("kill -%s %d", signal, pid), noProcess)
				}
				p.expectDenied(id, fmt.Sprintf("nsenter -t %d -m true", pid), noFile)
				after, err := p.ShimPid()
				must(t, err)
				expectEqual(t, "pid of the shim", after, pid)
				expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
			})
		})
	}
}

// kill -9 -1 reaches all that a process may send signals to.
func TestShimSurvivesSignalToAll(t *testing.T) {
	for _, a := range attackers() {
		t.Run(a.name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p, id := a.invade(t, shim)
				pid, err := p.ShimPid()
				must(t, err)
				_, err = theNode.Exec(p.ctx, id, "sh", "-c", "kill -9 -1")
				must(t, err)
				after, err := p.ShimPid()
				must(t, err)
				expectEqual(t, "pid of the shim", after, pid)
				expectEqual(t, "state", p.status().State, runtime.PodSandboxState_SANDBOX_READY)
			})
		})
	}
}

// connectSource connects to a socket and says what came of it.
const connectSource = `#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int main(int argc, char **argv) {
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	if (argc != 2) return 2;
	strncpy(a.sun_path, argv[1], sizeof a.sun_path - 1);
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	errno = 0;
	int failed = connect(s, (struct sockaddr *)&a, sizeof a);
	puts(strerror(errno));
	return failed ? 1 : 0;
}
`

// compileConnect compiles connectSource to run in any container.
func compileConnect(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "connect")
	cc := exec.CommandContext(testContext(t), "gcc", "-Os", "-static", "-s", "-x", "c", "-o", path, "-")
	cc.Stdin = strings.NewReader(connectSource)
	if msg, err := cc.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, msg)
	}
	must(t, os.Chmod(path, 0o755))
	return path
}

// shimSocket is the path of the socket that a pod's shim serves.
func shimSocket(t *testing.T, namespace, id string) string {
	t.Helper()
	var bootstrap struct{ Address string }
	must(t, json.Unmarshal([]byte(readFile(t, filepath.Join(theNode.Bundle(namespace, id), "bootstrap.json"))), &bootstrap))
	return strings.TrimPrefix(bootstrap.Address, "unix://")
}

// With the network namespace of the host, only the files' modes are in the way:
// root gets through, which shows that the program works.
func TestShimSocketIsForRootOnly(t *testing.T) {
	connect := compileConnect(t)
	for name, test := range map[string]struct {
		mode      mode
		user      int64
		listing   string
		connected string
	}{
		"user 1000":                {mode{pid: modeContainer, net: modeNode}, 1000, noAccess, noAccess},
		"root of a user namespace": {mode{pid: modeContainer, net: modeNode, user: true}, 0, noAccess, noAccess},
		"root, who is let in":      {mode{pid: modeContainer, net: modeNode}, 0, "", "Success"},
	} {
		t.Run(name, func(t *testing.T) {
			eachShim(t, func(t *testing.T, shim string) {
				p := runPod(t, test.mode.handler(shim), test.mode.apply)
				socket := shimSocket(t, node.CRINamespace, p.ID)
				id := p.startAs("c", "exec sleep 1000", func(c *runtime.ContainerConfig) {
					c.Linux.SecurityContext.RunAsUser = &runtime.Int64Value{Value: test.user}
					c.Mounts = []*runtime.Mount{
						{HostPath: filepath.Dir(socket), ContainerPath: "/s"},
						{HostPath: connect, ContainerPath: "/connect", Readonly: true},
					}
				})
				output, _ := p.try(id, "/connect /s/"+filepath.Base(socket))
				expectEqual(t, "connect", strings.TrimSpace(output), test.connected)
				if output, _ := p.try(id, "ls /s"); !strings.Contains(output, test.listing) {
					t.Errorf("ls: %s", output)
				}
				p.exec(id, "true")
			})
		})
	}
}

// An abstract socket would be open to all in its network namespace (unix(7)).
func TestShimHasNoAbstractSocket(t *testing.T) {
	withPause(t, func(t *testing.T) {
		for _, m := range []mode{{pid: modeContainer}, {pid: modeContainer, net: modeNode}, {pid: modePod, user: true}} {
			p := runPod(t, m.handler("pause"), m.apply)
			p.start("c", "sleep 1000")
			pid, err := p.ShimPid()
			must(t, err)
			names := append(unixSockets(t, pid, fmt.Sprint(pid)), unixSockets(t, pid, "self")...)
			if !slices.Contains(names, shimSocket(t, node.CRINamespace, p.ID)) {
				t.Errorf("%s: the shim's socket is not found: %q", m, names)
			}
			for _, name := range names {
				if strings.HasPrefix(name, "@") {
					t.Errorf("%s: abstract socket %s", m, name)
				}
			}
		}
	})
}

// unixSockets are the names of a process's sockets in the network namespace that
// another one is in (proc(5), /proc/net/unix).
func unixSockets(t *testing.T, pid int, place string) (names []string) {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	inodes := make(map[string]bool)
	for _, link := range links {
		target, _ := os.Readlink(link) // it may have been closed
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for line := range strings.Lines(readFile(t, "/proc/"+place+"/net/unix")) {
		if fields := strings.Fields(line); len(fields) == 8 && inodes[fields[6]] {
			names = append(names, fields[7])
		}
	}
	return names
}

// handPod is a pod that is made by a client of containerd, not by CRI.
type handPod struct {
	t       *testing.T
	shim    string
	sandbox *container
}

// asSandbox annotates a container that is to be the sandbox of a pod.
func asSandbox(_ context.Context, _ oci.Client, c *containers.Container, s *oci.Spec) error {
	if s.Annotations == nil {
		s.Annotations = make(map[string]string)
	}
	s.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
	s.Annotations["io.kubernetes.cri.sandbox-id"] = c.ID
	return nil
}

// podByHand makes a pod, whose sandbox has a process that sleeps if the shim is
// the stock one.
func podByHand(t *testing.T, shim string, opts ...oci.SpecOpts) *handPod {
	t.Helper()
	sandbox := newContainer(t, shim, config{args: []string{"sleep", "1000"}, spec: append([]oci.SpecOpts{asSandbox}, opts...)})
	return &handPod{t: t, shim: shim, sandbox: sandbox}
}

// withUserNamespace gives a container a user namespace whose root is not root.
func withUserNamespace() oci.SpecOpts {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: userFirst, Size: userLength}}
	return oci.WithUserNamespace(ids, ids)
}

// run creates and starts the sandbox.
func (p *handPod) run() {
	p.t.Helper()
	p.sandbox.run(cio.NullIO)
}

// pid is that of the sandbox.
func (p *handPod) pid() int { return int(p.sandbox.task.Pid()) }

// member makes a container of the pod, without a task.
func (p *handPod) member(cfg config) *container {
	p.t.Helper()
	annotations := oci.WithAnnotations(map[string]string{
		"io.kubernetes.cri.container-type": "container",
		"io.kubernetes.cri.sandbox-id":     p.sandbox.ID(),
	})
	cfg.spec = append([]oci.SpecOpts{annotations}, cfg.spec...)
	return newContainer(p.t, p.shim, cfg)
}

// hostPaths are ways to spell the host's namespace, by the name under
// /proc/<pid>/ns, to a shim that runs with the pod's.
func hostPaths(t *testing.T, shim int, name string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	host := fmt.Sprintf("/proc/%d/ns/%s", os.Getpid(), name)
	must(t, os.Symlink(host, link))
	bindMount(t, host, file)
	return map[string]string{
		"thread of the shim":      fmt.Sprintf("/proc/%d/task/%d/ns/%s", shim, otherThread(t, shim), name),
		"init of the host":        "/proc/1/ns/" + name,
		"thread-self":             "/proc/thread-self/ns/" + name,
		"symbolic link":           link,
		"bind mount":              file,
		"root of the shim":        fmt.Sprintf("/proc/%d/root/proc/1/ns/%s", shim, name),
		"another process":         host,
		"another process, by dot": fmt.Sprintf("/proc/./%d/ns/%s", os.Getpid(), name),
	}
}

// mainThreadPaths are ways to spell the namespaces of the shim's main thread:
// the host's of those types that this is not in.
func mainThreadPaths(shim int, name string) map[string]string {
	return map[string]string{
		"self":                 "/proc/self/ns/" + name,
		"shim by dot":          fmt.Sprintf("/proc/./%d/ns/%s", shim, name),
		"main thread":          fmt.Sprintf("/proc/%d/task/%d/ns/%s", shim, shim, name),
		"shim by way of /proc": fmt.Sprintf("/proc/../proc/%d/ns/%s", shim, name),
	}
}

// bindMount makes a file that is another one.
func bindMount(t *testing.T, source, file string) {
	t.Helper()
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, exec.CommandContext(testContext(t), "mount", "--bind", source, file).Run())
	t.Cleanup(func() {
		if out, err := exec.Command("umount", file).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// otherThread is a thread of a process that is not its main one.
func otherThread(t *testing.T, pid int) int {
	t.Helper()
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	must(t, err)
	for _, thread := range threads {
		if tid, _ := strconv.Atoi(thread.Name()); tid != pid {
			return tid
		}
	}
	t.Fatal("there is only one thread")
	return 0
}

// expectRefused expects that no member can be made whose namespace of a type is
// found by a path, and that nothing is left of the attempt.
func (p *handPod) expectRefused(t *testing.T, kind specs.LinuxNamespaceType, path string) {
	t.Helper()
	c := p.member(config{args: []string{"true"}, spec: []oci.SpecOpts{withPath(kind, path)}})
	_, err := c.NewTask(c.ctx, cio.NullIO)
	if err == nil {
		t.Errorf("%s: no error", path)
		return
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("error does not name %s: %v", path, err)
	}
	c.expectGone(t)
}

// expectGone expects that nothing is left of a task, whatever else there is.
func (c *container) expectGone(t *testing.T) {
	t.Helper()
	for _, dir := range []string{theNode.Bundle(theNode.ID, c.ID()), filepath.Join(theNode.RuntimeRoot(), theNode.ID, c.ID())} {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left", dir)
		}
	}
	if _, err := c.Task(c.ctx, nil); !errdefs.IsNotFound(err) {
		t.Errorf("task %s is left: %v", c.ID(), err)
	}
}

// withPath lets a container have a namespace by its path. That of a user
// namespace comes with ID mappings, as CRI has it.
func withPath(kind specs.LinuxNamespaceType, path string) oci.SpecOpts {
	if kind != specs.UserNamespace {
		return oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path})
	}
	return oci.Compose(withUserNamespace(), oci.WithLinuxNamespace(specs.LinuxNamespace{Type: kind, Path: path}))
}

func TestPathsToTheHostsNamespacesAreRefused(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause", withUserNamespace())
		p.run()
		for kind, name := range map[specs.LinuxNamespaceType]string{
			specs.PIDNamespace: "pid", specs.UserNamespace: "user", specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
		} {
			paths := hostPaths(t, p.pid(), name)
			if kind == specs.PIDNamespace || kind == specs.UserNamespace {
				for what, path := range mainThreadPaths(p.pid(), name) {
					paths[what] = path
				}
			}
			for what, path := range paths {
				t.Run(name+" of "+what, func(t *testing.T) { p.expectRefused(t, kind, path) })
			}
		}
		status, err := p.sandbox.task.Status(p.sandbox.ctx)
		must(t, err)
		expectEqual(t, "state of the sandbox", status.Status, containerd.Running)
	})
}

// The one path of the host's PID namespace that is not taken for what it is.
func TestPIDPathOfTheSandboxLeadsToThePods(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause")
		p.run()
		path := fmt.Sprintf("/proc/%d/ns/pid", p.pid())
		var seen []string
		for range 2 {
			c := p.member(config{args: []string{"sleep", "1000"}, spec: []oci.SpecOpts{withPath(specs.PIDNamespace, path)}})
			c.run(cio.NullIO)
			seen = append(seen, namespace(t, c.task.Pid(), "pid"))
		}
		expectEqual(t, "PID namespace of the other", seen[1], seen[0])
		for _, host := range []string{"self", fmt.Sprint(p.pid())} {
			if seen[0] == namespace(t, host, "pid") {
				t.Errorf("it is that of %s", host)
			}
		}
	})
}

// The sandbox's network is the pod's under any name, so that none is refused.
func TestPathsToThePodsNamespacesAreTaken(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause")
		p.run()
		for name, kind := range map[string]specs.LinuxNamespaceType{"net": specs.NetworkNamespace, "ipc": specs.IPCNamespace, "uts": specs.UTSNamespace} {
			for what, path := range mainThreadPaths(p.pid(), name) {
				c := p.member(config{args: []string{"sleep", "1000"}, spec: []oci.SpecOpts{withPath(kind, path)}})
				c.run(cio.NullIO)
				expectEqual(t, name+" of "+what, namespace(t, c.task.Pid(), name), namespace(t, p.pid(), name))
				c.remove()
			}
		}
	})
}

// With a sandbox that has ended, the path of its thread is the host's.
func TestPathsOfAnEndedSandboxAreRefused(t *testing.T) {
	withPause(t, func(t *testing.T) {
		p := podByHand(t, "pause")
		p.run()
		keeper := p.member(config{args: []string{"sleep", "1000"}})
		keeper.run(cio.NullIO)
		must(t, p.sandbox.task.Kill(p.sandbox.ctx, 9))
		expectEqual(t, "exit code", exitCode(t, p.sandbox.exited), 137)
		late := p.member(config{args: []string{"true"}, spec: []oci.SpecOpts{withPath(specs.NetworkNamespace, fmt.Sprintf("/proc/%d/ns/net", p.pid()))}})
		_, err := late.NewTask(late.ctx, cio.NullIO)
		if err == nil || !strings.Contains(err.Error(), "sandbox "+p.sandbox.ID()+" has ended") {
			t.Errorf("error: %v", err)
		}
		late.expectGone(t)
	})
}
