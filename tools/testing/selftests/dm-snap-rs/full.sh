#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What happens when the COW device is full or fails: the snapshot is lost, the
# origin never is.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices COW-SECTORS - DEV of 16 MiB with a pattern, COW of this size.
devices() {
	dev=$(blk_create 16)
	space=$(blk_create 32)
	linear_create cow "$space" "$1"
	cow=$(path cow)
	pattern "$dev" 1
	origin_create origin "$dev"
}

# snap_read - reads the whole of SNAP, true only without an error.
snap_read() {
	dd if="$(path snap)" of=/dev/null bs=64K iflag=direct status=none
}

# overwrite SEED - writes all of ORIGIN; this must succeed and be right.
overwrite() {
	pattern "$(path origin)" "$1"
	equal "$(digest "$dev")" "$(digest "$(path origin)")" "ORIGIN"
}

# fill_up STORE CHUNK STATUS - fills the COW device from ORIGIN.
fill_up() {
	# 4 MiB for an origin of 16.
	devices 8192
	snap_add origin snap "$dev" "$cow" "$1" "$2"
	overwrite_by_parts
	equal "$(status snap)" "$3" "the status"
	refused snap_read
	refused dd if=/dev/zero of="$(path snap)" bs=4K count=1 oflag=direct status=none
	# What was written before may be lost. The C target has recorded it then.
	on_c || refused dd if=/dev/null of="$(path snap)" conv=notrunc,fsync status=none
	# Origin I/O goes on and is right.
	pattern "$(path origin)" 3
	equal "$(digest "$(path origin)")" "$(digest "$dev")" "ORIGIN"
	dm_suspend snap
	dm_resume snap
	equal "$(status snap)" "$3" "the status after a suspend"
}

# overwrite_by_parts - what pattern writes, in two jobs.
overwrite_by_parts() {
	local pid
	pattern "$(path origin)" 2 8 &
	pid=$!
	dd if=/dev/urandom of="$(path origin)" bs=256K seek=32 count=32 oflag=direct status=none
	wait "$pid"
}

test_p_is_invalid() {
	fill_up P 8 Invalid
	# The header says so, so that it stays invalid.
	dm_remove snap
	cow_py check "$cow" "$(sectors "$dev")" | grep 'invalid$'
	snap_add origin snap "$dev" "$cow" P 8
	equal "$(status snap)" Invalid "the status after it was created again"
	refused snap_read
	pattern "$(path origin)" 4
	dm_remove snap
	# A wiped header makes it a new snapshot.
	new_cow "$cow"
	snap_add origin snap "$dev" "$cow" P 8
	equal "$(status snap)" "16/8192 16" "the status of a new one"
	snap_read
}

test_p_with_64k_chunks_is_invalid() { fill_up P 128 Invalid; }

test_n_is_invalid() { fill_up N 8 Invalid; }

test_n_with_64k_chunks_is_invalid() { fill_up N 128 Invalid; }

test_po_by_the_origin() {
	# An origin write that does not fit loses the snapshot, and the status of
	# PO tells why.
	devices 8192
	snap_add origin snap "$dev" "$cow" PO 8
	overwrite_by_parts
	matches "$(status snap)" '^(Overflow|Invalid)$' "the status"
	note "the status is $(status snap)"
	refused snap_read
	pattern "$(path origin)" 3
	equal "$(digest "$(path origin)")" "$(digest "$dev")" "ORIGIN"
}

test_po_by_the_snapshot() {
	# A write to SNAP that does not fit fails, and the status is Overflow. What
	# is there already stays on the COW device and is there again after the
	# device has grown.
	local sum
	devices 1024
	sum=$(digest "$dev" 0 400)
	snap_add origin snap "$dev" "$cow" PO 8
	dd if=/dev/urandom of="$(path origin)" bs=4K count=50 oflag=direct status=none
	refused dd if=/dev/urandom of="$(path snap)" bs=4K seek=1000 count=500 oflag=direct status=none
	equal "$(status snap)" Overflow "the status"
	dm_remove snap
	sound "$cow" "$dev" --old 0 --old 49
	dm_suspend cow
	dm_load cow "$(linear_table "$space" 16384)"
	dm_resume cow
	snap_add origin snap "$dev" "$cow" PO 8
	matches "$(status snap)" '^[0-9]+/16384 [0-9]+$' "the status of a grown one"
	# Its old chunks are still what they were when it was made.
	equal "$(digest "$(path snap)" 0 400)" "$sum" "what was saved before"
}

test_an_event_at_overflow() {
	# The C target raises one when a snapshot becomes invalid, but none here.
	local pid
	devices 1024
	snap_add origin snap "$dev" "$cow" PO 8
	dmsetup wait "${PREFIX}snap" &
	pid=$!
	refused dd if=/dev/urandom of="$(path snap)" bs=4K count=500 oflag=direct status=none
	equal "$(status snap)" Overflow "the status"
	wait_for 10 eval "! kill -0 $pid 2>/dev/null" || fail "no event was raised"
}

test_holes_are_used_again() {
	# A crash can leave chunks that no record names below others that are in use.
	# The C target never uses them again.
	local sum
	devices 1024
	cow_py new "$cow" --chunk 8
	cow_py record "$cow" 0 5 127
	sum=$(digest "$dev" 48)
	snap_add origin snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path origin)" bs=4K count=100 seek=10 oflag=direct status=none
	matches "$(status snap)" '^[0-9]+/1024 ' "the status"
	equal "$(digest "$(path snap)" 48)" "$sum" "SNAP"
	dm_remove snap
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "101 valid" "the records"
}

