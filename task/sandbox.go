package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"containerd-shim-pause-v2/process"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// The states of a sandbox, as CRI names them.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// CreateSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) CreateSandbox(ctx context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	t, err := s.supervisor.Create(ctx, process.CreateRequest{
		ID:      r.SandboxID,
		Bundle:  r.BundlePath,
		Options: s.options.process(),
		Sandbox: true,
		Pod:     &process.Pod{NetNS: r.NetnsPath},
		Prepare: func(request *process.CreateRequest) error { return s.prepare(r, request) },
	})
	if err != nil {
		return nil, err
	}
	t.Watch()
	return &sandboxapi.CreateSandboxResponse{}, nil
}

// prepare checks the pod's configuration, and writes the pod's spec into the bundle.
func (s *Service) prepare(r *sandboxapi.CreateSandboxRequest, request *process.CreateRequest) error {
	config, err := decodePodConfig(r.Options)
	if err != nil {
		return err
	}
	host, err := thisHost()
	if err != nil {
		return err
	}
	if config != nil {
		if err := config.check(host); err != nil {
			return err
		}
		if request.Files, err = config.files(r.SandboxID, r.BundlePath); err != nil {
			return err
		}
		if request.Pod.Config, err = json.Marshal(config); err != nil {
			return err
		}
		request.SharesPID = config.sharesPID()
		request.Pod.Cgroup = config.Linux.CgroupParent
	}
	if request.Pod.Spec, err = s.writeSpec(r, config, host); err != nil {
		return err
	}
	if config != nil {
		request.Spec = request.Pod.Spec
	}
	return nil
}

// writeSpec makes the spec of a sandbox and writes it into the bundle. CRI sends a pod's
// configuration instead of a spec. Other clients may have put a spec into the bundle; if
// there is none, all of the pod's namespaces are new.
func (s *Service) writeSpec(r *sandboxapi.CreateSandboxRequest, config *podConfig, h host) (*specs.Spec, error) {
	path := filepath.Join(r.BundlePath, "config.json")
	if config == nil {
		switch spec, err := givenSpec(path, r); {
		case err == nil:
			return spec, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
		config = new(podConfig)
	}
	spec := config.spec(r.SandboxID, r.NetnsPath, s.options, h)
	maps.Copy(spec.Annotations, r.Annotations)
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return spec, process.WriteSpec(r.BundlePath, data)
}

// givenSpec reads the spec that a client has put into the bundle, and adds the network
// namespace and the annotations of the request. Everything else in the file stays as it
// is, unknown fields included.
func givenSpec(path string, r *sandboxapi.CreateSandboxRequest) (*specs.Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the spec: %w", err)
	}
	var whole, linux map[string]json.RawMessage
	spec := new(specs.Spec)
	err = errors.Join(json.Unmarshal(data, spec), json.Unmarshal(data, &whole))
	if err == nil && whole == nil {
		err = errors.New("it has no spec")
	}
	if err == nil && whole["linux"] != nil {
		err = json.Unmarshal(whole["linux"], &linux)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot decode %s: %w: %w", path, err, errdefs.ErrInvalidArgument)
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if r.NetnsPath == "" && len(r.Annotations) == 0 {
		return spec, nil
	}
	addToSpec(spec, r)
	if linux == nil {
		linux = make(map[string]json.RawMessage)
	}
	var errs [4]error
	linux["namespaces"], errs[0] = json.Marshal(spec.Linux.Namespaces)
	whole["linux"], errs[1] = json.Marshal(linux)
	whole["annotations"], errs[2] = json.Marshal(spec.Annotations)
	data, errs[3] = json.Marshal(whole)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return spec, process.WriteSpec(r.BundlePath, data)
}

// addToSpec sets the network namespace and the annotations of a request in a spec.
func addToSpec(s *specs.Spec, r *sandboxapi.CreateSandboxRequest) {
	if s.Annotations == nil {
		s.Annotations = make(map[string]string)
	}
	maps.Copy(s.Annotations, r.Annotations)
	if r.NetnsPath == "" {
		return
	}
	network := specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: r.NetnsPath}
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == network.Type {
			s.Linux.Namespaces[i] = network
			return
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, network)
}

