// Package pod makes and holds a pod's namespaces, sysctls and files, and runs the hooks of its
// sandbox. A thread holds the namespaces. The package does not know containers.
package pod
