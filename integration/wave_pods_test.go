package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// What the pods of a wave are, and what happens to each.

// wavePod is a pod of a wave, as the seed has chosen it.
type wavePod struct {
	number        int
	kind, handler string
	containers    []waveContainer
}

func (p wavePod) String() string { return fmt.Sprintf("pod %d (%s, %s)", p.number, p.handler, p.kind) }

// waveContainer is one of its containers.
type waveContainer struct {
	name     string
	token    string // which it alone has
	end      ending
	code     int32 // with which it exits if nobody kills it
	execCode int32
	after    time.Duration // if it ends by itself
	notes    string        // a directory of the host in which it writes down what it exits with; "" for none
}

// ending is how a container ends.
type ending string

const (
	endsByItself ending = "ends by itself"
	isStopped    ending = "is stopped"
	isTold       ending = "is sent SIGTERM on the host"
	endsWithPod  ending = "ends with its pod"
	isKilled     ending = "is killed on the host"
)

// killedOf is one in how many containers is killed on the host.
const killedOf = 20

// handlersOfWave are those of pods without a user namespace.
var handlersOfWave = []string{sharedShim, sharedSandboxHandler, bounded(sharedShim, 3), bounded(sharedSandboxHandler, 3)}

// planWave chooses pods.
func planWave(random *rand.Rand, n int) []wavePod {
	names := slices.Sorted(maps.Keys(kinds))
	pods := make([]wavePod, n)
	var all []*waveContainer
	for i := range pods {
		p := &pods[i]
		p.number, p.kind = i, names[i%len(names)]
		p.handler = handlersOfWave[random.IntN(len(handlersOfWave))]
		if m := kinds[p.kind]; m.user {
			p.handler = m.handler(sharedShim)
		}
		p.containers = make([]waveContainer, 1+random.IntN(2))
		for j := range p.containers {
			p.containers[j] = planContainer(random, i, j)
			all = append(all, &p.containers[j])
		}
	}
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, c := range all[:(len(all)+killedOf-1)/killedOf] {
		c.end = isKilled
	}
	return pods
}

// planContainer chooses container j of pod i.
func planContainer(random *rand.Rand, i, j int) waveContainer {
	endings := []ending{endsByItself, isStopped, isTold, endsWithPod}
	return waveContainer{
		name: fmt.Sprintf("c%d", j), token: fmt.Sprintf("%d-%d-%08x", i, j, random.Uint32()),
		end: endings[random.IntN(len(endings))], after: time.Duration(random.IntN(1000)) * time.Millisecond,
		// Those above are what a shell and CRI have for signals and errors.
		code: 1 + random.Int32N(120), execCode: 1 + random.Int32N(120),
	}
}

// exitCode is what CRI has to report.
func (c waveContainer) exitCode() int32 {
	if c.end == isKilled || c.end == endsWithPod {
		return 137
	}
	return c.code
}

func (c waveContainer) script() string {
	leave := fmt.Sprintf("exit %d", c.code)
	if c.notes != "" {
		leave = fmt.Sprintf("echo %d >%s/%s; %s", c.code, notesInside, c.token, leave)
	}
	if c.end == endsByItself {
		return fmt.Sprintf("echo %s; sleep %.3f; %s", c.token, c.after.Seconds(), leave)
	}
	return fmt.Sprintf("trap '%s' TERM; echo %[2]s; echo %[2]s >/token; sleep 100000 & wait $!", leave, c.token)
}

// notesInside is where the container has its notes.
const notesInside = "/notes"

// live has a pod come and go.
func (w *wave) live(plan wavePod) error {
	defer w.enter(plan.handler)()
	p, err := w.runPod(plan)
	if err != nil {
		return err
	}
	running := make([]*waveTask, len(plan.containers))
	for i, c := range plan.containers {
		if running[i], err = w.start(p, c); err != nil {
			return fmt.Errorf("container %s: %w", c.name, err)
		}
	}
	for _, step := range []func(p *node.Pod, c *waveTask) error{w.exec, w.end, w.expectExit} {
		for _, c := range running {
			if err := step(p, c); err != nil {
				return fmt.Errorf("container %s, which %s: %w", c.name, c.end, err)
			}
		}
	}
	if err := w.again("StopPodSandbox", func() error { return p.Stop(w.ctx) }); err != nil {
		return err
	}
	for _, c := range running {
		c.podHasEnded = true
		if err := w.expectExit(p, c); err != nil {
			return fmt.Errorf("container %s, which %s: %w", c.name, c.end, err)
		}
	}
	return w.again("RemovePodSandbox", func() error { return p.Remove(w.ctx) })
}

