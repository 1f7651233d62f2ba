package task

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"containerd-shim-pause-v2/process/proctest"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// home is where containerd keeps its files, for one sandbox.
type home struct{ bundle, files, shm string }

func newHome(t *testing.T) home {
	t.Helper()
	const id = "pod"
	dir := t.TempDir()
	const plugin = "io.containerd.sandbox.controller.v1.shim/k8s.io"
	h := home{
		bundle: filepath.Join(dir, "state", plugin, id),
		files:  filepath.Join(dir, "root/io.containerd.grpc.v1.cri/sandboxes", id),
		shm:    filepath.Join(dir, "state/io.containerd.grpc.v1.cri/sandboxes", id, "shm"),
	}
	work := filepath.Join(dir, "root", plugin, id)
	proctest.Must(t, os.MkdirAll(work, 0o711))
	proctest.Must(t, os.MkdirAll(h.bundle, 0o711))
	proctest.Must(t, os.Symlink(work, filepath.Join(h.bundle, "work")))
	return h
}

// config is of a pod with network, IPC and PID namespaces of its own.
func config(t *testing.T) *cri.PodSandboxConfig {
	t.Helper()
	return &cri.PodSandboxConfig{
		Metadata:  &cri.PodSandboxMetadata{Name: "name", Uid: "uid", Namespace: "ns", Attempt: 3},
		Hostname:  "host-of-pod",
		DnsConfig: &cri.DNSConfig{Servers: []string{"1.2.3.4", "::1"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}},
		Labels:    map[string]string{"l": "1"},
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: cgroupPath(t),
			Sysctls:      map[string]string{"kernel.msgmax": "9001"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER},
			},
		},
	}
}

func (n *node) createRequest(h home, c *cri.PodSandboxConfig) *sandboxapi.CreateSandboxRequest {
	n.t.Helper()
	r := &sandboxapi.CreateSandboxRequest{SandboxID: filepath.Base(h.bundle), BundlePath: h.bundle}
	if c != nil {
		options, err := typeurl.MarshalAnyToProto(c)
		proctest.Must(n.t, err)
		r.Options = options
	}
	return r
}

// createSandbox creates a sandbox that is shut down at the end of the test.
func (n *node) createSandbox(r *sandboxapi.CreateSandboxRequest) {
	n.t.Helper()
	_, err := n.sandboxes.CreateSandbox(proctest.Context(n.t), r)
	proctest.Must(n.t, err)
	n.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), proctest.Deadline)
		defer cancel()
		_, err := n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: r.SandboxID})
		proctest.Must(n.t, err)
	})
}

func (n *node) startSandbox() *sandboxapi.StartSandboxResponse {
	n.t.Helper()
	resp, err := n.sandboxes.StartSandbox(proctest.Context(n.t), &sandboxapi.StartSandboxRequest{SandboxID: "pod"})
	proctest.Must(n.t, err)
	return resp
}

func (n *node) status() *sandboxapi.SandboxStatusResponse {
	n.t.Helper()
	resp, err := n.sandboxes.SandboxStatus(proctest.Context(n.t), &sandboxapi.SandboxStatusRequest{SandboxID: "pod", Verbose: true})
	proctest.Must(n.t, err)
	return resp
}

