package reap

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StartTime returns the time at which a process started, in clock ticks since the boot
// (proc_pid_stat(5), field 22). The start time and the pid together identify a process.
func StartTime(pid int) (uint64, error) {
	const field = 22
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	text := string(data)
	// The second field is the program's name in parentheses, which may have any character.
	rest := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(rest) <= field-3 {
		return 0, fmt.Errorf("cannot decode %s: it has too few fields", path)
	}
	return strconv.ParseUint(rest[field-3], 10, 64)
}

// now returns the [StartTime] of a process that starts now.
func now() uint64 {
	const perSecond = 100 // USER_HZ on all architectures that Go supports
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // Linux before 2.6.39; no process is older than this
	}
	return uint64(t.Nano()) / (uint64(time.Second) / perSecond)
}
