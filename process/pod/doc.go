// Package pod makes and holds what belongs to a pod: its namespaces, in a thread, their
// sysctls, its files, and the hooks of its sandbox. It knows no containers.
package pod
