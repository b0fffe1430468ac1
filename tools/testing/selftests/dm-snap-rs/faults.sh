#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Devices that fail altogether, for reads, for writes or for both, while a snapshot is in
# use.  What is asked each time is told in faults.py.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

test_devices_that_fail() {
	on_c && skip "this is about the log lines and statuses of the Rust module"
	modprobe dm-flakey || skip "no dm-flakey here"
	# With volatile caches, so that flushes reach them.
	dev=$(blk_create 4 cache_size=1)
	cow=$(blk_create 4 cache_size=1)
	pattern "$dev" 1
	python3 "$LIB_DIR/faults.py" "$dev" "$cow"
}

run_tests "$@"