func TestLifeThroughTheSandboxService(t *testing.T) {
	n, h, ctx := newNode(t), newHome(t), proctest.Context(t)
	n.createSandbox(n.createRequest(h, config(t)))
	if state := n.status().State; state != sandboxNotReady {
		t.Errorf("created, it is %s", state)
	}
	start := n.startSandbox()
	if start.Pid != threadID || start.CreatedAt.AsTime().IsZero() {
		t.Errorf("start: %v", start)
	}
	var spec specs.Spec
	proctest.Must(t, json.Unmarshal(start.Spec.Value, &spec))
	if paths := len(slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Path == "" })); paths != 3 {
		t.Errorf("the spec has paths of %d namespaces: %+v", paths, spec.Linux.Namespaces)
	}
	st := n.status()
	if st.State != sandboxReady || st.Pid != threadID || !st.CreatedAt.AsTime().Equal(start.CreatedAt.AsTime()) || st.ExitedAt != nil {
		t.Errorf("started, it is %v", st)
	}
	platform, err := n.sandboxes.Platform(ctx, &sandboxapi.PlatformRequest{SandboxID: "pod"})
	proctest.Must(t, err)
	if platform.Platform.OS != "linux" || platform.Platform.Architecture == "" {
		t.Errorf("platform %v", platform)
	}
	_, err = n.sandboxes.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: "pod"})
	proctest.Must(t, err)
	metrics, err := n.sandboxes.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: "pod"})
	proctest.Must(t, err)
	if _, err := typeurl.UnmarshalAny(metrics.Metrics.Data); err != nil || metrics.Metrics.ID != "pod" {
		t.Errorf("metrics %v, error %v", metrics, err)
	}
	// Task Shutdown is asked for after each container.
	_, err = n.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c"})
	proctest.Must(t, err)
	if len(n.shutdowns) != 0 {
		t.Error("the shim ends with a sandbox in it")
	}
	for range 2 {
		_, err = n.sandboxes.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: "pod", TimeoutSecs: 10})
		proctest.Must(t, err)
	}
	wait, err := n.sandboxes.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: "pod"})
	proctest.Must(t, err)
	if st := n.status(); wait.ExitStatus != 137 || st.State != sandboxNotReady || !st.ExitedAt.AsTime().Equal(wait.ExitedAt.AsTime()) {
		t.Errorf("stopped, it is %v, exit %v", st, wait)
	}
	n.wantRemoved()
	_, err = n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"})
	proctest.Must(t, err)
	if len(n.shutdowns) != 1 {
		t.Errorf("the shim was asked to end %d times", len(n.shutdowns))
	}
	n.wantRemoved(fmt.Sprintf("%s %d 137", h.bundle, threadID))
	if events := n.events.all(); len(events) > 0 {
		t.Errorf("events were published: %v", events)
	}
}

