#include "textflag.h"

// nop is a signal handler that does nothing: it returns to the kernel's
// trampoline.
TEXT ·nop(SB), NOSPLIT|NOFRAME, $0-0
	RET

DATA ·nopAddr+0(SB)/8, $·nop(SB)
GLOBL ·nopAddr(SB), RODATA, $8
