#include "textflag.h"

// The same programs as in program_amd64.s, which has the reasons. A system call has its
// number in R8 and its arguments in R0 to R3, and clobbers R0 (syscall(2)). The numbers
// are from the kernel's include/uapi/asm-generic/unistd.h.

#define SYS_close           57
#define SYS_read            63
#define SYS_write           64
#define SYS_exit_group      94
#define SYS_unshare         97
#define SYS_rt_sigprocmask  135
#define SYS_rt_sigtimedwait 137
#define SYS_setresuid       147
#define SYS_setresgid       149
#define SYS_wait4           260
#define SYS_setns           268

TEXT ·podInit(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// Block all signals.
	SUB  $16, RSP
	MOVD $-1, R9
	MOVD R9, 0(RSP)
	MOVD $2, R0               // SIG_SETMASK
	MOVD RSP, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $SYS_rt_sigprocmask, R8
	SVC

	// Close all files.
	MOVD $2, R19
closeNext:
	MOVD R19, R0
	MOVD $SYS_close, R8
	SVC
	SUBS $1, R19, R19
	BGE  closeNext

	MOVD $0x14002, R9         // SIGINT 2, SIGTERM 15, SIGCHLD 17; bits count from 0
	MOVD R9, 0(RSP)
reap:
	// Reap all children that have ended.
	MOVD $-1, R0
	MOVD $0, R1
	MOVD $1, R2               // WNOHANG
	MOVD $0, R3
	MOVD $SYS_wait4, R8
	SVC
	CMP  $0, R0
	BGT  reap

	// Wait for a signal.
	MOVD RSP, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $8, R3
	MOVD $SYS_rt_sigtimedwait, R8
	SVC
	CMP  $17, R0              // SIGCHLD
	BEQ  reap
	CMN  $4, R0               // EINTR
	BEQ  reap

	// SIGINT and SIGTERM end the pod init with exit code 0, an unexpected error with 1.
	CMP  $0, R0
	MOVD $0, R0
	BGT  exit
	MOVD $1, R0
exit:
	MOVD $SYS_exit_group, R8
	SVC
	UNDEF

TEXT ·holder(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// Read the Order: a file descriptor of a user namespace, and flags for unshare(2).
	SUB  $16, RSP
	MOVD $0, R0
	MOVD RSP, R1
	MOVD $16, R2
	MOVD $SYS_read, R8
	SVC
	MOVD $1, R19              // Report.Step
	CMP  $16, R0
	BNE  report

	// Enter the user namespace, unless the holder was started in it.
	MOVD $2, R19
	MOVD 0(RSP), R0
	CMP  $0, R0
	BLT  become
	MOVD $0x10000000, R1      // CLONE_NEWUSER
	MOVD $SYS_setns, R8
	SVC
	CBNZ R0, report

become:
	// Become root of the user namespace, who will own the new namespaces.
	MOVD $3, R19
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $SYS_setresgid, R8
	SVC
	CBNZ R0, report
	MOVD $4, R19
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $SYS_setresuid, R8
	SVC
	CBNZ R0, report

	MOVD $5, R19
	MOVD 8(RSP), R0
	MOVD $SYS_unshare, R8
	SVC

report:
	// Write the Report: the result of the last system call, and its step.
	MOVD R0, 0(RSP)
	MOVD R19, 8(RSP)
	MOVD $1, R0
	MOVD RSP, R1
	MOVD $16, R2
	MOVD $SYS_write, R8
	SVC

	// Stay until standard input ends.
	MOVD $0, R0
	MOVD RSP, R1
	MOVD $1, R2
	MOVD $SYS_read, R8
	SVC
	MOVD $0, R0
	MOVD $SYS_exit_group, R8
	SVC
	UNDEF

// func podInitEntry() unsafe.Pointer
TEXT ·podInitEntry(SB), NOSPLIT, $0-8
	MOVD $·podInit(SB), R0
	MOVD R0, ret+0(FP)
	RET

// func holderEntry() unsafe.Pointer
TEXT ·holderEntry(SB), NOSPLIT, $0-8
	MOVD $·holder(SB), R0
	MOVD R0, ret+0(FP)
	RET