func TestFilesOfAPod(t *testing.T) {
	hosts, err := os.ReadFile("/etc/hosts")
	proctest.Must(t, err)
	resolv, err := os.ReadFile("/etc/resolv.conf")
	proctest.Must(t, err)
	hostname, err := os.Hostname()
	proctest.Must(t, err)
	for name, tc := range map[string]struct {
		change           func(*cri.PodSandboxConfig)
		hostname, resolv string
		ownIPC           bool
	}{
		"own":        {func(*cri.PodSandboxConfig) {}, "host-of-pod", "search a.b c\nnameserver 1.2.3.4\nnameserver ::1\noptions ndots:5\n", true},
		"the host's": {func(c *cri.PodSandboxConfig) { c.Hostname, c.DnsConfig = "", nil }, hostname, string(resolv), true},
		"empty DNS":  {func(c *cri.PodSandboxConfig) { c.DnsConfig = &cri.DNSConfig{} }, "host-of-pod", "", true},
		"IPC of the host": {func(c *cri.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Ipc = cri.NamespaceMode_NODE
			c.Linux.Sysctls = nil
		}, "host-of-pod", "search a.b c\nnameserver 1.2.3.4\nnameserver ::1\noptions ndots:5\n", false},
	} {
		t.Run(name, func(t *testing.T) {
			n, h := newNode(t), newHome(t)
			c := config(t)
			tc.change(c)
			n.createSandbox(n.createRequest(h, c))
			for file, want := range map[string]string{"hostname": tc.hostname + "\n", "hosts": string(hosts), "resolv.conf": tc.resolv} {
				path := filepath.Join(h.files, file)
				got, err := os.ReadFile(path)
				proctest.Must(t, err)
				if string(got) != want {
					t.Errorf("%s is %q, want %q", file, got, want)
				}
				if st, err := os.Stat(path); err != nil || st.Mode() != 0o644 {
					t.Errorf("%s: %v, error %v", file, st.Mode(), err)
				}
			}
			var st unix.Statfs_t
			err := unix.Statfs(h.shm, &st)
			if tc.ownIPC != (err == nil) {
				t.Fatalf("shm: %v", err)
			}
			if tc.ownIPC && (st.Type != unix.TMPFS_MAGIC || st.Blocks*uint64(st.Bsize) != 64<<20 || st.Flags&unix.ST_NOEXEC == 0) {
				t.Errorf("shm is %+v", st)
			}
			_, err = n.sandboxes.StopSandbox(proctest.Context(t), &sandboxapi.StopSandboxRequest{SandboxID: "pod"})
			proctest.Must(t, err)
			if mounted, _ := mountinfo.Mounted(h.shm); mounted {
				t.Error("shm is mounted when the sandbox has stopped")
			}
			_, err = n.sandboxes.ShutdownSandbox(proctest.Context(t), &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"})
			proctest.Must(t, err)
			for _, dir := range []string{h.files, filepath.Dir(h.shm)} {
				if _, err := os.Stat(dir); !os.IsNotExist(err) {
					t.Errorf("%s is left", dir)
				}
			}
		})
	}
}

func TestFilesOfOthersAreLeftAlone(t *testing.T) {
	elsewhere := t.TempDir()
	for name, prepare := range map[string]func(h home) error{
		"directory of files": func(h home) error { return os.MkdirAll(h.files, 0o700) },
		"link for files":     func(h home) error { return linkTo(elsewhere, h.files) },
		"link for shm":       func(h home) error { return linkTo(elsewhere, filepath.Dir(h.shm)) },
	} {
		t.Run(name, func(t *testing.T) {
			n, h := newNode(t), newHome(t)
			proctest.Must(t, prepare(h))
			_, err := n.sandboxes.CreateSandbox(proctest.Context(t), n.createRequest(h, config(t)))
			if err == nil {
				t.Error("no error")
			}
			if entries, _ := os.ReadDir(elsewhere); len(entries) > 0 {
				t.Errorf("written elsewhere: %v", entries)
			}
			if name == "directory of files" {
				if _, err := os.Stat(h.files); err != nil {
					t.Error(err)
				}
			}
			if mounted, _ := mountinfo.Mounted(h.shm); mounted {
				t.Error("shm is mounted")
			}
		})
	}
}

func linkTo(target, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

func TestInfoOfASandbox(t *testing.T) {
	n, h := newNode(t), newHome(t)
	c := config(t)
	n.createSandbox(n.createRequest(h, c))
	n.startSandbox()
	var info struct {
		Pid     uint32                `json:"pid"`
		Status  string                `json:"processStatus"`
		Config  *cri.PodSandboxConfig `json:"config"`
		Spec    *specs.Spec           `json:"runtimeSpec"`
		Options map[string]any        `json:"runtimeOptions"`
	}
	proctest.Must(t, json.Unmarshal([]byte(n.status().Info["info"]), &info))
	if info.Pid != threadID || info.Status != "running" || info.Options["binary_name"] != n.options.BinaryName {
		t.Errorf("info is %+v", info)
	}
	if info.Config.String() != c.String() {
		t.Errorf("the configuration is\n%v, was\n%v", info.Config, c)
	}
	if info.Spec.Hostname != "host-of-pod" || info.Spec.Linux.CgroupsPath != cgroupPath(t)+"/pod" {
		t.Errorf("the spec is %+v", info.Spec)
	}
}

func TestSpecOfAPod(t *testing.T) {
	const node = cri.NamespaceMode_NODE
	for name, tc := range map[string]struct {
		change func(*cri.PodSandboxConfig, *cri.NamespaceOption)
		want   string // types of namespaces
		check  func(*specs.Spec) bool
	}{
		"usual": {nil, "mount pid ipc network uts", func(s *specs.Spec) bool {
			return s.Hostname == "host-of-pod" && s.Linux.Sysctl["net.ipv4.ip_unprivileged_port_start"] == "0" && s.Process.User.UID == 65535
		}},
		"network of the host": {func(_ *cri.PodSandboxConfig, o *cri.NamespaceOption) { o.Network = node }, "mount pid ipc", func(s *specs.Spec) bool {
			return s.Hostname == "" && len(s.Linux.Sysctl) == 1
		}},
		"PID and IPC of the host": {func(_ *cri.PodSandboxConfig, o *cri.NamespaceOption) { o.Pid, o.Ipc = node, node }, "mount network uts", nil},
		"user namespace": {func(_ *cri.PodSandboxConfig, o *cri.NamespaceOption) {
			ids := []*cri.IDMapping{{HostId: 7, ContainerId: 1, Length: 9}}
			o.UsernsOptions = &cri.UserNamespace{Mode: cri.NamespaceMode_POD, Uids: ids, Gids: ids}
		}, "mount pid ipc network uts user", func(s *specs.Spec) bool {
			_, ping := s.Linux.Sysctl["net.ipv4.ping_group_range"]
			return !ping && reflect.DeepEqual(s.Linux.GIDMappings, []specs.LinuxIDMapping{{HostID: 7, ContainerID: 1, Size: 9}})
		}},
		"user namespace of the host": {func(_ *cri.PodSandboxConfig, o *cri.NamespaceOption) {
			o.UsernsOptions = &cri.UserNamespace{Mode: node}
		}, "mount pid ipc network uts", nil},
		"slice": {func(c *cri.PodSandboxConfig, _ *cri.NamespaceOption) { c.Linux.CgroupParent = "/a.slice/a-b.slice" }, "mount pid ipc network uts", func(s *specs.Spec) bool {
			return s.Linux.CgroupsPath == "a-b.slice:cri-containerd:pod"
		}},
		"no cgroup": {func(c *cri.PodSandboxConfig, _ *cri.NamespaceOption) { c.Linux.CgroupParent = "" }, "mount pid ipc network uts", func(s *specs.Spec) bool {
			return s.Linux.CgroupsPath == ""
		}},
		"user and groups": {func(c *cri.PodSandboxConfig, _ *cri.NamespaceOption) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 5}
			c.Linux.SecurityContext.RunAsGroup = &cri.Int64Value{Value: 6}
			c.Linux.SecurityContext.SupplementalGroups = []int64{7, 8}
		}, "mount pid ipc network uts", func(s *specs.Spec) bool {
			return reflect.DeepEqual(s.Process.User, specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7, 8}})
		}},
		"user without a group": {func(c *cri.PodSandboxConfig, _ *cri.NamespaceOption) {
			c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 5}
		}, "mount pid ipc network uts", func(s *specs.Spec) bool {
			return s.Process.User.UID == 5 && s.Process.User.GID == 0
		}},
		"resources": {func(c *cri.PodSandboxConfig, _ *cri.NamespaceOption) {
			c.Linux.Resources = &cri.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: -1, CpuShares: 7, MemoryLimitInBytes: 1 << 40}
		}, "mount pid ipc network uts", func(s *specs.Spec) bool {
			const prefix = "io.kubernetes.cri.sandbox-"
			a := s.Annotations
			return a[prefix+"cpu-period"] == "100000" && a[prefix+"cpu-quota"] == "-1" && a[prefix+"cpu-shares"] == "7" &&
				a[prefix+"memory"] == "1099511627776" && *s.Linux.Resources.CPU.Shares == 2
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(t)
			if tc.change != nil {
				tc.change(c, c.Linux.SecurityContext.NamespaceOptions)
			}
			options, err := typeurl.MarshalAnyToProto(c)
			proctest.Must(t, err)
			decoded, err := decodePodConfig(options)
			proctest.Must(t, err)
			h, err := thisHost()
			proctest.Must(t, err)
			spec := decoded.spec("pod", "/netns", defaultOptions(nil), h)
			var kinds []string
			for _, ns := range spec.Linux.Namespaces {
				kinds = append(kinds, string(ns.Type))
				if (ns.Path == "/netns") != (ns.Type == specs.NetworkNamespace) {
					t.Errorf("the path of %s is %q", ns.Type, ns.Path)
				}
			}
			if got := strings.Join(kinds, " "); got != tc.want {
				t.Errorf("namespaces %s, want %s", got, tc.want)
			}
			if tc.check != nil && !tc.check(spec) {
				t.Errorf("spec %+v, linux %+v", spec, spec.Linux)
			}
		})
	}
}

