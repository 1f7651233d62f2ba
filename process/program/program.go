// Package program holds two programs that the shim runs as processes of their
// own: of some hundred bytes, without a runtime or library.
//
// Go's assembler makes them, from program_<arch>.s, and the linker puts them into
// the shim's text like any function, though nothing calls them. Their code does
// not depend on its address: it makes system calls, and keeps what it needs in
// registers and on the stack. So it can be copied from there into an executable
// file.
package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// PodInit returns an executable file: the init of a PID namespace that containers
// of a pod share. It reaps, ends with exit code 0 on SIGINT and SIGTERM, and takes
// no notice of any other signal, as the pause program of Kubernetes does. It
// closes its standard streams.
func PodInit() ([]byte, error) { return executable(podInitEntry()) }

// Holder returns an executable file: it makes namespaces in a user namespace,
// which a thread of a Go program cannot enter (setns(2)), and stays in them until
// its standard input ends. It reads an [Order] from there first, and writes a
// [Report] to standard output.
func Holder() ([]byte, error) { return executable(holderEntry()) }

// Order says what a holder has to do.
type Order struct {
	// UserNamespace is the file descriptor of a user namespace to enter; -1 if the
	// holder was started in it.
	UserNamespace int64
	// Flags are those of unshare(2) for the namespaces to make.
	Flags uint64
}

// Report says what a holder has done.
type Report struct {
	Result int64  // of the last system call: 0, or an error number made negative
	Step   uint64 // which one that was
}

// Err returns an error that names the system call that failed, or nil.
func (r Report) Err() error {
	steps := []string{"", "read", "setns", "setresgid", "setresuid", "unshare"}
	switch {
	case r.Result == 0 && r.Step == uint64(len(steps)-1):
		return nil
	case r.Result < 0 && r.Step < uint64(len(steps)):
		return os.NewSyscallError(steps[r.Step], syscall.Errno(-r.Result))
	}
	return fmt.Errorf("unexpected report %+v", r)
}

func podInit() //nolint:unused // not called, but copied by its address
func holder()  //nolint:unused // likewise

// podInitEntry returns the address of podInit's code. Go itself would yield that
// of a wrapper, which a call by Go needs.
func podInitEntry() unsafe.Pointer

// holderEntry returns the address of holder's code.
func holderEntry() unsafe.Pointer

// executable makes an executable file of the function at an address: a header,
// and the code in one read-only segment. The stack is declared as not executable.
// Source: elf(5).
func executable(entry unsafe.Pointer) ([]byte, error) {
	const base = 0x400000 // where static programs are, by convention
	code := functionCode(entry)
	var header fileHeader
	segments := []segmentHeader{
		{Type: segmentLoad, Flags: flagRead | flagExecute, Vaddr: base, Paddr: base, Align: 0x10000},
		{Type: segmentStack, Flags: flagRead | flagWrite, Align: 16},
	}
	start := binary.Size(header) + binary.Size(segments)
	segments[0].Filesz = uint64(start + len(code))
	segments[0].Memsz = segments[0].Filesz
	header = fileHeader{
		Type:      typeExec,
		Machine:   machine,
		Version:   version,
		Entry:     base + uint64(start),
		Phoff:     uint64(binary.Size(header)),
		Ehsize:    uint16(binary.Size(header)),
		Phentsize: uint16(binary.Size(segments[0])),
		Phnum:     uint16(len(segments)),
		Shentsize: sectionHeader,
	}
	copy(header.Ident[:], []byte{0x7f, 'E', 'L', 'F', class64, littleEndian, version})

	var file bytes.Buffer
	for _, part := range []any{header, segments, code} {
		if err := binary.Write(&file, binary.LittleEndian, part); err != nil {
			return nil, fmt.Errorf("cannot make an executable file: %w", err)
		}
	}
	return file.Bytes(), nil
}

// functionCode returns the machine code of the function at an address, up to the
// next function's.
func functionCode(entry unsafe.Pointer) []byte {
	f := runtime.FuncForPC(uintptr(entry))
	n := 0
	for runtime.FuncForPC(uintptr(entry)+uintptr(n)) == f {
		n++
	}
	return unsafe.Slice((*byte)(entry), n)
}