// waveTask is a container that was started.
type waveTask struct {
	waveContainer
	id          string
	era         int64 // of its start
	podHasEnded bool
	known       bool // what it exited with
}

// waveLabel is the label of the pods of a wave with their numbers.
const waveLabel = "wave"

// runPod runs a pod, and once more if containerd ends meanwhile. There may be something of the first
// attempt then, which kubelet sees and removes.
func (w *wave) runPod(plan wavePod) (*node.Pod, error) {
	number := fmt.Sprint(plan.number)
	for {
		era := w.era.Load()
		p, err := theNode.RunPod(w.ctx, plan.handler, func(c *runtime.PodSandboxConfig) {
			kinds[plan.kind].apply(c)
			c.Labels = map[string]string{waveLabel: number}
		})
		if err == nil || !w.hasPassed(era) && !metLostSnapshot(err) {
			return p, err
		}
		w.count("RunPodSandbox")
		w.lostPod(plan.handler)
		if err := w.removePodsOf(number); err != nil {
			return nil, fmt.Errorf("cannot remove an attempt that containerd's end has cut off: %w", err)
		}
	}
}

func (w *wave) removePodsOf(number string) error {
	var pods []*runtime.PodSandbox
	err := w.again("ListPodSandbox", func() error {
		r, err := theNode.CRI().ListPodSandbox(w.ctx, &runtime.ListPodSandboxRequest{
			Filter: &runtime.PodSandboxFilter{LabelSelector: map[string]string{waveLabel: number}},
		})
		pods = r.GetItems()
		return err
	})
	for _, p := range pods {
		err = errors.Join(err,
			w.again("StopPodSandbox", func() error {
				_, err := theNode.CRI().StopPodSandbox(w.ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.Id})
				return err
			}),
			w.again("RemovePodSandbox", func() error {
				_, err := theNode.CRI().RemovePodSandbox(w.ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.Id})
				return err
			}))
	}
	return err
}

// start starts a container, and another in its place if containerd ends meanwhile.
func (w *wave) start(p *node.Pod, c waveContainer) (*waveTask, error) {
	for attempt := uint32(0); ; attempt++ {
		era := w.era.Load()
		id, err := p.CreateContainer(w.ctx, c.name, []string{"sh", "-c", c.script()}, func(config *runtime.ContainerConfig) {
			config.Metadata.Attempt = attempt
			if c.notes != "" {
				config.Mounts = append(config.Mounts, &runtime.Mount{HostPath: c.notes, ContainerPath: notesInside})
			}
		})
		if err == nil {
			err = theNode.StartContainer(w.ctx, id)
		}
		if err == nil {
			return &waveTask{waveContainer: c, id: id, era: era}, nil
		}
		if !w.hasPassed(era) && !metLostSnapshot(err) {
			return nil, err
		}
		w.count("CreateContainer and StartContainer")
		if err := w.removeContainersOf(p, c.name); err != nil {
			return nil, fmt.Errorf("cannot remove an attempt that containerd's end has cut off: %w", err)
		}
	}
}

func (w *wave) removeContainersOf(p *node.Pod, name string) error {
	var containers []*runtime.Container
	err := w.again("ListContainers", func() error {
		r, err := theNode.CRI().ListContainers(w.ctx, &runtime.ListContainersRequest{Filter: &runtime.ContainerFilter{PodSandboxId: p.ID}})
		containers = r.GetContainers()
		return err
	})
	for _, c := range containers {
		if c.Metadata.Name == name {
			err = errors.Join(err,
				w.again("StopContainer", func() error { return theNode.StopContainer(w.ctx, c.Id, 0) }),
				w.again("RemoveContainer", func() error { return theNode.RemoveContainer(w.ctx, c.Id) }))
		}
	}
	return err
}

