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

	"containerd-shim-pause-v2/cgroups"
	"containerd-shim-pause-v2/process"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// podSandbox is a sandbox that was made by the Sandbox service. It is the same
// thing in package process as one that was made by the Task service; only what
// containerd asks of it and is told of it differs.
type podSandbox struct {
	task    *process.Task
	config  *podConfig // nil for a client that is not CRI
	spec    *specs.Spec
	netns   string    // path of the network namespace; empty for one that the sandbox has made, or the host's
	started time.Time // guarded by Service.mu; zero before
}

// The states of a sandbox in CRI's words.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// CreateSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) CreateSandbox(ctx context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	if err := s.reserveSandbox(r.SandboxID, r.BundlePath); err != nil {
		return nil, fmt.Errorf("cannot create sandbox %s: %w", r.SandboxID, err)
	}
	made := false
	defer func() {
		if !made { // also after a panic
			s.forgetSandbox(r.SandboxID)
		}
	}()
	sb, err := s.makeSandbox(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("cannot create sandbox %s: %w", r.SandboxID, err)
	}
	s.mu.Lock()
	s.sandboxes[r.SandboxID] = sb
	s.mu.Unlock()
	made = true
	return &sandboxapi.CreateSandboxResponse{}, nil
}

func (s *Service) reserveSandbox(id, bundle string) error {
	bundle, err := checkBundle(id, bundle)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.sandboxes[id]; ok {
		return fmt.Errorf("it exists: %w", errdefs.ErrAlreadyExists)
	}
	if err := s.bundles.take(bundle, "sandbox "+id); err != nil {
		return err
	}
	s.sandboxes[id] = nil
	return nil
}

func (s *Service) forgetSandbox(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, id)
	s.bundles.giveBack("sandbox " + id)
}

func (s *Service) makeSandbox(ctx context.Context, r *sandboxapi.CreateSandboxRequest) (*podSandbox, error) {
	config, err := decodePodConfig(r.Options)
	if err != nil {
		return nil, err
	}
	host, err := thisHost()
	if err != nil {
		return nil, err
	}
	request := process.CreateRequest{ID: r.SandboxID, Bundle: r.BundlePath, Options: s.options.process(), Sandbox: true}
	if config != nil {
		if err := config.check(host); err != nil {
			return nil, err
		}
		if request.Files, err = config.files(r.SandboxID, r.BundlePath); err != nil {
			return nil, err
		}
	}
	spec, err := s.writeSpec(r, config, host)
	if err != nil {
		return nil, err
	}
	if config != nil {
		request.Spec = spec
	}
	task, err := s.supervisor.Create(ctx, request)
	if err != nil {
		return nil, err
	}
	task.Watch()
	return &podSandbox{task: task, config: config, spec: spec, netns: r.NetnsPath}, nil
}

// writeSpec makes the spec of a sandbox and writes it into the bundle. CRI sends a
// pod's configuration instead of one; other clients may have given one when they
// made the bundle, or none, then the pod gets all namespaces anew.
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
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return nil, fmt.Errorf("cannot write the spec: %w", err)
	}
	return spec, nil
}

// givenSpec reads the spec that a client has put into the bundle, and adds what
// the request says besides. All else in the file stays as it is, known or not.
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
	return spec, os.WriteFile(path, data, 0o600)
}

// addToSpec gives the path of the network namespace and the annotations of a request to
// a spec.
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

// sandbox returns a sandbox that has been created.
func (s *Service) sandbox(id string) (*podSandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sb := s.sandboxes[id]; sb != nil {
		return sb, nil
	}
	return nil, fmt.Errorf("there is no sandbox %s: %w", id, errdefs.ErrNotFound)
}

// expects says that the shim was started for a sandbox of that id, which has not been made
// and has not been shut down either.
func (s *Service) expects(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, isTask := s.tasks[id]
	return id == s.own && s.sandboxes[id] == nil && !s.gone && !isTask
}

