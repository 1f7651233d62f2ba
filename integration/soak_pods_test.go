package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"containerd-shim-pause-v2/integration/node"
)

// The pods of a soak, and what is expected of each.

// soakPods is how many pods a round has, all at a time.
const soakPods = 6

// handlersOfSoak are those of pods without a user namespace.
var handlersOfSoak = []string{
	"runc", "pause", sandboxHandler, sharedShim, sharedSandboxHandler, bounded(sharedShim, 3), bounded(sharedSandboxHandler, 3),
}

// handlersOfUserSoak are those of pods with one.
var handlersOfUserSoak = []string{"runc", "pause", sharedShim}

// soakPod is a pod of a round.
type soakPod struct {
	wavePod
	tasks []*waveTask // that have started

	mu     sync.Mutex
	pod    *node.Pod // guarded by mu: nil before there is one
	shim   int       // guarded by mu: its pid; 0 before it is known
	excuse string    // guarded by mu: what has been done to it, so that its calls may fail; "" if nothing
	ends   bool      // guarded by mu: that ends it
	done   bool      // guarded by mu: it has been stopped, or its life has ended with an error
}

func (p *soakPod) String() string {
	if p == nil {
		return "no known pod"
	}
	return p.wavePod.String()
}

func (p *soakPod) isStock() bool { return strings.HasPrefix(p.handler, "runc") }

// isRunning says whether the pod is one that a fault can be chosen to meet.
func (p *soakPod) isRunning() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shim != 0 && !p.done
}

// forgive says what may be the reason if calls fail.
func (p *soakPod) forgive(excuse string, ends bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.excuse, p.ends = excuse, p.ends || ends
}

func (p *soakPod) forgiven() (excuse string, ends bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.excuse, p.ends
}

func (p *soakPod) where() (pod *node.Pod, shim int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pod, p.shim
}

func (p *soakPod) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = true
}

// planSoakPods chooses the pods of a round.
func planSoakPods(random *rand.Rand, number int, fault string, notes string) (pods []*soakPod) {
	names := slices.Sorted(maps.Keys(kinds))
	for i := range soakPods {
		p := &soakPod{}
		p.number, p.kind = number*soakPods+i, names[random.IntN(len(names))]
		if fault == killsPodInit && i < soakPods/2 {
			p.kind = "shared PID"
		}
		switch m := kinds[p.kind]; {
		case m.user:
			p.handler = m.handler(handlersOfUserSoak[random.IntN(len(handlersOfUserSoak))])
		case isTroubleOfRuntime(fault):
			p.handler = handlersOfTrouble[random.IntN(len(handlersOfTrouble))]
		default:
			p.handler = handlersOfSoak[random.IntN(len(handlersOfSoak))]
		}
		for j := range 1 + random.IntN(2) {
			c := planContainer(random, p.number, j)
			c.notes = notes
			if fault == killsContainer && j == 0 {
				c.end = isKilled
			}
			p.containers = append(p.containers, c)
		}
		pods = append(pods, p)
	}
	return pods
}

// live has a pod come and go. What goes wrong with it is an error unless it is forgiven.
func (s *soak) live(r *soakRound, p *soakPod) {
	r.begin(p)
	err := s.liveUndisturbed(r, p)
	p.end()
	if r.fault == stopsContainerd && err != nil && strings.Contains(err.Error(), "nobody reads ") {
		p.forgive(r.fault, false) // a shim waits 30 s for a reader, see readerTimeout in process/stdio
	}
	excuse, ends := p.forgiven()
	switch {
	case err == nil && !ends:
		s.countPod(p, "")
		return
	case excuse == "":
		s.fail(r, "%s: %v", p, err)
	default:
		s.countPod(p, excuse)
		s.explain(r, p, err)
	}
	<-r.healed
	if err := s.clean(r, p, ends); err != nil {
		s.fail(r, "%s, of which the excuse is %q, cannot be removed: %v", p, excuse, err)
	}
}