func TestSandboxWithoutAPodConfiguration(t *testing.T) {
	t.Run("with a spec", func(t *testing.T) {
		n, h := newNode(t), newHome(t)
		proctest.Must(t, os.WriteFile(filepath.Join(h.bundle, "config.json"), []byte(`{"hostname":"by-spec","linux":{"namespaces":[{"type":"uts"}]}}`), 0o600))
		n.createSandbox(n.createRequest(h, nil))
		if !strings.Contains(n.status().Info["info"], "by-spec") {
			t.Error("the spec is not used")
		}
	})
	t.Run("with a spec and more", func(t *testing.T) {
		n, h := newNode(t), newHome(t)
		path := filepath.Join(h.bundle, "config.json")
		proctest.Must(t, os.WriteFile(path, []byte(`{"future":1,"linux":{"namespaces":[{"type":"uts"}],"other":2},"annotations":{"a":"b"}}`), 0o600))
		r := n.createRequest(h, nil)
		r.Annotations = map[string]string{"c": "d"}
		r.NetnsPath = "/proc/self/ns/net"
		n.createSandbox(r)
		got, err := os.ReadFile(path)
		proctest.Must(t, err)
		want := `{"annotations":{"a":"b","c":"d"},"future":1,"linux":{"namespaces":[{"type":"uts"},{"type":"network","path":"/proc/self/ns/net"}],"other":2}}`
		if string(got) != want {
			t.Errorf("the spec is\n%s, want\n%s", got, want)
		}
	})
	t.Run("with a spec that cannot be written", func(t *testing.T) {
		n, h := newNode(t), newHome(t)
		proctest.Must(t, unix.Mount("full", h.bundle, "tmpfs", 0, "size=8k"))
		t.Cleanup(func() { proctest.Must(t, unix.Unmount(h.bundle, unix.MNT_DETACH)) })
		path := filepath.Join(h.bundle, "config.json")
		const spec = `{"linux":{"namespaces":[{"type":"uts"}]}}`
		proctest.Must(t, os.WriteFile(path, []byte(spec), 0o600))
		r := n.createRequest(h, nil)
		r.Annotations = map[string]string{"long": strings.Repeat("x", 16<<10)}
		if _, err := n.sandboxes.CreateSandbox(proctest.Context(t), r); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("the error is %v", err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != spec {
			t.Errorf("the client's spec has become %q, error %v", got, err)
		}
	})
	t.Run("with nothing", func(t *testing.T) {
		n, h := newNode(t), newHome(t)
		n.createSandbox(n.createRequest(h, nil))
		n.startSandbox()
		if _, err := os.Stat(h.files); !os.IsNotExist(err) {
			t.Error("files are made that nobody has asked for")
		}
	})
}

func TestSandboxesThatCannotBe(t *testing.T) {
	n := newNode(t)
	for name, options := range map[string]*anypb.Any{
		"unknown type": {TypeUrl: "type.googleapis.com/google.protobuf.Empty"},
		"garbage":      {TypeUrl: podConfigType, Value: []byte{0x0a, 0xff}},
		"wrong kind":   {TypeUrl: podConfigType, Value: []byte{0x10, 0x01}},
	} {
		h := newHome(t)
		_, err := n.sandboxes.CreateSandbox(proctest.Context(t), &sandboxapi.CreateSandboxRequest{SandboxID: "pod", BundlePath: h.bundle, Options: options})
		if err = errgrpc.ToNative(err); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	c := config(t)
	c.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
	h := newHome(t)
	_, err := n.sandboxes.CreateSandbox(proctest.Context(t), n.createRequest(h, c))
	if err == nil || !strings.Contains(err.Error(), "kernel.panic") {
		t.Errorf("got error %v", err)
	}
	if _, err := os.Stat(h.files); !os.IsNotExist(err) {
		t.Error("files are left")
	}
	for name, link := range map[string]func(path string) error{
		"no link":         func(string) error { return nil },
		"a relative link": func(path string) error { return os.Symlink("root", path) },
	} {
		h := newHome(t)
		path := filepath.Join(h.bundle, "work")
		proctest.Must(t, os.Remove(path))
		proctest.Must(t, link(path))
		_, err := n.sandboxes.CreateSandbox(proctest.Context(t), n.createRequest(h, config(t)))
		if err == nil || !strings.Contains(err.Error(), "containerd's root directory") {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	r := n.createRequest(newHome(t), config(t))
	n.createSandbox(r)
	_, err = n.sandboxes.CreateSandbox(proctest.Context(t), r)
	wantKind(t, err, errdefs.IsAlreadyExists, "already exists")
}

func TestUnknownSandbox(t *testing.T) {
	n, ctx := newNode(t), proctest.Context(t)
	const id = "nobody"
	for name, call := range map[string]func() error{
		"start": func() error {
			_, err := n.sandboxes.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: id})
			return err
		},
		"stop": func() error {
			_, err := n.sandboxes.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: id})
			return err
		},
		"wait": func() error {
			_, err := n.sandboxes.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: id})
			return err
		},
		"status": func() error {
			_, err := n.sandboxes.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: id})
			return err
		},
		"ping": func() error {
			_, err := n.sandboxes.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: id})
			return err
		},
		"metrics": func() error {
			_, err := n.sandboxes.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: id})
			return err
		},
		"update": func() error {
			_, err := n.sandboxes.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: id})
			return err
		},
	} {
		if err := errgrpc.ToNative(call()); !errdefs.IsNotFound(err) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
	n.container(forever)
	n.createSandbox(n.createRequest(newHome(t), config(t)))
	_, err := n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: id})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	// It has had no effect on others.
	n.startSandbox()
	state := result[*taskapi.StateResponse](t)(n.State(ctx, &taskapi.StateRequest{ID: "c"}))
	if state.Status != tasktypes.Status_RUNNING || len(n.shutdowns) != 0 {
		t.Errorf("the container is %s, and the shim was asked to end %d times", state.Status, len(n.shutdowns))
	}
}

