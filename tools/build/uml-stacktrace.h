/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What User-Mode Linux's stacktrace.c begins with. It looks up each word of the stack
 * in the kernel's and the modules' code, and then keeps only those to which the frame
 * pointers lead. A look-up takes locks, which lockdep watches with interrupts off, for
 * which the host is called; and KASAN and kmemleak take a trace at each allocation: nine
 * tenths of all time. This looks up no more than what can be kept.
 */
#include <linux/kernel.h>
#include <linux/kallsyms.h>

#define __kernel_text_address(addr) \
	((unsigned long)sp == bp + sizeof(long) && (__kernel_text_address)(addr))