// process returns the sandbox as what can be started and waited for.
func (sb *podSandbox) process() *process.Process {
	p, err := sb.task.Process("")
	if err != nil {
		panic(err) // a task has an init as long as it exists
	}
	return p
}

// StartSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) StartSandbox(ctx context.Context, r *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	pid, err := sb.process().Start(ctx)
	if err != nil {
		return nil, err
	}
	if sb.config.sharesPID() {
		if err := sb.task.StartInit(ctx); err != nil {
			return nil, fmt.Errorf("cannot start sandbox %s: %w", r.SandboxID, err)
		}
	}
	spec, err := sb.reportedSpec(pid)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	s.mu.Lock()
	sb.started = started
	s.mu.Unlock()
	return &sandboxapi.StartSandboxResponse{Pid: uint32(pid), CreatedAt: timestamppb.New(started), Spec: spec}, nil
}

// specType is the type of an OCI spec in an Any (typeurl in containerd's
// client package).
const specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// reportedSpec is the spec with the paths at which the namespaces are.
func (sb *podSandbox) reportedSpec(pid int) (*anypb.Any, error) {
	names := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts",
	}
	spec, linux := *sb.spec, *sb.spec.Linux
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

// Platform is asked for before each container, just before CRI looks for the
// pod's files.
func (s *Service) Platform(_ context.Context, r *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if err := sb.task.RestoreFiles(); err != nil {
		return nil, err
	}
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the sandbox, but not its containers, which are CRI's to stop
// first; and waits for the end.
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
	if err := sb.stop(ctx); err != nil {
		return nil, fmt.Errorf("cannot stop sandbox %s: %w", r.SandboxID, err)
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

func (sb *podSandbox) stop(ctx context.Context) error { return endTask(ctx, sb.task) }

// endTask kills what is in a task and waits for its end. One that has ended
// already is no error.
func endTask(ctx context.Context, t *process.Task) error {
	if err := t.Kill("", unix.SIGKILL, true); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	p, err := t.Process("")
	if err != nil {
		return err
	}
	_, err = p.Wait(ctx)
	return err
}

// WaitSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) WaitSandbox(ctx context.Context, r *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	exit, err := sb.process().Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.WaitSandboxResponse{ExitStatus: exit.Status, ExitedAt: timestamp(exit)}, nil
}

// SandboxStatus answers for a sandbox that the shim was started for and that has not been
// created, too: a containerd that was killed between the two lists the pod when it is back,
// and clients which remove it look at its status first. The other RPCs need not answer for it:
// containerd takes "not found" for an end when it stops a sandbox or waits for one.
func (s *Service) SandboxStatus(_ context.Context, r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil && s.expects(r.SandboxID) {
		return &sandboxapi.SandboxStatusResponse{
			SandboxID: r.SandboxID, State: sandboxNotReady, CreatedAt: timestamppb.New(s.born),
		}, nil
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	started := sb.started
	s.mu.Unlock()
	st := sb.process().Status()
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
		if resp.Info, err = s.sandboxInfo(sb, st); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// sandboxInfo is what `crictl inspectp` shows: the same as of a sandbox that is a
// container, but for the image that there is not (SandboxInfo in containerd's
// internal/cri/server/podsandbox/types).
func (s *Service) sandboxInfo(sb *podSandbox, st process.Status) (map[string]string, error) {
	info := struct {
		Pid            int         `json:"pid"`
		Status         string      `json:"processStatus"`
		NetNSClosed    bool        `json:"netNamespaceClosed"`
		RuntimeType    string      `json:"runtimeType"`
		RuntimeOptions any         `json:"runtimeOptions"`
		Config         *podConfig  `json:"config"`
		RuntimeSpec    *specs.Spec `json:"runtimeSpec"`
	}{
		Pid: st.Pid, Status: st.State.String(), RuntimeType: runtimeType, RuntimeOptions: s.options.Runc, Config: sb.config, RuntimeSpec: sb.spec,
	}
	if sb.netns != "" {
		_, err := os.Stat(sb.netns)
		info.NetNSClosed = errors.Is(err, fs.ErrNotExist)
	}
	data, err := json.Marshal(info)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(data)}, nil
}

// runtimeType is the runtime type that this shim is for.
const runtimeType = "io.containerd.pause.v2"

// PingSandbox implements [sandboxapi.TTRPCSandboxService].
func (s *Service) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	if _, err := s.sandbox(r.SandboxID); err != nil {
		return nil, err
	}
	return &sandboxapi.PingResponse{}, nil
}

// ShutdownSandbox removes the sandbox, with all that is left in it, and ends the
// shim. containerd calls it for a sandbox that could not be created, too, and again
// if it had no answer: then there is nothing but the shim to end.
func (s *Service) ShutdownSandbox(ctx context.Context, r *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	switch {
	case err == nil:
		err = s.removeTasks(ctx)
		if err == nil {
			err = s.removeSandbox(ctx, sb)
		}
		if errdefs.IsNotFound(err) {
			err = nil
		}
	case s.serves(r.SandboxID):
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot shut sandbox %s down: %w", r.SandboxID, err)
	}
	s.end(r.SandboxID)
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// serves says that the shim was started for the id, and has nothing else.
func (s *Service) serves(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.sandboxes {
		if other != id {
			return false
		}
	}
	return id == s.own && len(s.tasks) == 0
}

// end ends the shim after its sandbox.
func (s *Service) end(id string) {
	s.mu.Lock()
	s.gone = s.gone || id == s.own
	s.mu.Unlock()
	s.shutdown()
}

// removeTasks removes containers that the client has left in the pod.
func (s *Service) removeTasks(ctx context.Context) error {
	s.mu.Lock()
	tasks := slices.DeleteFunc(slices.Collect(maps.Values(s.tasks)), func(t *process.Task) bool { return t == nil })
	s.mu.Unlock()
	for _, t := range tasks {
		if err := endTask(ctx, t); err != nil {
			return err
		}
		switch st, err := t.Delete(ctx, ""); {
		case err == nil:
			s.removed(t.Bundle, st)
		case !errdefs.IsFailedPrecondition(err): // else it has been deleted meanwhile
			return err
		}
		s.forget(t.ID)
	}
	return nil
}

func (s *Service) removeSandbox(ctx context.Context, sb *podSandbox) error {
	if err := sb.stop(ctx); err != nil {
		return err
	}
	st, err := sb.task.Delete(ctx, "")
	if err != nil {
		return err
	}
	s.removed(sb.task.Bundle, st)
	s.forgetSandbox(sb.task.ID)
	return nil
}

// SandboxMetrics implements [sandboxapi.TTRPCSandboxService].
func (s *Service) SandboxMetrics(_ context.Context, r *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	sb, err := s.sandbox(r.SandboxID)
	if err != nil {
		return nil, err
	}
	m, err := sb.metrics()
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

// metrics are those of the pod's cgroup, in which the sandbox's is one beside
// those of the containers: CRI shows them as the pod's.
func (sb *podSandbox) metrics() (cgroups.Metrics, error) {
	if sb.config == nil || sb.config.Linux.CgroupParent == "" {
		return sb.task.Stats()
	}
	pod, err := cgroups.Load(sb.config.Linux.CgroupParent, false)
	if err != nil {
		return nil, err
	}
	return pod.Stat()
}

// UpdateSandbox is told of changes in containerd's record of the sandbox. Labels
// and extensions are only kept there: CRI puts the resources of a pod that was
// resized into the latter for those who ask, while the kubelet sets the limits of
// the pod's cgroup itself. Nothing else can change in a sandbox that runs.
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
		if err := sb.task.Update(ctx, &resources); err != nil {
			return nil, err
		}
	}
	return &sandboxapi.UpdateSandboxResponse{}, nil
}
