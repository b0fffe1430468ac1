#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The soak test, as a test script that run.sh runs: makes the devices for soak.py.
# tools/soak/run puts both beside lib.sh, and sets SOAK_MINUTES and SOAK_SEED.

# shellcheck source=tools/testing/selftests/dm-snap-rs/lib.sh
. "$(dirname "$0")/lib.sh"

# How it goes on is to be seen meanwhile, not only at the end.
exec {SAY}>&1

# two_ways DISK - makes DEV on DISK. Each second read takes a way on which it is kept for
# a while before it reads, so that what comes later may overtake it. Where there is no
# multipath, all reads take that way.
two_ways() {
	local size table
	size=$(sectors "$1")
	modprobe dm-delay
	dm_create slow "0 $size delay $1 0 8 $1 0 0"
	table="linear $(path slow) 0"
	if modprobe dm-multipath && modprobe dm-round-robin; then
		table="multipath 2 queue_mode bio 0 1 1 round-robin 0 2 1 $1 1 $(path slow) 1"
	fi
	dm_create dev "0 $size $table"
}

test_soak() {
	local disk space
	local attributes=(discard=1 cache_size=1 irqmode=2 completion_nsec=50000 submit_queues=2)
	disk=$(blk_create 16 "${attributes[@]}")
	space=$(blk_create 80 "${attributes[@]}")
	# All of their memory is taken now: there may be none later.
	pattern "$disk" 1
	pattern "$space" 2
	two_ways "$disk"
	# Nor shall the kernel keep much for itself, as it does for huge pages.
	echo 4096 >/proc/sys/vm/min_free_kbytes
	# What is large goes back to the kernel when it is not needed any more.
	MALLOC_MMAP_THRESHOLD_=262144 MALLOC_ARENA_MAX=2 \
		python3 "$LIB_DIR/soak.py" "$(path dev)" "$space" "$SOAK_MINUTES" "$SOAK_SEED" >&"$SAY" 2>&1
	dm_remove dev slow
}

run_tests "$@"
