# SPDX-License-Identifier: GPL-2.0
#
# User-Mode Linux with several processors, each a thread of the host.
CONFIG_SMP=y
CONFIG_NR_CPUS=4
CONFIG_PREEMPT=y
# By which the callers of a function are known. tools/build/kernels.sh leaves them out of
# the one file that does not bear them.
CONFIG_FRAME_POINTER=y
# The shadow of a module is not made anew when it's loaded, and where another one was, the
# gaps between that one's variables would be taken for its own.
CONFIG_KASAN_VMALLOC=y