test_invalid_by_the_snapshots_own_write() {
	local store
	for store in P N; do
		devices 1024
		snap_add origin snap "$dev" "$cow" "$store" 8
		refused dd if=/dev/urandom of="$(path snap)" bs=4K count=500 oflag=direct status=none
		equal "$(status snap)" Invalid "the status"
		overwrite 2
		dm_remove snap origin cow
	done
}

test_other_snapshots_go_on() {
	local sum other
	devices 2048
	other=$(blk_create 32)
	sum=$(digest "$dev")
	snap_add origin snap "$dev" "$cow" P 8
	snap_add origin other "$dev" "$other" P 16
	overwrite_by_parts
	equal "$(status snap)" Invalid "the status of the small one"
	matches "$(status other)" '^[0-9]+/65536 ' "the status of the large one"
	equal "$(digest "$(path other)")" "$sum" "the large one"
	dm_remove snap
	dd if=/dev/urandom of="$(path origin)" bs=64K count=20 oflag=direct status=none
	equal "$(digest "$(path other)")" "$sum" "the large one when the small one is gone"
	dm_remove other
	sound "$other" "$dev"
	snap_add origin other "$dev" "$other" P 16
	equal "$(digest "$(path other)")" "$sum" "the large one, created again"
}

test_cow_of_the_exact_size() {
	# All chunks of the origin fit: header, areas and data, and not one more.
	local sum data=4096 areas=16
	dev=$(blk_create 16)
	space=$(blk_create 32)
	pattern "$dev" 1
	sum=$(digest "$dev")
	origin_create origin "$dev"
	# The C target zeroes one more area as soon as the last is full.
	linear_create cow "$space" $(((1 + areas + data + 1) * 8))
	snap_add origin snap "$dev" "$(path cow)" P 8
	pattern "$(path origin)" 2
	matches "$(status snap)" '^[0-9]+/32912 ' "the status"
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_cow_that_ends_at_an_area_border() {
	# The last area could be full at the moment when the device is; there would
	# be no next one to be zeroed, nor would a reader find the end of the
	# records. So the last chunk stays unused, and nothing goes past the end.
	local sum
	dev=$(blk_create 4)
	space=$(blk_create 8)
	pattern "$dev" 1
	sum=$(digest "$dev")
	origin_create origin "$dev"
	linear_create cow "$space" $(((1 + 2 * 257) * 8))
	snap_add origin snap "$dev" "$(path cow)" P 8
	dd if=/dev/urandom of="$(path origin)" bs=2044K count=1 oflag=direct \
		iflag=fullblock status=none
	equal "$(digest "$(path snap)")" "$sum" "SNAP when all is in use"
	matches "$(status snap)" '^41[0-9][0-9]/4120 ' "the status"
	dm_remove snap
	equal "$(cow_py check "$(path cow)" 8192)" "511 valid" "the records"
	snap_add origin snap "$dev" "$(path cow)" P 8
	equal "$(digest "$(path snap)")" "$sum" "SNAP, created again"
	log_mark border
	dd if=/dev/urandom of="$(path origin)" bs=4K count=2 seek=600 oflag=direct status=none
	equal "$(status snap)" Invalid "the status after more"
	refused log_has border 'attempt to access beyond end'
}

test_cow_that_cannot_be_written() {
	# An I/O error of the COW device is the snapshot's alone.
	local store sum
	for store in P N; do
		dev=$(blk_create 8)
		# Bad are the second half of the first MiB:
		# only data is there.
		space=$(blk_create 16 badblocks=+1024-2047)
		pattern "$dev" 1
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$space" "$store" 8
		pattern "$(path origin)" 2
		sum=$(digest "$(path origin)")
		equal "$(status snap)" Invalid "the status of $store"
		refused snap_read
		equal "$(digest "$dev")" "$sum" "DEV"
		# Later I/O does not hang.
		pattern "$(path origin)" 3
		dm_remove snap origin
	done
}

test_dev_that_cannot_be_read() {
	# The old data cannot be saved: the snapshot is lost, the write goes on.
	local store
	for store in P N; do
		dev=$(blk_create 8)
		space=$(blk_create 16)
		# Bad for the copies alone: ORIGIN is written by whole chunks.
		dm_create bad "$(broken_table "$dev" 8192 64)"
		origin_create origin "$(path bad)"
		snap_add origin snap "$(path bad)" "$space" "$store" 8
		dd if=/dev/urandom of="$(path origin)" bs=4K count=4 seek=10 oflag=direct status=none
		refused dd if=/dev/urandom of="$(path origin)" bs=4K count=1 seek=1025 oflag=direct status=none
		equal "$(status snap)" Invalid "the status of $store"
		dd if=/dev/urandom of="$(path origin)" bs=4K count=4 seek=20 oflag=direct status=none
		refused snap_read
		dm_remove snap origin bad
	done
}

test_the_log_says_what_happened() {
	devices 1024
	snap_add origin snap "$dev" "$cow" P 8
	log_mark full
	dd if=/dev/urandom of="$(path origin)" bs=64K count=10 oflag=direct status=none
	equal "$(status snap)" Invalid "the status"
	# No space is not told as a lack of memory, as the C target does.
	log_has full 'device-mapper: snapshot.*(full|space)' || fail "the log does not name the reason: $(log_since full)"
	at_most "$(log_since full | grep -c device-mapper)" 3 "lines in the log"
}

run_tests "$@"