// sandbox returns a sandbox of the Sandbox API.
func (s *Service) sandbox(id string) (*process.Task, error) {
	t, err := s.supervisor.Task(id)
	if err != nil || t.Pod == nil {
		return nil, fmt.Errorf("there is no sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	return t, nil
}

// expects reports whether the shim was started for this sandbox, which has neither been
// created nor shut down, and when.
func (s *Service) expects(id string) (since time.Time, ok bool) {
	if _, err := s.supervisor.Task(id); err == nil {
		return since, false
	}
	return s.host.Expects(id)
}

// StartSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) StartSandbox(ctx context.Context, r *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	pid, err := initOf(sb).Start(ctx)
	if err != nil {
		return nil, err
	}
	spec, err := reportedSpec(sb.Pod.Spec, pid)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.StartSandboxResponse{Pid: uint32(pid), CreatedAt: timestamppb.New(initOf(sb).StartedAt()), Spec: spec}, nil
}

// specType is the type URL of an OCI spec in an Any (typeurl in containerd's client
// package).
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// reportedSpec returns the spec of a sandbox with the paths of its namespaces.
func reportedSpec(s *specs.Spec, pid int) (*anypb.Any, error) {
	names := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
	}
	spec, linux := *s, *s.Linux
	spec.Linux = &linux
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for i, ns := range linux.Namespaces {
		if name, ok := names[ns.Type]; ok {
			linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", pid, name)
		}
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{TypeUrl: specType, Value: data}, nil
}

// Platform restores the pod's files before it answers: containerd calls it before each
// container, just before CRI looks for these files.
func (s *Service) Platform(_ context.Context, r *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if err := sb.RestoreFiles(); err != nil {
		return nil, err
	}
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the sandbox and waits for the end. It does not end the pod's
// containers, as CRI stops them first.
func (s *Service) StopSandbox(ctx context.Context, r *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if r.TimeoutSecs > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutSecs)*time.Second)
		defer cancel()
	}
	if err := endTask(ctx, sb); err != nil {
		return nil, fmt.Errorf("cannot stop sandbox %s: %w", r.SandboxID, err)
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

// endTask kills everything in a task and waits for its end. A task that has already ended
// is no error.
func endTask(ctx context.Context, t *process.Task) error {
	if err := t.Kill("", unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	_, err := initOf(t).Wait(ctx)
	return err
}

// WaitSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) WaitSandbox(ctx context.Context, r *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	exit, err := initOf(sb).Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.WaitSandboxResponse{ExitStatus: exit.Status, ExitedAt: timestamp(exit)}, nil
}

// SandboxStatus also answers for a sandbox that the shim was started for, but that has
// not been created. If containerd is killed between the two, it lists the pod when it is
// back, and clients ask for the status before they remove the pod. The other RPCs need
// not answer for it: when containerd stops a sandbox or waits for one, it takes "not
// found" for the end.
func (s *Service) SandboxStatus(_ context.Context, r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		if since, ok := s.expects(r.SandboxID); ok {
			return &sandboxapi.SandboxStatusResponse{
				SandboxID: r.SandboxID, State: sandboxNotReady, CreatedAt: timestamppb.New(since),
			}, nil
		}
		return nil, err
	}
	st, started := initOf(sb).Status(), initOf(sb).StartedAt()
	resp := &sandboxapi.SandboxStatusResponse{
		SandboxID: r.SandboxID,
		Pid:       uint32(st.Pid),
		State:     sandboxNotReady,
		ExitedAt:  timestamp(st.Exit),
	}
	if !started.IsZero() {
		resp.CreatedAt = timestamppb.New(started)
	}
	if st.State == process.Running || st.State == process.Paused {
		resp.State = sandboxReady
	}
	if r.Verbose {
		if resp.Info, err = s.sandboxInfo(sb.Pod, st); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// sandboxInfo returns what `crictl inspectp` shows: the same as for a sandbox that is a
// container, except for the image, which this one does not have (SandboxInfo in
// containerd's internal/cri/server/podsandbox/types).
func (s *Service) sandboxInfo(pod *process.Pod, st process.Status) (map[string]string, error) {
	info := struct {
		Pid            int             `json:"pid"`
		Status         string          `json:"processStatus"`
		NetNSClosed    bool            `json:"netNamespaceClosed"`
		RuntimeType    string          `json:"runtimeType"`
		RuntimeOptions any             `json:"runtimeOptions"`
		Config         json.RawMessage `json:"config"`
		RuntimeSpec    *specs.Spec     `json:"runtimeSpec"`
	}{
		Pid: st.Pid, Status: st.State.String(), RuntimeType: s.host.Runtime, RuntimeOptions: s.options.Runc, Config: pod.Config, RuntimeSpec: pod.Spec,
	}
	if pod.NetNS != "" {
		_, err := os.Stat(pod.NetNS)
		info.NetNSClosed = errors.Is(err, fs.ErrNotExist)
	}
	data, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(data)}, nil
}

// PingSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	if _, err := s.sandbox(r.SandboxID); err != nil {
		return nil, err
	}
	return &sandboxapi.PingResponse{}, nil
}

// ShutdownSandbox removes the sandbox, with everything left in it, and ends the shim, unless
// it is shared and has others. containerd also calls it for a sandbox that could not be
// created, and again if it got no answer: then only the shim is left to end.
func (s *Service) ShutdownSandbox(ctx context.Context, r *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	if s.host.Shared { // It goes on, so that a create under way would make a sandbox that nobody knows.
		if _, err := s.supervisor.Settled(ctx, r.SandboxID, ""); err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("cannot shut down sandbox %s: %w", r.SandboxID, err)
		}
	}
	sb, err := s.sandbox(r.SandboxID)
	switch {
	case err == nil:
		err = s.removeAll(ctx, sb)
	case s.serves(r.SandboxID):
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot shut down sandbox %s: %w", r.SandboxID, err)
	}
	s.end(r.SandboxID)
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// serves reports whether there is nothing of a sandbox but room to give back, so that a
// shutdown of it has succeeded. A shim that is not shared must have been started for it, and
// have nothing else. For a shared shim it is any sandbox that it does not know: a containerd
// that was killed after the shim had removed a sandbox asks again, and if it heard "not
// found", it would keep the bundle (controllerLocal.Shutdown in plugins/sandbox/controller.go
// of 2.4).
func (s *Service) serves(id string) bool {
	_, err := s.supervisor.Task(id)
	return err != nil && (s.host.Shared || id == s.host.ID && !s.supervisor.HasOthers(id))
}

