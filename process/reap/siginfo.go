package reap

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// siginfoPid returns si_pid of a siginfo_t that waitid(2) has filled in. x/sys does not
// export the union that has it. On all 64-bit Linux architectures the union follows three
// ints and their padding, and si_pid is its first member.
func siginfoPid(info *unix.Siginfo) int {
	const union = 16
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), union)))
}