// TestSandboxThatWasNeverMade: containerd was killed before it asked the shim for the
// sandbox.
func TestSandboxThatWasNeverMade(t *testing.T) {
	before := time.Now()
	n, ctx := newNode(t), proctest.Context(t)
	status := func() (*sandboxapi.SandboxStatusResponse, error) {
		return n.sandboxes.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: ownID, Verbose: true})
	}
	wantNotReady := func() {
		t.Helper()
		st := result[*sandboxapi.SandboxStatusResponse](t)(status())
		if st.SandboxID != ownID || st.State != sandboxNotReady || st.Pid != 0 {
			t.Errorf("got %v", st)
		}
		if at := st.CreatedAt.AsTime(); at.Before(before) || at.After(time.Now()) {
			t.Errorf("created at %s, which is not between %s and now", at, before)
		}
	}
	wantNotReady()
	// For containerd, "not found" means that these two are done.
	_, err := n.sandboxes.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: ownID})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = n.sandboxes.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: ownID})
	wantKind(t, err, errdefs.IsNotFound, "not found")

	// A create that has failed has made none.
	c := config(t)
	c.Linux.Sysctls = map[string]string{"kernel.panic": "1"}
	_, err = n.sandboxes.CreateSandbox(ctx, n.createRequest(newHome(t), c))
	wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
	wantNotReady()

	for range 2 { // also if the answer was lost
		_, err = n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: ownID})
		proctest.Must(t, err)
		_, err = status()
		wantKind(t, err, errdefs.IsNotFound, "not found")
	}
	if len(n.shutdowns) != 2 {
		t.Errorf("the shim was asked to end %d times", len(n.shutdowns))
	}
}