// end ends the shim after a sandbox. One that is shared goes on if it has other tasks.
func (s *Service) end(id string) {
	s.host.Forget(id)
	if s.host.Shared {
		s.Idle()
		return
	}
	s.host.Shutdown()
}

// GiveUp removes a task or sandbox, with everything left in it, that containerd takes for
// removed. One that is still being created is not. It does nothing if the id is in use by
// another bundle's.
func (s *Service) GiveUp(ctx context.Context, id, bundle string) error {
	t, err := s.supervisor.Settled(ctx, id, bundle)
	switch {
	case err == nil:
		err = s.removeAll(ctx, t)
	case !errdefs.IsNotFound(err):
	case s.supervisor.Has(id):
		return nil
	default:
		err = nil
	}
	if err != nil {
		return fmt.Errorf("cannot remove %s, which containerd has given up: %w", id, err)
	}
	s.end(id)
	return nil
}

// removeAll removes a sandbox with the containers that the client has left in it, or a
// container. A shim that is not shared ends with its sandbox, so it must leave no container
// at all.
func (s *Service) removeAll(ctx context.Context, t *process.Task) error {
	members := s.supervisor.Members(t.ID)
	if !s.host.Shared {
		members = slices.DeleteFunc(s.supervisor.Tasks(), func(t *process.Task) bool { return t.Pod != nil })
	}
	for _, m := range members {
		if err := s.remove(ctx, m); err != nil {
			return err
		}
	}
	return s.remove(ctx, t)
}

// forgottenLimit bounds how long the deletion of a sandbox may wait for containers that
// containerd has forgotten.
const forgottenLimit = 5 * time.Second

// removeForgotten removes the containers of a sandbox that has been deleted, if containerd has
// forgotten them. When it starts, it may find a container's bundle damaged and remove that,
// without a word to the shim. The shim would never end. What takes too long is left: the
// sandbox has been deleted, and the client waits to hear that.
func (s *Service) removeForgotten(ctx context.Context, sandboxID string) {
	ctx, cancel := context.WithTimeout(ctx, forgottenLimit)
	defer cancel()
	for _, m := range s.supervisor.Members(sandboxID) {
		if _, err := os.Stat(m.Bundle); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := s.remove(ctx, m); err != nil {
			log.G(ctx).WithError(err).WithField("id", m.ID).Warn("cannot remove all of a container whose bundle is gone")
		}
	}
}

// remove ends a task and deletes it, unless another request has deleted it.
func (s *Service) remove(ctx context.Context, t *process.Task) error {
	if err := endTask(ctx, t); err != nil {
		return err
	}
	st, err := t.Delete(ctx, "")
	if err != nil && initOf(t).Status().State == process.Deleted {
		return nil
	}
	if err != nil {
		return err
	}
	s.host.Removed(t.ID, t.Bundle, st)
	return nil
}

// SandboxMetrics implements [sandboxapi.TTRPCSandboxService].
func (s *Service) SandboxMetrics(_ context.Context, r *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	m, err := sb.PodStats()
	var data *anypb.Any
	if err == nil {
		data, err = typeurl.MarshalAnyToProto(m)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the metrics of sandbox %s: %w", r.SandboxID, err)
	}
	return &sandboxapi.SandboxMetricsResponse{Metrics: &types.Metric{
		Timestamp: timestamppb.Now(), ID: r.SandboxID, Data: data,
	}}, nil
}

// UpdateSandbox is called when containerd's record of the sandbox changes. Labels and
// extensions exist only in that record: CRI stores the resources of a resized pod in the
// extensions, for clients that ask, while the kubelet itself sets the limits of the pod's
// cgroup. Nothing else can change in a running sandbox.
func (s *Service) UpdateSandbox(ctx context.Context, r *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	for _, field := range r.Fields {
		if field != "labels" && field != "extensions" {
			return nil, fmt.Errorf("cannot update sandbox %s: field %q of a running sandbox cannot change: %w", r.SandboxID, field, errdefs.ErrInvalidArgument)
		}
	}
	//nolint:staticcheck // It is deprecated, but a client may send it.
	if data := r.Resources.GetValue(); data != nil {
		var resources specs.LinuxResources
		if err := json.Unmarshal(data, &resources); err != nil {
			return nil, fmt.Errorf("cannot decode the resources for sandbox %s: %w: %w", r.SandboxID, err, errdefs.ErrInvalidArgument)
		}
		if err := sb.Update(ctx, &resources); err != nil {
			return nil, err
		}
	}
	return &sandboxapi.UpdateSandboxResponse{}, nil
}
