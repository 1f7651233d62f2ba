package kubernetes

import (
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Containers see each other's processes if the pod shares its PID namespace, in which process 1 is none of theirs, and
// orphans are reaped.
func TestShareProcessNamespace(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("share", "sleep", "1001")
		pod.Spec.Containers = append(pod.Spec.Containers, busybox("other", "sleep", "1002"))
		yes := true
		pod.Spec.ShareProcessNamespace = &yes
		s.run(pod)
		for _, c := range []string{"main", "other"} {
			processes := s.exec(pod.Name, c, "ps", "-o", "args")
			for _, want := range []string{"sleep 1001", "sleep 1002"} {
				if !strings.Contains(processes, want) {
					s.Errorf("container %s does not see %q:\n%s", c, want, processes)
				}
			}
		}
		if first := s.exec(pod.Name, "main", "cat", "/proc/1/cmdline"); strings.HasPrefix(first, "sleep") {
			s.Errorf("process 1 is that of a container: %q", first)
		}
		s.exec(pod.Name, "main", "sh", "-c", "(sleep 0.2 &)")
		s.eventually("the orphan is reaped", func() error {
			out, _, err := s.execWith(pod.Name, &corev1.PodExecOptions{Container: "main", Command: []string{"sh", "-c", "! ps -o stat,args | grep -E '^Z|[s]leep 0.2'"}}, "")
			if err == nil && out != "" {
				err = errorString(out)
			}
			return err
		})
	})
}

type errorString string

func (e errorString) Error() string { return string(e) }

// Without anything said, a container has its own PID namespace, and shares the others with its pod.
func TestNamespacesOfPod(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("own", "sleep", "infinity")
		pod.Spec.Containers = append(pod.Spec.Containers, busybox("other", "sleep", "infinity"))
		s.run(pod)
		for _, kind := range []string{"net", "ipc", "uts", "pid", "mnt"} {
			mine, others := s.namespace(pod.Name, "main", kind), s.namespace(pod.Name, "other", kind)
			expect(s, kind+" is that of the other container", mine == others, slices.Contains([]string{"net", "ipc", "uts"}, kind))
			expect(s, kind+" is the node's", mine == nodeNamespace(s, kind), false)
		}
	})
}

// namespace is the identity of a namespace of a container.
func (s *scenario) namespace(pod, container, kind string) string {
	s.Helper()
	return s.exec(pod, container, "readlink", "/proc/self/ns/"+kind)
}

// nodeNamespace is that of kubelet and containerd.
func nodeNamespace(s *scenario, kind string) string {
	s.Helper()
	link, err := os.Readlink("/proc/self/ns/" + kind)
	must(s.T, err)
	return link
}

// A pod has those of the node's namespaces that it asks for, and only those.
func TestHostNamespaces(t *testing.T) {
	each(t, func(s *scenario) {
		for name, change := range map[string]func(*corev1.PodSpec){
			"net": func(p *corev1.PodSpec) { p.HostNetwork = true },
			"pid": func(p *corev1.PodSpec) { p.HostPID = true },
			"ipc": func(p *corev1.PodSpec) { p.HostIPC = true },
		} {
			pod := s.newPod("host-"+name, "sleep", "infinity")
			change(&pod.Spec)
			s.run(pod)
			for _, kind := range []string{"net", "pid", "ipc"} {
				expect(s, "pod with the host's "+name+": "+kind+" is the node's",
					s.namespace(pod.Name, "main", kind) == nodeNamespace(s, kind), kind == name)
			}
		}
	})
}

// Root of a pod with a user namespace is nobody outside, and may do in its namespaces what root may.
func TestUserNamespace(t *testing.T) {
	each(t, func(s *scenario) {
		pod := s.newPod("userns", "sleep", "infinity")
		no := false
		pod.Spec.HostUsers = &no
		pod.Spec.Containers = append(pod.Spec.Containers, busybox("other", "sleep", "infinity"))
		pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
			Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}},
		}
		s.run(pod)
		ids := strings.Fields(s.exec(pod.Name, "main", "cat", "/proc/self/uid_map"))
		if len(ids) != 3 || ids[0] != "0" || ids[1] == "0" || ids[2] != "65536" {
			s.Errorf("the map of users is %q", ids)
		}
		expect(s, "users of the other container", s.namespace(pod.Name, "other", "user"), s.namespace(pod.Name, "main", "user"))
		expect(s, "user in the container", s.exec(pod.Name, "main", "id", "-u"), "0")
		// The UTS namespace has to belong to the user namespace.
		s.exec(pod.Name, "main", "hostname", "renamed")
		expect(s, "host name in the other container", s.exec(pod.Name, "other", "hostname"), "renamed")
	})
}

// The sysctls of a pod are set in its namespaces, and nowhere else.
func TestSysctls(t *testing.T) {
	each(t, func(s *scenario) {
		want := map[string]string{
			"net.ipv4.ip_local_port_range": "20000\t30000",
			"net.core.somaxconn":           "1234",
			"kernel.shm_rmid_forced":       "1",
			"kernel.msgmax":                "12345",
		}
		pod := s.newPod("sysctls", "sleep", "infinity")
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{}
		for name, value := range want {
			pod.Spec.SecurityContext.Sysctls = append(pod.Spec.SecurityContext.Sysctls,
				corev1.Sysctl{Name: name, Value: strings.ReplaceAll(value, "\t", " ")})
		}
		s.run(pod)
		other := s.run(s.newPod("no-sysctls", "sleep", "infinity"))
		for name, value := range want {
			file := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
			expect(s, name, s.exec(pod.Name, "main", "cat", file), value)
			if s.exec(other.Name, "main", "cat", file) == value {
				s.Errorf("%s is %s in another pod, too", name, value)
			}
		}
	})
}
