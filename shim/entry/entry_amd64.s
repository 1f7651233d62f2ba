#include "textflag.h"

// See entry.go. The process has just been executed: argc is at the stack pointer; argv
// and the environment follow, each ended by a null (the ABI's "Process Initialization").
// Nothing here returns. What is left to Go continues at the runtime's own entry point,
// with the stack pointer at argc. In a PIE and with cgo the dynamic linker has run before,
// and leaves the same stack. System calls take AX and DI, SI, DX, R10, R8, and clobber CX
// and R11 (syscall(2)). Their numbers are in arch/x86/entry/syscalls/syscall_64.tbl of the
// kernel.

#define SYS_read       0
#define SYS_write      1
#define SYS_open       2
#define SYS_close      3
#define SYS_clone      56
#define SYS_wait4      61
#define SYS_exit_group 231
#define SYS_openat     257
#define SYS_pipe2      293

#define EINTR      4
#define SIGCHLD    17
#define O_CLOEXEC  0x80000
#define O_NOFOLLOW 0x20000
#define O_PATH     0x200000

TEXT ·entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	MOVQ 0(SP), R12           // argc
	LEAQ 8(SP), R13           // argv
	CMPQ R12, $2
	JLT  run
	MOVQ -8(R13)(R12*8), BX   // the last argument
	MOVL 0(BX), AX
	CMPL AX, $0x72617473      // "star"
	JNE  notStart
	MOVW 4(BX), AX
	CMPW AX, $0x0074          // "t", NUL
	JEQ  start
notStart:
	CMPL AX, $0x656c6564      // "dele"
	JNE  run
	MOVL 3(BX), AX
	CMPL AX, $0x00657465      // "ete", NUL
	JEQ  delete
run:
	JMP  _rt0_amd64_linux(SB)

start:
	SUBQ $16, SP
	MOVQ SP, DI
	MOVL $O_CLOEXEC, SI
	MOVL $SYS_pipe2, AX
	SYSCALL
	TESTQ AX, AX
	JNE  notForked
	MOVL $SIGCHLD, DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	MOVL $SYS_clone, AX
	SYSCALL
	TESTQ AX, AX
	JEQ  child
	JGT  parent
	MOVL 0(SP), DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVL 4(SP), DI
	MOVL $SYS_close, AX
	SYSCALL
notForked:
	ADDQ $16, SP
	JMP  run

child:
	MOVL 0(SP), DI
	MOVL $SYS_close, AX
	SYSCALL
	MOVL 4(SP), AX
	INCQ AX
	MOVQ AX, starter<>(SB)
	ADDQ $16, SP
	// Insert two variables in front of the environment, where they win over later ones of
	// the same name. If there is a GODEBUG already, GOMAXPROCS takes the place of ours.
	LEAQ gomaxprocs<>(SB), R9
	LEAQ godebug<>(SB), R10
	LEAQ 8(R13)(R12*8), DX    // the environment
	MOVQ $0x3d47554245444f47, R8 // "GODEBUG="
nextVariable:
	MOVQ 0(DX), AX
	TESTQ AX, AX
	JEQ  insert
	ADDQ $8, DX
	CMPQ R8, 0(AX)
	JNE  nextVariable
	MOVQ R9, R10
insert:
	// Make room by moving argc, argv and its null down by two words, which keeps the stack
	// aligned. The environment and everything after it stay in place.
	MOVQ SP, SI
	SUBQ $16, SP
	MOVQ SP, DI
	LEAQ 2(R12), CX
	REP; MOVSQ                // upwards: the ABI clears DF
	MOVQ R10, 0(DI)
	MOVQ R9, 8(DI)
	JMP  run

parent:
	MOVQ AX, R14              // the child
	MOVL 4(SP), DI
	MOVL $SYS_close, AX
	SYSCALL
read:
	MOVL 0(SP), DI
	LEAQ 8(SP), SI
	MOVL $1, DX
	MOVL $SYS_read, AX
	SYSCALL
	CMPQ AX, $-EINTR
	JEQ  read
	MOVBLZX 8(SP), DI
	CMPQ AX, $1
	JEQ  exit
	// The child has ended without writing an exit code. Use the one it ended with.
wait:
	MOVQ R14, DI
	LEAQ 8(SP), SI
	XORL DX, DX
	XORL R10, R10
	MOVL $SYS_wait4, AX
	SYSCALL
	CMPQ AX, $-EINTR
	JEQ  wait
	MOVBLZX 9(SP), DI         // WEXITSTATUS
	MOVL 8(SP), AX
	ANDL $0x7f, AX            // WTERMSIG
	JEQ  exit
	LEAL 128(AX), DI
exit:
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3

delete:
	// Find the bundle: the argument after -bundle.
	MOVQ R13, DX
	MOVQ $0x00656c646e75622d, R8 // "-bundle", NUL
nextArgument:
	ADDQ $8, DX
	MOVQ 0(DX), AX
	TESTQ AX, AX
	JEQ  run
	CMPQ R8, 0(AX)
	JNE  nextArgument
	MOVQ 8(DX), DI
	MOVL $(O_PATH|O_CLOEXEC), SI
	MOVL $SYS_open, AX
	SYSCALL
	TESTQ AX, AX
	JLT  run
	MOVQ AX, R14
	MOVQ AX, DI
	LEAQ answerFile<>(SB), SI
	MOVL $(O_NOFOLLOW|O_CLOEXEC), DX // and O_RDONLY, 0
	MOVL $SYS_openat, AX
	SYSCALL
	MOVQ AX, BX
	MOVQ R14, DI
	MOVL $SYS_close, AX
	SYSCALL
	TESTQ BX, BX
	JLT  run
	SUBQ $512, SP
	MOVQ BX, DI
	MOVQ SP, SI
	MOVL $512, DX
	MOVL $SYS_read, AX
	SYSCALL
	MOVQ AX, R14
	MOVQ BX, DI
	MOVL $SYS_close, AX
	SYSCALL
	CMPQ R14, $0
	JLE  notAnswered
	CMPQ R14, $512            // it may be longer
	JEQ  notAnswered
	MOVL $1, DI
	MOVQ SP, SI
	MOVQ R14, DX
	MOVL $SYS_write, AX
	SYSCALL
	XORL DI, DI
	CMPQ AX, R14
	JEQ  exit
	MOVL $1, DI
	JMP  exit
notAnswered:
	ADDQ $512, SP
	JMP  run

// func starterFD() int
TEXT ·starterFD(SB), NOSPLIT, $0-8
	MOVQ starter<>(SB), AX
	DECQ AX
	MOVQ AX, ret+0(FP)
	RET

// The file descriptor of the starter's pipe, plus one.
GLOBL starter<>(SB), NOPTR, $8

DATA answerFile<>+0(SB)/8, $"pause-de"
DATA answerFile<>+8(SB)/8, $"leted\x00\x00\x00"
GLOBL answerFile<>(SB), NOPTR|RODATA, $16

// Environment strings.
DATA godebug<>+0(SB)/8, $"GODEBUG="
DATA godebug<>+8(SB)/8, $"disablet"
DATA godebug<>+16(SB)/8, $"hp=1\x00\x00\x00\x00"
GLOBL godebug<>(SB), NOPTR|RODATA, $24

DATA gomaxprocs<>+0(SB)/8, $"GOMAXPRO"
DATA gomaxprocs<>+8(SB)/8, $"CS=1\x00\x00\x00\x00"
GLOBL gomaxprocs<>(SB), NOPTR|RODATA, $16
