#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Devices that fail, altogether or at one step, while a snapshot is in use.  What is asked
# each time is told in stand.py.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# faults COMMAND COUNT - runs faults.py with COUNT devices.  They have volatile caches, so
# that flushes reach them.
faults() {
	local i devices=()
	on_c && skip "this is about the log lines and statuses of the Rust module"
	modprobe dm-flakey || skip "no dm-flakey here"
	for ((i = 0; i < $2; i++)); do
		devices+=("$(blk_create 4 cache_size=1 discard=1)")
	done
	pattern "${devices[0]}" 1
	python3 "$LIB_DIR/faults.py" "$1" "${devices[@]}"
}

test_devices_that_fail() { faults devices 2; }

test_steps_that_fail() { faults steps 3; }

run_tests "$@"
