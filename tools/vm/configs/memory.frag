# SPDX-License-Identifier: GPL-2.0
#
# Wrong use of memory and of locks. KASAN sees the accesses of Rust code too, for
# which the C compiler has to be clang.
CONFIG_KASAN=y
CONFIG_KASAN_GENERIC=y
CONFIG_KASAN_OUTLINE=y
CONFIG_SLUB_DEBUG_ON=y
CONFIG_DEBUG_OBJECTS=y
CONFIG_DEBUG_OBJECTS_FREE=y
CONFIG_DEBUG_OBJECTS_TIMERS=y
CONFIG_DEBUG_OBJECTS_WORK=y
CONFIG_DEBUG_KMEMLEAK=y
CONFIG_DEBUG_KMEMLEAK_MEM_POOL_SIZE=40000
# A scan comes when a test asks for it.
# CONFIG_DEBUG_KMEMLEAK_AUTO_SCAN is not set
CONFIG_PROVE_LOCKING=y
# Long tests make many devices, and lockdep gives up when its tables are full.
CONFIG_LOCKDEP_BITS=17
CONFIG_LOCKDEP_CHAINS_BITS=18
CONFIG_LOCKDEP_STACK_TRACE_BITS=20
