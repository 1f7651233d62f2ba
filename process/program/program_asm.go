//go:build amd64 || arm64

package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"
)

func podInitFile() ([]byte, error) { return executable(podInitEntry()) }

func holderFile() ([]byte, error) { return executable(holderEntry()) }

func podInit() //nolint:unused // not called, but copied from its address
func holder()  //nolint:unused // likewise

// podInitEntry returns the address of podInit's code. In Go, the function's value would be
// the address of a wrapper, which Go needs for a call.
func podInitEntry() unsafe.Pointer

// holderEntry returns the address of holder's code.
func holderEntry() unsafe.Pointer

// executable returns an executable file of the function at an address: headers, and the
// code in one segment that is not writable. The stack is not executable. Source: elf(5).
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

// functionCode returns the machine code from the function at an address up to the next
// function.
func functionCode(entry unsafe.Pointer) []byte {
	f := runtime.FuncForPC(uintptr(entry))
	n := 0
	for runtime.FuncForPC(uintptr(entry)+uintptr(n)) == f {
		n++
	}
	return unsafe.Slice((*byte)(entry), n)
}
