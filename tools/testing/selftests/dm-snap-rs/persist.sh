#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A persistent snapshot is there again after it was removed and created.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices MIB - makes DEV and COW, with a pattern on DEV.
devices() {
	dev=$(blk_create "$1")
	cow=$(blk_create 48)
	pattern "$dev" 1
}

# load OPS SEED - random writes to both sides of the existing devices.
load() {
	model_py run --seed "$2" --ops "$1" --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
}

# again STORE CHUNK - removes and creates again, with writes in between.
again() {
	local sum round numbers
	devices 24
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "$1" "$2"
	for round in 1 2; do
		load $((120 * LOAD)) "$round"
		sum=$(digest "$(path snap)")
		numbers=$(status snap)
		dm_remove snap
		sound "$cow" "$dev"
		snap_add origin snap "$dev" "$cow" "$1" "$2"
		equal "$(digest "$(path snap)")" "$sum" "SNAP after round $round"
		matches "$(status snap)" "^[0-9]+/98304 ${numbers##* }\$" "the status"
		# What was allocated stays allocated, and nothing else is.
		at_most "$(status snap | cut -d / -f 1)" "${numbers%%/*}" "sectors allocated"
	done
}

test_p_with_4k_chunks() { again P 8; }

test_p_with_64k_chunks() { again P 128; }

test_po_with_16k_chunks() { again PO 32; }

test_the_origin_goes_first() {
	local sum
	devices 16
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 16
	load 60 3
	sum=$(digest "$(path snap)")
	dm_remove origin snap
	# SNAP alone, and then its origin again.
	snap_create snap "$dev" "$cow" P 16
	equal "$(digest "$(path snap)")" "$sum" "SNAP alone"
	dm_suspend snap
	origin_create origin "$dev"
	dm_resume snap
	load 60 4
	[ "$(digest "$(path snap)")" != "$sum" ]
}

test_write_to_snap_then_remove_at_once() {
	# The record of a whole-chunk write is not lost with the device.
	local sum round
	devices 16
	for round in 1 2 3; do
		snap_create snap "$dev" "$cow" P 8
		dd if=/dev/urandom of="$(path snap)" bs=4K count=5 seek=$((round * 100)) oflag=direct status=none
		sum=$(digest "$(path snap)")
		dm_remove snap
		snap_create snap "$dev" "$cow" P 8
		equal "$(digest "$(path snap)")" "$sum" "SNAP in round $round"
		dm_remove snap
		equal "$(cow_py count "$cow")" $((5 * round)) "records"
	done
}

test_records_are_there_when_a_flush_is_done() {
	# After a flush of SNAP, the records of what was written are on the COW
	# device, though the snapshot is still live.
	local sync
	devices 16
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path snap)" bs=4K count=3 seek=10 oflag=direct conv=fsync status=none
	sound "$cow" "$dev" --old 10 --old 11 --old 12
	# The same for one FUA write each of a whole chunk and of a part.
	for sync in "bs=4K seek=20" "bs=512 seek=168"; do
		# shellcheck disable=SC2086
		dd if=/dev/urandom of="$(path snap)" $sync count=1 oflag=direct,dsync status=none
	done
	sound "$cow" "$dev" --old 20 --old 21
	# An origin write waits for its record: no flush is needed.
	dd if=/dev/urandom of="$(path origin)" bs=4K count=1 seek=30 oflag=direct status=none
	sound "$cow" "$dev" --old 30
	# An origin write to what SNAP has written makes that record durable too.
	dd if=/dev/urandom of="$(path snap)" bs=4K count=1 seek=40 oflag=direct status=none
	dd if=/dev/urandom of="$(path origin)" bs=4K count=1 seek=40 oflag=direct status=none
	sound "$cow" "$dev" --old 40
	# A suspend does so for everything.
	dd if=/dev/urandom of="$(path snap)" bs=4K count=2 seek=50 oflag=direct status=none
	dm_suspend snap
	sound "$cow" "$dev" --old 50 --old 51
	dm_resume snap
}

test_a_record_is_durable_within_its_second() {
	local records
	devices 16
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path snap)" bs=4K count=1 seek=60 oflag=direct status=none
	# The limit is the one of the test: a timing decides nothing here.
	records="cow_py check $cow $(sectors "$dev") --old 60"
	wait_for 30 eval "$records" || fail "the record was never written"
}

test_an_area_that_cannot_be_read_and_is_not_needed() {
	# Areas are read ahead, also those that nothing was ever written to.
	local sum under
	dev=$(blk_create 32) cow=$(blk_create 64)
	pattern "$dev" 1
	sum=$(digest "$dev")
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	# Areas of 256 records, a chunk of 8 sectors each. Nine are in use, from 0 to 8.
	sequential write "$(path origin)" 9
	dm_remove snap
	under=$((8 * (1 + 12 * 257)))
	dm_create cow "$(broken_table "$cow" "$under" 8)"
	snap_add origin snap "$dev" "$(path cow)" P 8
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_metadata_that_cannot_be_read_or_written() {
	# The log tells what it was.
	local under
	on_c && skip "the C target does not tell"
	devices 8
	under=$cow
	dm_create cow "$(broken_table "$under" 8 8)"
	cow=$(path cow)
	log_mark first
	refused snap_create snap "$dev" "$cow" P 8
	log_has first "metadata cannot be written to COW device" || fail "nothing is said: $(log_since first)"
	snap_create snap "$dev" "$under" P 8
	dm_remove snap
	log_mark again
	refused snap_create snap "$dev" "$cow" P 8
	log_has again "metadata area 0 of COW device [0-9:]+ cannot be read" ||
		fail "nothing is said: $(log_since again)"
}

test_a_transient_snapshot_writes_no_header() {
	devices 16
	pattern "$cow" 9
	snap_create snap "$dev" "$cow" N 8
	dd if=/dev/urandom of="$(path snap)" bs=4K count=1 oflag=direct status=none
	dm_remove snap
	refused cow_py check "$cow" "$(sectors "$dev")"
}

test_the_header_is_what_the_format_says() {
	devices 16
	snap_create snap "$dev" "$cow" P 64
	dm_remove snap
	equal "$(dd if="$cow" bs=16 count=1 status=none | od -A n -t x4)" \
		" 70416e53 00000001 00000001 00000040" "the header"
	equal "$(dd if="$cow" bs=512 skip=64 count=64 status=none | tr -d '\0' | wc -c)" 0 \
		"what is not zero in the first area"
}

run_tests "$@"