// exec expects that the answer to an exec comes from the container.
func (w *wave) exec(_ *node.Pod, c *waveTask) error {
	if c.end == endsByItself {
		return nil
	}
	script := fmt.Sprintf("while ! [ -s /token ]; do sleep 0.02; done; cat /token; exit %d", c.execCode)
	var r *runtime.ExecSyncResponse
	err := w.again("ExecSync", func() (err error) {
		r, err = theNode.Exec(w.ctx, c.id, "sh", "-c", script)
		return err
	})
	if err == nil && (string(r.Stdout) != c.token+"\n" || r.ExitCode != c.execCode) {
		err = fmt.Errorf("exec: output %q and exit code %d, want %s and %d; %s", r.Stdout, r.ExitCode, c.token, c.execCode, r.Stderr)
	}
	return err
}

// end ends a container from outside, if it is one that ends so.
func (w *wave) end(p *node.Pod, c *waveTask) error {
	signals := map[ending]unix.Signal{isTold: unix.SIGTERM, isKilled: unix.SIGKILL}
	signal, ok := signals[c.end]
	if !ok {
		if c.end == isStopped {
			return w.again("StopContainer", func() error { return theNode.StopContainer(w.ctx, c.id, 60) })
		}
		return nil
	}
	var pid int
	err := w.again("ContainerStatus", func() (err error) {
		pid, err = p.ContainerPid(w.ctx, c.id)
		return err
	})
	if err != nil {
		return err
	}
	return unix.Kill(pid, signal)
}

// expectExit waits for the end of a container, and expects that CRI tells the truth of it.
func (w *wave) expectExit(p *node.Pod, c *waveTask) error {
	if c.known || c.end == endsWithPod && !c.podHasEnded {
		return nil
	}
	var s *runtime.ContainerStatus
	err := w.await("end", func() (bool, error) {
		var err error
		s, err = theNode.ContainerStatus(w.ctx, c.id)
		return s.GetState() == runtime.ContainerState_CONTAINER_EXITED, err
	})
	if err != nil {
		return fmt.Errorf("%w; it is %s", err, s.GetState())
	}
	if w.hasForgotten(c, s) {
		c.known = true
		w.count("exit code that containerd had received, and forgot")
		return nil
	}
	if s.ExitCode != c.exitCode() {
		return fmt.Errorf("container %s: exit code %d, want %d (%s)", c.id, s.ExitCode, c.exitCode(), s.Reason)
	}
	c.known = true
	w.exits.Add(1)
	if w.hasPassed(c.era) {
		return nil // containerd has ended with what it had read and not yet written
	}
	log := filepath.Join(p.Config.LogDirectory, c.name+".log")
	return w.await("output in the log", func() (bool, error) {
		text, err := os.ReadFile(log)
		return strings.Contains(string(text), " stdout F "+c.token+"\n"), err
	})
}

// hasForgotten says whether containerd reports an unknown exit for a container whose exit code it did
// get from the shim. It deletes the task before it writes the code down (handleContainerExit in
// internal/cri/server/events.go of 2.4.2); if it is killed in between, it finds no task when it starts
// (loadContainer in restart.go). The event in its log shows that the shim is not to blame.
func (w *wave) hasForgotten(c *waveTask, s *runtime.ContainerStatus) bool {
	if s.ExitCode != exitOfKilledShim || s.Reason != "Unknown" || !w.hasPassed(c.era) {
		return false
	}
	log, err := os.ReadFile(theNode.LogFile())
	if err != nil {
		return false
	}
	code := regexp.MustCompile(fmt.Sprintf(`exit_status:\s*%d\b`, c.exitCode()))
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "received container exit event") && strings.Contains(line, c.id) && code.MatchString(line) {
			return true
		}
	}
	return false
}

// metLostSnapshot says whether a call failed since a containerd that was killed had made the directory of a snapshot,
// and not yet written it down. The next snapshot gets the same number, finds the directory, fails, and removes it
// (createSnapshot in plugins/snapshots/overlay/overlay.go of 2.4.2).
func metLostSnapshot(err error) bool {
	return strings.Contains(err.Error(), "/snapshots/new-") && strings.HasSuffix(err.Error(), "file exists")
}

// again makes a call again, as kubelet does, if it fails since containerd ends meanwhile.
func (w *wave) again(call string, f func() error) error {
	for {
		era := w.era.Load()
		err := f()
		if err == nil || !w.hasPassed(era) {
			return err
		}
		w.count(call)
		select {
		case <-w.ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// await waits for a condition.
func (w *wave) await(what string, condition func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(w.ctx, patience*time.Minute)
	defer cancel()
	for {
		var holds bool
		err := w.again("another look", func() (err error) {
			holds, err = condition()
			return err
		})
		if err != nil || holds {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %s: %w", what, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
