#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Devices that are suspended, reloaded and removed while a snapshot read is out
# and an origin write waits for it: nothing is lost, and the order is kept.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=stall.sh
. "$LIB_DIR/stall.sh"

# waiting STORE - a held read, and an origin write of the same chunk that waits.
waiting() {
	setup "$1"
	held_read reader snap 0 1
	start writer put origin 0 1 n
	covered snap 0 o
}

# goes_on [JOB]... - still the write waits, and so do these jobs; then the read is
# let go, and both it and the write end as they should.
goes_on() {
	local job
	not_written 0 1
	for job in reader writer "$@"; do
		running "$job"
	done
	let_go reader
	follows writer 0 1 reader
	was_read reader o
}

gone() {
	! dm_exists "$1"
}

test_origin_is_removed_and_created_again() {
	setup P
	held_read reader snap 0 1
	dm_remove origin
	origin_create origin "${NBD[dev]}"
	start writer put origin 0 1 n
	covered snap 0 o
	goes_on
	shows origin 0 n
	shows snap 0 o
}

test_origin_is_removed_once_the_write_ends() {
	waiting P
	dmsetup remove --deferred "${PREFIX}origin"
	goes_on
	wait_for 45 gone origin || fail "the origin is not removed"
	shows snap 0 o
}

test_second_origin_device() {
	waiting P
	origin_create origin2 "${NBD[dev]}"
	start "second writer" put origin2 0 1 n
	goes_on
	finished "second writer"
	dm_remove origin
	shows origin2 0 n
	shows snap 0 o
}

test_first_of_two_origin_devices_is_removed() {
	setup P
	origin_create origin2 "${NBD[dev]}"
	held_read reader snap 0 1
	dm_remove origin
	start writer put origin2 0 1 n
	covered snap 0 o
	goes_on
	shows origin2 0 n
}

test_snapshot_is_removed_once_the_read_ends() {
	waiting P
	dmsetup remove --deferred "${PREFIX}snap"
	goes_on
	wait_for 45 gone snap || fail "the snapshot is not removed"
	shows origin 0 n
}

# As a forced removal begins: the snapshot's table goes while its device is open.
test_table_of_snapshot_is_wiped() {
	waiting P
	start wipe dmsetup wipe_table "${PREFIX}snap"
	goes_on wipe
	finished wipe
	dm_remove snap
	shows origin 0 n
	# What the snapshot held back must not be held back any more.
	put origin 1 1 n
}

# removed_after_read STORE - `dmsetup remove` at the very moment at which the read
# ends: the write that is released meanwhile must not meet a freed snapshot.
removed_after_read() {
	waiting "$1"
	# dmsetup gives up after 5 s, in which a slow machine is not ready to end the read.
	start removal wait_for 45 dmsetup remove --retry "${PREFIX}snap"
	goes_on removal
	finished removal
	shows origin 0 n
}

test_persistent_snapshot_is_removed_as_the_read_ends() { removed_after_read P; }

test_transient_snapshot_is_removed_as_the_read_ends() { removed_after_read N; }

# One of two snapshots is removed; the other's read still holds the write back.
test_other_snapshot_is_removed() {
	setup P
	setup_second P 4
	held_read reader snap 0 1
	start writer put origin 0 1 n
	covered snap 0 o
	covered snap2 0 o
	dm_remove snap2
	goes_on
	shows snap 0 o
}

test_origin_is_suspended_with_a_waiting_write() {
	waiting P
	start suspend dm_suspend origin
	goes_on suspend
	finished suspend
	dm_resume origin
	shows origin 0 n
}

test_snapshot_is_suspended_with_a_held_read() {
	setup P
	held_read reader snap 0 1
	start suspend dm_suspend snap
	# The origin goes on, and what it writes elsewhere doesn't wait.
	put origin 50 1 n
	start writer put origin 0 1 n
	goes_on suspend
	finished suspend
	dm_resume snap
	shows snap 0 o
	shows snap 50 o
}

test_snapshot_is_suspended_with_a_waiting_write() {
	waiting P
	start suspend dm_suspend snap
	goes_on suspend
	finished suspend
	dm_resume snap
	shows snap 0 o
}

# reload_snapshot STORE - the new table takes the exceptions over.
reload_snapshot() {
	waiting "$1"
	dm_load snap "$(snap_table "${NBD[dev]}" "${NBD[cow]}" "$1" 8)"
	start resume dm_resume snap
	goes_on resume
	finished resume
	shows snap 0 o
	put origin 1 1 n
	shows snap 0 oo
}

test_persistent_snapshot_is_reloaded() { reload_snapshot P; }

test_transient_snapshot_is_reloaded() { reload_snapshot N; }

test_origin_is_reloaded() {
	waiting P
	dm_load origin "$(origin_table "${NBD[dev]}")"
	start resume dm_resume origin
	goes_on resume
	finished resume
	put origin 1 1 n
	shows origin 0 nn
	shows snap 0 oo
}

stall_tests "$@"