func TestSandboxThatIsGoneIsNotFound(t *testing.T) {
	n, ctx := newNode(t), proctest.Context(t)
	_, err := n.sandboxes.CreateSandbox(ctx, n.createRequest(newHome(t), config(t)))
	proctest.Must(t, err)
	_, err = n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: ownID})
	proctest.Must(t, err)
	_, err = n.sandboxes.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: ownID})
	wantKind(t, err, errdefs.IsNotFound, "not found")
}

// TestSandboxOfTheTaskService: the Sandbox API does not know a sandbox that was made
// through the Task API, even if the shim was started for it.
func TestSandboxOfTheTaskService(t *testing.T) {
	n, ctx := newNode(t), proctest.Context(t)
	n.make(n.sandboxRequest(ownID))
	_, err := n.sandboxes.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: ownID})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: ownID})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	_, err = n.State(ctx, &taskapi.StateRequest{ID: ownID})
	proctest.Must(t, err)
	if len(n.shutdowns) != 0 {
		t.Error("the shim ends with a task in it")
	}
}

func TestUpdateOfASandbox(t *testing.T) {
	n, h, ctx := newNode(t), newHome(t), proctest.Context(t)
	n.createSandbox(n.createRequest(h, config(t)))
	n.startSandbox()
	_, err := n.sandboxes.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: "pod", Sandbox: &types.Sandbox{}, Fields: []string{"labels", "extensions"}})
	proctest.Must(t, err)
	_, err = n.sandboxes.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: "pod", Fields: []string{"runtime"}})
	if err = errgrpc.ToNative(err); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "runtime") {
		t.Errorf("got error %v", err)
	}
	_, err = n.sandboxes.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: "pod", Resources: &anypb.Any{Value: []byte(`{"cpu":{"shares":77}}`)}}) //nolint:staticcheck // deprecated
	proctest.Must(t, err)
	_, err = n.sandboxes.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: "pod", Resources: &anypb.Any{Value: []byte(`{`)}}) //nolint:staticcheck // deprecated
	wantKind(t, err, errdefs.IsInvalidArgument, "an invalid argument")
}

