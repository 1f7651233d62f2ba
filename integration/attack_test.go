package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
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
