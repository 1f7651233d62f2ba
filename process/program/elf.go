package program

// This file has the parts of elf(5) that an executable file needs. debug/elf would add its
// readers of debugging information and compressed data to the shim, and what these
// initialise when the shim starts.

const (
	typeExec       = 2          // ET_EXEC
	version        = 1          // EV_CURRENT
	segmentLoad    = 1          // PT_LOAD
	segmentStack   = 0x6474e551 // PT_GNU_STACK
	flagExecute    = 1          // PF_X
	flagWrite      = 2          // PF_W
	flagRead       = 4          // PF_R
	class64        = 2          // ELFCLASS64
	littleEndian   = 1          // ELFDATA2LSB
	sectionHeader  = 64         // size of Elf64_Shdr
	machineX86_64  = 62         // EM_X86_64
	machineAArch64 = 183        // EM_AARCH64
)

// fileHeader is Elf64_Ehdr.
type fileHeader struct {
	Ident     [16]byte
	Type      uint16
	Machine   uint16
	Version   uint32
	Entry     uint64
	Phoff     uint64
	Shoff     uint64
	Flags     uint32
	Ehsize    uint16
	Phentsize uint16
	Phnum     uint16
	Shentsize uint16
	Shnum     uint16
	Shstrndx  uint16
}

// segmentHeader is Elf64_Phdr.
type segmentHeader struct {
	Type   uint32
	Flags  uint32
	Off    uint64
	Vaddr  uint64
	Paddr  uint64
	Filesz uint64
	Memsz  uint64
	Align  uint64
}