func TestShutdownEndsContainersThatAreLeft(t *testing.T) {
	n, h, ctx := newNode(t), newHome(t), proctest.Context(t)
	n.createSandbox(n.createRequest(h, config(t)))
	n.startSandbox()
	n.container(forever)
	_, err := n.sandboxes.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "pod"})
	proctest.Must(t, err)
	_, err = n.State(ctx, &taskapi.StateRequest{ID: "c"})
	wantKind(t, err, errdefs.IsNotFound, "not found")
	if len(n.removed) != 2 || !strings.HasSuffix(n.removed[0], " 137") || !strings.HasPrefix(n.removed[1], h.bundle) {
		t.Errorf("removed were %q, not the container and the sandbox", n.removed)
	}
}

func TestSharedPIDNamespaceIsThereAtOnce(t *testing.T) {
	n, h := newNode(t), newHome(t)
	c := config(t)
	c.Linux.SecurityContext.NamespaceOptions.Pid = cri.NamespaceMode_POD
	n.createSandbox(n.createRequest(h, c))
	n.startSandbox()
	calls, err := os.ReadFile(filepath.Join(n.control, "calls"))
	proctest.Must(t, err)
	if !strings.Contains(string(calls), "run pod\n") {
		t.Errorf("the OCI runtime was called for %q", calls)
	}
}
