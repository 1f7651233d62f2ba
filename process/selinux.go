package process

// HasSELinux says whether the kernel has SELinux and a policy for it, by which labels
// are of effect.
func HasSELinux() bool { return hasSELinux() }
