package reap

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StartTime returns when a process has begun, in clock ticks since the boot
// (proc_pid_stat(5), field 22). Together with its pid this identifies it.
func StartTime(pid int) (uint64, error) {
	const field = 22
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := string(data)
	// The second field is the program's name in brackets, and may have any characters.
	rest := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(rest) <= field-3 {
		return 0, fmt.Errorf("cannot decode %s", path)
	}
	return strconv.ParseUint(rest[field-3], 10, 64)
}

// now returns what [StartTime] would of a process that began now.
func now() uint64 {
	const perSecond = 100 // USER_HZ, on all architectures that Go has
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // Linux before 2.6.39: nothing is older
	}
	return uint64(t.Nano()) / (uint64(time.Second) / perSecond)
}
