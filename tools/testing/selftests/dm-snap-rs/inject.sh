#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Requests and allocations that fail one after the other, on kernels with fault injection.
# What is asked each time is told in stand.py, and how it's done in inject.py.
#
#	DM_SNAP_RS_BIOS=N	so many bios, a life of a snapshot for each twenty of them,
#				and one of 10000/N allocations of a step, which are some
#				thousand for an origin alone

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

BIOS=${DM_SNAP_RS_BIOS:-1000}
DEBUG=/sys/kernel/debug
((LIMIT >= 1800)) || LIMIT=1800

# inject COMMAND [ARGUMENT]... - runs inject.py with two devices that have volatile caches,
# so that flushes reach them.
inject() {
	local dev cow command=$1
	shift
	on_c && skip "this is about the log lines and statuses of the Rust module"
	[ -d "$DEBUG/failslab" ] || mount -t debugfs debugfs "$DEBUG" || :
	[ -e "$DEBUG/failslab/require-start" ] || skip "no fault injection in this kernel"
	# Two spans are enough, and all is compared each time.
	dev=$(blk_create 2 cache_size=1 discard=1)
	cow=$(blk_create 2 cache_size=1 discard=1)
	pattern "$dev" 1
	# On User-Mode Linux a page that is touched for the first time is costly: the heap keeps
	# what it has.
	MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=1000000000 \
		python3 "$LIB_DIR/inject.py" "$command" "$dev" "$cow" "$@"
}

test_each_request_fails() { inject requests; }

test_each_allocation_of_a_step_fails() {
	inject steps "$(((10000 + BIOS - 1) / BIOS))" "$(blk_create 256)"
}

test_each_allocation_of_bios_fails() { inject bios "$BIOS"; }

test_allocations_fail_in_work_items() { inject work $((BIOS / 20)); }

run_tests "$@"
