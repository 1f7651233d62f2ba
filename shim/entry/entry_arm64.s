#include "textflag.h"

// As in entry_amd64.s. System calls take R8 and R0 to R4, and clobber R0 (syscall(2)).
// Their numbers are in include/uapi/asm-generic/unistd.h of the kernel.

#define SYS_openat     56
#define SYS_close      57
#define SYS_pipe2      59
#define SYS_read       63
#define SYS_write      64
#define SYS_exit_group 94
#define SYS_clone      220
#define SYS_wait4      260

#define EINTR      4
#define SIGCHLD    17
#define AT_FDCWD   100
#define O_CLOEXEC  0x80000
#define O_NOFOLLOW 0x8000
#define O_PATH     0x200000

TEXT ·entry(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	MOVD 0(RSP), R20          // argc
	ADD  $8, RSP, R21         // argv
	CMP  $2, R20
	BLT  run
	ADD  R20<<3, R21, R22     // after the last argument
	MOVD -8(R22), R19
	MOVWU 0(R19), R9
	MOVD $0x72617473, R10     // "star"
	CMP  R10, R9
	BNE  notStart
	MOVHU 4(R19), R9
	CMP  $0x0074, R9          // "t", NUL
	BEQ  start
notStart:
	MOVD $0x656c6564, R10     // "dele"
	CMP  R10, R9
	BNE  run
	MOVWU 3(R19), R9
	MOVD $0x00657465, R10     // "ete", NUL
	CMP  R10, R9
	BEQ  delete
run:
	JMP  _rt0_arm64_linux(SB)

start:
	SUB  $16, RSP
	MOVD RSP, R0
	MOVD $O_CLOEXEC, R1
	MOVD $SYS_pipe2, R8
	SVC
	CBNZ R0, notForked
	MOVD $SIGCHLD, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $SYS_clone, R8
	SVC
	CMP  $0, R0
	BEQ  child
	BGT  parent
	MOVWU 0(RSP), R0
	MOVD $SYS_close, R8
	SVC
	MOVWU 4(RSP), R0
	MOVD $SYS_close, R8
	SVC
notForked:
	ADD  $16, RSP
	JMP  run

child:
	MOVWU 0(RSP), R0
	MOVD $SYS_close, R8
	SVC
	MOVWU 4(RSP), R9
	ADD  $1, R9
	MOVD R9, starter<>(SB)
	ADD  $16, RSP
	// Insert two variables in front of the environment, where they win over later ones of
	// the same name. If there is a GODEBUG already, GOMAXPROCS takes the place of ours.
	MOVD $gomaxprocs<>(SB), R11
	MOVD $godebug<>(SB), R12
	ADD  $8, R22, R9          // the environment
	MOVD $0x3d47554245444f47, R10 // "GODEBUG="
nextVariable:
	MOVD.P 8(R9), R13
	CBZ  R13, insert
	MOVD 0(R13), R13
	CMP  R10, R13
	BNE  nextVariable
	MOVD R11, R12
insert:
	// Make room by moving argc, argv and its null down by two words, which keeps the stack
	// aligned. The environment and everything after it stay in place.
	MOVD RSP, R9
	SUB  $16, RSP
	MOVD RSP, R10
copy:
	MOVD.P 8(R9), R13
	MOVD.P R13, 8(R10)
	CMP  R22, R9              // at the null
	BLS  copy
	MOVD R12, 0(R10)
	MOVD R11, 8(R10)
	JMP  run

parent:
	MOVD R0, R19              // the child
	MOVWU 4(RSP), R0
	MOVD $SYS_close, R8
	SVC
read:
	MOVWU 0(RSP), R0
	ADD  $8, RSP, R1
	MOVD $1, R2
	MOVD $SYS_read, R8
	SVC
	CMN  $EINTR, R0
	BEQ  read
	CMP  $1, R0
	MOVBU 8(RSP), R0
	BEQ  exit
	// The child has ended without writing an exit code. Use the one it ended with.
wait:
	MOVD R19, R0
	ADD  $8, RSP, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $SYS_wait4, R8
	SVC
	CMN  $EINTR, R0
	BEQ  wait
	MOVBU 9(RSP), R0          // WEXITSTATUS
	MOVWU 8(RSP), R9
	ANDS $0x7f, R9            // WTERMSIG
	BEQ  exit
	ADD  $128, R9, R0
exit:
	MOVD $SYS_exit_group, R8
	SVC
	UNDEF

delete:
	// Find the bundle: the argument after -bundle.
	ADD  $8, R21, R22
	MOVD $0x00656c646e75622d, R10 // "-bundle", NUL
nextArgument:
	MOVD.P 8(R22), R9
	CBZ  R9, run
	MOVD 0(R9), R12
	CMP  R10, R12
	BNE  nextArgument
	MOVD $-AT_FDCWD, R0
	MOVD 0(R22), R1
	MOVD $(O_PATH|O_CLOEXEC), R2
	MOVD $0, R3
	MOVD $SYS_openat, R8
	SVC
	CMP  $0, R0
	BLT  run
	MOVD R0, R20
	MOVD $answerFile<>(SB), R1
	MOVD $(O_NOFOLLOW|O_CLOEXEC), R2 // and O_RDONLY, 0
	MOVD $0, R3
	MOVD $SYS_openat, R8
	SVC
	MOVD R0, R19
	MOVD R20, R0
	MOVD $SYS_close, R8
	SVC
	CMP  $0, R19
	BLT  run
	SUB  $512, RSP
	MOVD R19, R0
	MOVD RSP, R1
	MOVD $512, R2
	MOVD $SYS_read, R8
	SVC
	MOVD R0, R20
	MOVD R19, R0
	MOVD $SYS_close, R8
	SVC
	CMP  $0, R20
	BLE  notAnswered
	CMP  $512, R20            // it may be longer
	BEQ  notAnswered
	MOVD $1, R0
	MOVD RSP, R1
	MOVD R20, R2
	MOVD $SYS_write, R8
	SVC
	CMP  R0, R20
	MOVD $0, R0
	BEQ  exit
	MOVD $1, R0
	B    exit
notAnswered:
	ADD  $512, RSP
	JMP  run

// func starterFD() int
TEXT ·starterFD(SB), NOSPLIT, $0-8
	MOVD starter<>(SB), R0
	SUB  $1, R0
	MOVD R0, ret+0(FP)
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
