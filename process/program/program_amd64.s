#include "textflag.h"

// Programs without any runtime or library, see program.go. They are entered by
// execve(2), not called: nothing is in the registers, the stack pointer is
// aligned to 16 bytes, and they must not return. System calls take AX and DI, SI,
// DX, R10, and clobber CX and R11 (syscall(2)); their numbers are those of
// arch/x86/entry/syscalls/syscall_64.tbl in the kernel.

#define SYS_read            0
#define SYS_write           1
#define SYS_close           3
#define SYS_rt_sigprocmask  14
#define SYS_wait4           61
#define SYS_setresuid       117
#define SYS_setresgid       119
#define SYS_rt_sigtimedwait 128
#define SYS_exit_group      231
#define SYS_unshare         272
#define SYS_setns           308

TEXT ·podInit(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// Block all signals. To the init of a PID namespace the kernel gives only
	// signals that it has a handler for, or that are blocked (pid_namespaces(7)).
	SUBQ $16, SP
	MOVQ $-1, 0(SP)
	MOVL $2, DI               // SIG_SETMASK
	MOVQ SP, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigprocmask, AX
	SYSCALL

	// Hold nothing open that others could reach through /proc/1/fd.
	MOVL $2, BX
closeNext:
	MOVL BX, DI
	MOVL $SYS_close, AX
	SYSCALL
	SUBL $1, BX
	JGE  closeNext

	MOVQ $0x14002, 0(SP)      // SIGINT 2, SIGTERM 15, SIGCHLD 17; bits count from 0
reap:
	// Reap whatever has ended. One SIGCHLD may stand for many children.
	MOVQ $-1, DI
	XORL SI, SI
	MOVL $1, DX               // WNOHANG
	XORL R10, R10
	MOVL $SYS_wait4, AX
	SYSCALL
	TESTQ AX, AX
	JGT  reap

	// Wait for a signal: one that came meanwhile is pending, and returned at once.
	MOVQ SP, DI
	XORL SI, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigtimedwait, AX
	SYSCALL
	CMPQ AX, $17              // SIGCHLD
	JEQ  reap
	CMPQ AX, $-4              // EINTR, after a stop or the freezer
	JEQ  reap

	// SIGINT and SIGTERM end the pod. Anything else is an error of the system.
	XORL DI, DI
	TESTQ AX, AX
	JGT  exit
	MOVL $1, DI
exit:
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3

TEXT ·holder(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// The order: a file descriptor of a user namespace, and flags for unshare(2).
	SUBQ $16, SP
	XORL DI, DI
	MOVQ SP, SI
	MOVL $16, DX
	MOVL $SYS_read, AX
	SYSCALL
	MOVL $1, BX               // the number of the step, for the report
	CMPQ AX, $16
	JNE  report

	// Enter the user namespace, unless it is the holder's already.
	MOVL $2, BX
	MOVQ 0(SP), DI
	TESTQ DI, DI
	JLT  become
	MOVL $0x10000000, SI      // CLONE_NEWUSER
	MOVL $SYS_setns, AX
	SYSCALL
	TESTQ AX, AX
	JNE  report

become:
	// Become its root, who owns what is made from here on.
	MOVL $3, BX
	XORL DI, DI
	XORL SI, SI
	XORL DX, DX
	MOVL $SYS_setresgid, AX
	SYSCALL
	TESTQ AX, AX
	JNE  report
	MOVL $4, BX
	XORL DI, DI
	XORL SI, SI
	XORL DX, DX
	MOVL $SYS_setresuid, AX
	SYSCALL
	TESTQ AX, AX
	JNE  report

	MOVL $5, BX
	MOVQ 8(SP), DI
	MOVL $SYS_unshare, AX
	SYSCALL

report:
	// The report: the result of the last system call, and the number of the step.
	MOVQ AX, 0(SP)
	MOVQ BX, 8(SP)
	MOVL $1, DI
	MOVQ SP, SI
	MOVL $16, DX
	MOVL $SYS_write, AX
	SYSCALL

	// Stay until standard input ends.
	XORL DI, DI
	MOVQ SP, SI
	MOVL $1, DX
	MOVL $SYS_read, AX
	SYSCALL
	XORL DI, DI
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3

// func podInitEntry() unsafe.Pointer
TEXT ·podInitEntry(SB), NOSPLIT, $0-8
	LEAQ ·podInit(SB), AX
	MOVQ AX, ret+0(FP)
	RET

// func holderEntry() unsafe.Pointer
TEXT ·holderEntry(SB), NOSPLIT, $0-8
	LEAQ ·holder(SB), AX
	MOVQ AX, ret+0(FP)
	RET
