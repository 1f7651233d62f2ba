#include "textflag.h"

// Programs without a runtime or library, see program.go. execve(2) starts them with
// undefined registers and the stack pointer aligned to 16 bytes, and they must not return.
// A system call has its number in AX and its arguments in DI, SI, DX and R10, and clobbers
// CX and R11 (syscall(2)). The numbers are from the kernel's
// arch/x86/entry/syscalls/syscall_64.tbl.

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
	// Block all signals. The kernel sends the init of a PID namespace only signals
	// that it handles (pid_namespaces(7)) or blocks.
	SUBQ $16, SP
	MOVQ $-1, 0(SP)
	MOVL $2, DI               // SIG_SETMASK
	MOVQ SP, SI
	XORL DX, DX
	MOVL $8, R10
	MOVL $SYS_rt_sigprocmask, AX
	SYSCALL

	// Close all files: others could reach them through /proc/1/fd.
	MOVL $2, BX
closeNext:
	MOVL BX, DI
	MOVL $SYS_close, AX
	SYSCALL
	SUBL $1, BX
	JGE  closeNext

	MOVQ $0x14002, 0(SP)      // SIGINT 2, SIGTERM 15, SIGCHLD 17; bits count from 0
reap:
	// Reap all children that have ended. One SIGCHLD may stand for many of them.
	MOVQ $-1, DI
	XORL SI, SI
	MOVL $1, DX               // WNOHANG
	XORL R10, R10
	MOVL $SYS_wait4, AX
	SYSCALL
	TESTQ AX, AX
	JGT  reap

	// Wait for a signal. One that came in the meantime is pending, and ends the wait at once.
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

	// SIGINT and SIGTERM end the pod init with exit code 0, an unexpected error with 1.
	XORL DI, DI
	TESTQ AX, AX
	JGT  exit
	MOVL $1, DI
exit:
	MOVL $SYS_exit_group, AX
	SYSCALL
	INT  $3

TEXT ·holder(SB), NOSPLIT|NOFRAME|TOPFRAME, $0-0
	// Read the Order: a file descriptor of a user namespace, and flags for unshare(2).
	SUBQ $16, SP
	XORL DI, DI
	MOVQ SP, SI
	MOVL $16, DX
	MOVL $SYS_read, AX
	SYSCALL
	MOVL $1, BX               // Report.Step
	CMPQ AX, $16
	JNE  report

	// Enter the user namespace, unless the holder was started in it.
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
	// Become root of the user namespace, who will own the new namespaces.
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
	// Write the Report: the result of the last system call, and its step.
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
