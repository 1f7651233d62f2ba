package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"containerd-shim-pause-v2/process/oci"
	"containerd-shim-pause-v2/process/pod"
	"containerd-shim-pause-v2/process/reap"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// podInit is the init of the PID namespace that the containers of a pod share. The shim
// cannot be that init: a process that may trace PID 1 would reach the host's files through
// /proc/1/root. So the pod init is a program that can only reap, and the OCI runtime runs
// it as a container without any rights. Only pods that share their PID namespace have one.
// The sandbox and its pod init end together: when the init ends, the kernel kills all
// other processes in its PID namespace (pid_namespaces(7)).
type podInit struct {
	child *reap.Child
	ns    *pod.NSFile   // the PID namespace
	ended chan struct{} // closed when the init has been reaped
}

// startInit starts the pod init before a container needs it.
func (s *sandbox) startInit(ctx context.Context) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if !s.own[specs.PIDNamespace] {
		return fmt.Errorf("sandbox %s has no PID namespace that containers could share: %w", s.task.ID, errdefs.ErrInvalidArgument)
	}
	_, err = s.needPodInit(ctx)
	return whyEnded(ctx, err)
}

// needPodInit returns the pod init, and starts it on first use. The caller must have
// entered the sandbox.
func (s *sandbox) needPodInit(ctx context.Context) (*podInit, error) {
	s.bringUp.Lock()
	defer s.bringUp.Unlock()
	if i := s.podInit(); i != nil {
		return i, nil
	}
	i, err := s.startPodInit(ctx)
	if err == nil && !s.adoptPodInit(i) {
		s.supervisor.abandon(i.child)
		i.ns.Close()
		err = &endedError{s.task.ID}
	}
	if err != nil {
		err = fmt.Errorf("cannot run the init of the pod's PID namespace: %w", err)
		return nil, errors.Join(err, s.removePodInit(context.WithoutCancel(ctx)), s.restoreCgroup())
	}
	// Without a pod init, a sandbox has no process that the kernel could kill.
	s.task.watchOOM(nil)
	go s.awaitPodInit(i)
	return i, nil
}

// adoptPodInit makes i the pod init. It returns false if the sandbox has ended.
func (s *sandbox) adoptPodInit(i *podInit) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.init = i
	return true
}

// restoreCgroup recreates the sandbox's cgroup after a pod init that failed: the OCI
// runtime, or systemd, may have removed the cgroup with the init.
func (s *sandbox) restoreCgroup() error {
	if s.life.Err() != nil {
		return nil
	}
	spec, err := oci.ReadSpec(s.task.Bundle)
	if err != nil {
		return err
	}
	return s.makeCgroup(spec, s.options.SystemdCgroup)
}

// podInit returns the pod init; nil before it has been started.
func (s *sandbox) podInit() *podInit {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.init
}

func (s *sandbox) startPodInit(ctx context.Context) (_ *podInit, err error) {
	spec, err := oci.ReadSpec(s.task.Bundle)
	if err != nil {
		return nil, err
	}
	bundle := s.podInitBundle()
	if err := os.MkdirAll(bundle, 0o711); err != nil {
		return nil, err
	}
	if err := pod.MakeInitRoot(s.initRoot, pod.EnabledLabels(spec).Mount); err != nil {
		return nil, err
	}
	defer s.supervisor.reaper.Hold()()
	pidFile := filepath.Join(bundle, "init.pid")
	if err := s.runPodInit(ctx, spec, bundle, pidFile); err != nil {
		return nil, err
	}
	pid, err := oci.ReadPidFile(pidFile)
	if err != nil {
		return nil, err
	}
	i := &podInit{child: s.supervisor.reaper.Claim(pid), ended: make(chan struct{})}
	if i.ns, err = openPodNamespace(fmt.Sprintf("/proc/%d/ns/pid", pid), specs.PIDNamespace); err != nil {
		s.supervisor.abandon(i.child)
		return nil, err
	}
	return i, nil
}

// openPodNamespace opens a namespace that must not be the host's.
func openPodNamespace(path string, kind specs.LinuxNamespaceType) (*pod.NSFile, error) {
	f, err := pod.Open(path)
	if err != nil {
		return nil, err
	}
	host, err := pod.HostNamespace(kind)
	if err == nil && f.ID == host {
		err = fmt.Errorf("the OCI runtime did not create a %s namespace", kind)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// runPodInit has the OCI runtime run the pod init. A runtime that was built without
// seccomp refuses a spec with a filter; then the init's other restrictions must suffice.
func (s *sandbox) runPodInit(ctx context.Context, spec *specs.Spec, bundle, pidFile string) error {
	rt := s.supervisor.ociRuntime(bundle, s.options)
	run := func(seccomp *specs.LinuxSeccomp) error {
		config := s.podInitSpec(spec)
		config.Linux.Seccomp = seccomp
		if err := oci.WriteJSON(filepath.Join(bundle, "config.json"), config); err != nil {
			return err
		}
		return rt.RunDetached(ctx, s.task.ID, pidFile)
	}
	err := run(podInitSeccomp)
	if err == nil || rt.HasSeccomp(ctx) {
		return err
	}
	log.G(ctx).WithField("id", s.task.ID).Warn("the OCI runtime has no seccomp support: the init of the pod's PID namespace runs without a filter")
	return errors.Join(rt.Delete(ctx, s.task.ID, true), run(nil))
}

// awaitPodInit waits until the pod init has ended, and ends the sandbox then.
func (s *sandbox) awaitPodInit(i *podInit) {
	i.child.Await()
	defer s.supervisor.begin()()
	status, err := i.child.Reap()
	if err != nil {
		log.L.WithError(err).WithField("id", s.task.ID).Error("cannot get the exit status of the pod's init: reporting 255")
	}
	close(i.ended)
	s.end(status)
}

// endPodInit kills the pod init, if there is one, and with it all processes in its PID
// namespace. It returns when the init has been reaped.
func (s *sandbox) endPodInit() {
	i := s.podInit()
	if i == nil {
		return
	}
	if err := s.killPodInit(i); err != nil && !errdefs.IsNotFound(err) {
		log.L.WithError(err).WithField("id", s.task.ID).Error("cannot kill the pod's init: processes of the pod may still run")
		return
	}
	<-i.ended
	i.ns.Close()
}

// removePodInit removes what is left of a pod init that has ended or failed to start.
func (s *sandbox) removePodInit(ctx context.Context) error {
	failed := s.podInit() == nil // a failed start may leave a process; runc takes 0.1 s to look for one
	bundle := s.podInitBundle()
	if _, err := os.Stat(bundle); errors.Is(err, os.ErrNotExist) {
		return nil // there was no pod init
	}
	if err := s.supervisor.ociRuntime(bundle, s.options).Delete(ctx, s.task.ID, failed); err != nil {
		return err
	}
	if err := pod.RemoveInitRoot(s.initRoot, s.task.Bundle); err != nil {
		return err
	}
	return os.RemoveAll(bundle)
}

// podInitBundle returns the path of the pod init's bundle.
func (s *sandbox) podInitBundle() string { return filepath.Join(s.task.Bundle, podInitDir) }

// podInitDir is the name of the pod init's bundle in the sandbox's bundle.
const podInitDir = "init"