// liveUndisturbed is wave.live with more to fail, and to compare.
func (s *soak) liveUndisturbed(r *soakRound, p *soakPod) error {
	r.step()
	pod, err := s.runPod(p.wavePod)
	if err != nil {
		return fmt.Errorf("RunPodSandbox: %w", err)
	}
	shim, err := pod.ShimPid()
	if err == nil && p.isStock() {
		err = s.noteStockSocket(pod)
	}
	p.mu.Lock()
	p.pod, p.shim = pod, shim
	p.mu.Unlock()
	if err != nil {
		return err
	}
	for _, c := range p.containers {
		r.step()
		task, err := s.start(pod, c)
		if err != nil {
			return fmt.Errorf("container %s: %w", c.name, err)
		}
		p.tasks = append(p.tasks, task)
	}
	for _, step := range []func(p *node.Pod, c *waveTask) error{s.exec, s.wave.end, s.expectExit} {
		for _, task := range p.tasks {
			r.step()
			if err := step(pod, task); err != nil {
				return fmt.Errorf("container %s, which %s: %w", task.name, task.end, err)
			}
		}
	}
	r.step()
	if err := s.again("StopPodSandbox", func() error { return pod.Stop(s.ctx) }); err != nil {
		return fmt.Errorf("StopPodSandbox: %w", err)
	}
	p.end()
	for _, task := range p.tasks {
		task.podHasEnded = true
		if err := s.expectExit(pod, task); err != nil {
			return fmt.Errorf("container %s, which %s: %w", task.name, task.end, err)
		}
		s.checkStatus(r, p, task)
	}
	r.step()
	if err := s.again("RemovePodSandbox", func() error { return pod.Remove(s.ctx) }); err != nil {
		return fmt.Errorf("RemovePodSandbox: %w", err)
	}
	return nil
}

// checkStatus compares what CRI reports of a container that has ended with what that has written down.
func (s *soak) checkStatus(r *soakRound, p *soakPod, task *waveTask) {
	var status *runtime.ContainerStatus
	err := s.again("ContainerStatus", func() (err error) {
		status, err = theNode.ContainerStatus(s.ctx, task.id)
		return err
	})
	if err != nil {
		s.fail(r, "%s: container %s: %v", p, task.id, err)
		return
	}
	if status.State == runtime.ContainerState_CONTAINER_EXITED && !s.hasForgotten(task, status) {
		s.checkCode(r, p, task.id, status.ExitCode)
	}
}

// checkCode expects that a container has exited as it has written down, or by SIGKILL. There may have been a reason
// to send it one before it was gone, and after it had written.
func (s *soak) checkCode(r *soakRound, p *soakPod, id string, code int32) {
	i := slices.IndexFunc(p.tasks, func(t *waveTask) bool { return t.id == id })
	task := p.tasks[i]
	excuse, ends := p.forgiven()
	if code == exitOfKilledShim && (ends || excuse != "" && (r.endsShims() || r.restarted && p.isStock())) {
		return // nobody knows
	}
	text, err := os.ReadFile(filepath.Join(task.notes, task.token))
	switch own, _ := strconv.Atoi(strings.TrimSpace(string(text))); {
	case errors.Is(err, os.ErrNotExist):
		if code != 137 || excuse == "" && task.end != isKilled && task.end != endsWithPod {
			s.fail(r, "%s: container %s, which %s: exit code %d, though it has not exited by itself", p, id, task.end, code)
		}
	case err != nil:
		s.fail(r, "%v", err)
	case int32(own) != code && (code != 137 || excuse == "" && task.end != endsWithPod):
		s.fail(r, "%s: container %s, which %s: exit code %d, but it has exited with %d", p, id, task.end, code, own)
	}
}

// clean removes a pod as an operator does, who tries again, after checking what CRI says of it.
func (s *soak) clean(r *soakRound, p *soakPod, ends bool) error {
	ctx, cancel := context.WithTimeout(s.ctx, patience*time.Minute)
	defer cancel()
	if pod, _ := p.where(); pod != nil {
		err := s.await("end of the pod", func() (bool, error) {
			status, err := pod.Status(s.ctx)
			return err == nil && (!ends || status.State == runtime.PodSandboxState_SANDBOX_NOTREADY) || isNotFound(err), nil
		})
		if err != nil {
			s.fail(r, "%s has not ended: %v", p, err)
		}
	}
	number := fmt.Sprint(p.number)
	for {
		err := s.removePodsOf(number)
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.explain(r, p, err)
		time.Sleep(200 * time.Millisecond)
	}
}
