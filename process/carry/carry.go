// Package carry takes open files along when a process executes another program in its own
// place (execve(2)), which then finds them by their numbers.
package carry

import (
	"os"

	"golang.org/x/sys/unix"
)

// None is the number of a file that is not there.
const None = -1

// Files are open files of a process that are to be open in the program that it executes.
type Files struct{ numbers []int }

// Add adds a file, and returns its number: None if the file is nil or closed.
func (f *Files) Add(file *os.File) int {
	if file == nil {
		return None
	}
	conn, err := file.SyscallConn()
	if err != nil {
		return None
	}
	number := None
	// Not [os.File.Fd], which would make the file blocking.
	if conn.Control(func(fd uintptr) { number = int(fd) }) == nil {
		f.numbers = append(f.numbers, number)
	}
	return number
}

// Numbers returns the numbers of all files that were added.
func (f *Files) Numbers() []int { return f.numbers }

// Take returns the file of a number under a name for messages; nil for None. It belongs to the
// caller, and is not passed on to other programs.
func Take(fd int, name string) *os.File {
	if fd == None {
		return nil
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
