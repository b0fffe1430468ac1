#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A COW device that the C target wrote is opened here, and the other way round,
# again and again, with random writes to both sides in between; and what the one
# has begun, the other merges.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# turns STORE CHUNK TARGET... - gives one COW device from target to target.
turns() {
	local store=$1 chunk=$2 dev cow sum='' osum='' seed=1 t
	shift 2
	on_c && set -- c c c
	dev=$(blk_create 24)
	cow=$(blk_create 40)
	pattern "$dev" 1
	for t in "$@"; do
		use_targets "$t"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" "$store" "$chunk"
		if [ -n "$sum" ]; then
			equal "$(digest "$(path snap)")" "$sum" "SNAP, opened by $t"
			equal "$(digest "$(path origin)")" "$osum" "ORIGIN, opened by $t"
		fi
		model_py run --seed "$seed" --ops 120 --max-io 131072 \
			--origin "$(path origin)" --snap "$(path snap)="
		sum=$(digest "$(path snap)") osum=$(digest "$(path origin)")
		dm_remove snap origin
		sound "$cow" "$dev"
		seed=$((seed + 1))
	done
	if [ "$chunk" = 8 ]; then
		# More than an area of 256 records was filled.
		(($(cow_py count "$cow") > 512)) || fail "too few records"
	fi
}

test_4k_chunks_c_then_rust_then_c() { turns P 8 c rs c; }

test_4k_chunks_rust_then_c_then_rust() { turns P 8 rs c rs; }

test_16k_chunks_c_then_rust() { turns P 32 c rs; }

test_64k_chunks_rust_then_c() { turns PO 128 rs c; }

test_512k_chunks_rust_then_c() { turns P 1024 rs c; }

# border COUNT FIRST SECOND - FIRST writes exactly COUNT records, SECOND goes on.
# At 256 records the first area of 4K chunks is full.
border() {
	local count=$1 first=$2 second=$3 dev cow sum metadata
	if on_c; then first=c second=c; fi
	dev=$(blk_create 8)
	cow=$(blk_create 16)
	pattern "$dev" 2
	use_targets "$first"
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	sum=$(digest "$(path snap)")
	dd if=/dev/urandom of="$(path origin)" bs=$((count * 4))K count=1 oflag=direct \
		iflag=fullblock status=none
	dm_remove snap origin
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "$count valid" "records of $first"
	use_targets "$second"
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$sum" "SNAP, opened by $second"
	# A metadata area is never allocated for data, and the next one is in use
	# as soon as one is full.
	metadata=$((8 * (2 + count / 256)))
	equal "$(status snap | cut -d ' ' -f 2)" "$metadata" "metadata sectors of $count records"
	dd if=/dev/urandom of="$(path origin)" bs=4K seek=1000 count=5 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$sum" "SNAP, after more writes by $second"
	dm_remove snap origin
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "$((count + 5)) valid" "records of $second"
	use_targets "$first"
	snap_create snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$sum" "SNAP, opened by $first again"
}

test_one_record_below_an_area_border() { border 255 c rs; }

test_exactly_at_an_area_border() { border 256 c rs; remove_all; border 256 rs c; }

test_one_record_above_an_area_border() { border 257 rs c; }

test_exactly_at_the_second_area_border() { border 512 rs c; }

test_an_invalid_snapshot_of_the_other_target() {
	local dev cow first
	dev=$(blk_create 8)
	cow=$(blk_create 8)
	for first in c rs; do
		on_c && first=c
		use_targets "$first"
		cow_py new "$cow" --chunk 8
		linear_create small "$cow" 256
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$(path small)" P 8
		dd if=/dev/urandom of="$(path origin)" bs=4K count=64 oflag=direct status=none
		equal "$(status snap)" Invalid "the status by $first"
		dm_remove snap origin
		on_c || use_targets "$([ "$first" = c ] && echo rs || echo c)"
		snap_create snap "$dev" "$(path small)" P 8
		equal "$(status snap)" Invalid "the status by the other target"
		refused dd if="$(path snap)" of=/dev/null bs=4K count=1 iflag=direct status=none
		dm_remove snap small
	done
}

# ---------------------------------------------------------------------------
# Merging what the other has written

# by TARGET - as use_targets; all are C's own when the tests run on those.
by() {
	if on_c; then use_targets c; else use_targets "$1"; fi
}

# pair DEV-MIB COW-MIB - DEV with a pattern, and COW.
pair() {
	dev=$(blk_create "$1")
	cow=$(blk_create "$2")
	pattern "$dev" 3
}

# written_by TARGET CHUNK COUNT - the target itself makes all the exceptions, from
# one write to ORIGIN each.
written_by() {
	by "$1"
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P "$2"
	SUM=$(digest "$(path snap)")
	model_py touch "$(path origin)" "$2" "$3" 5
	equal "$(digest "$(path snap)")" "$SUM" "SNAP, written by $1"
	dm_remove snap origin
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "$3 valid" "the records of $1"
}

# continued_by TARGET CHUNK - both sides are written at random.
continued_by() {
	by "$1"
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P "$2"
	equal "$(digest "$(path snap)")" "$SUM" "SNAP, opened by $1"
	model_py run --seed 9 --ops 40 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
	SUM=$(digest "$(path snap)")
	dm_remove snap origin
	equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format"
}

# merged_by TARGET CHUNK - the origin shows the snapshot at once, and DEV in the end.
merged_by() {
	by "$1"
	merge_create origin "$dev" "$cow" P "$2"
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, while $1 merges"
	wait_merged origin
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, merged by $1"
	dm_remove origin
	equal "$(digest "$dev")" "$SUM" "DEV, merged by $1"
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "0 valid" "the records that $1 left"
}

# used_again_by TARGET CHUNK - an emptied COW device is that of a new snapshot.
used_again_by() {
	by "$1"
	snap_create snap "$dev" "$cow" P "$2"
	equal "$(digest "$(path snap)")" "$SUM" "SNAP of the emptied COW, opened by $1"
	matches "$(status snap)" "^$(($2 * 2))/[0-9]+ $(($2 * 2))\$" "its status"
	dm_remove snap
}

# merge_of COUNT DEV-MIB COW-MIB WRITER OTHER - WRITER makes the exceptions, OTHER
# goes on, WRITER merges, OTHER uses what is left.
merge_of() {
	pair "$2" "$3"
	written_by "$4" 8 "$1"
	continued_by "$5" 8
	merged_by "$4" 8
	used_again_by "$5" 8
}

# made COUNT CHUNK DEV-MIB COW-MIB FIRST SECOND [OPTION]... - as merge_of, but the
# exceptions are made by no target.  FIRST goes on, SECOND merges.
made() {
	local count=$1 chunk=$2
	pair "$3" "$4"
	cow_py make "$cow" "$(sectors "$dev")" --chunk "$chunk" --count "$count" --seed 4 "${@:7}"
	SUM=$(cow_py digest "$cow" "$dev")
	continued_by "$5" "$chunk"
	merged_by "$6" "$chunk"
	used_again_by "$5" "$chunk"
}

test_1_exception_merged() { merge_of 1 8 16 c rs; remove_all; merge_of 1 8 16 rs c; }

test_300_exceptions_of_c_merged() { merge_of 300 8 16 c rs; }

test_300_exceptions_of_rust_merged() { merge_of 300 8 16 rs c; }

test_10000_exceptions_of_c_merged() { merge_of 10000 64 60 c rs; }

test_10000_exceptions_of_rust_merged() { merge_of 10000 64 60 rs c; }

test_100000_exceptions_merged_by_rust() { made 100000 1 64 58 c rs --run 20; }

test_100000_exceptions_merged_by_c() { made 100000 1 64 58 rs c --run 20; }

test_holes_of_a_crash_merged_by_rust() { made 2500 8 24 24 c rs --hole 7; }

test_holes_of_a_crash_merged_by_c() { made 2500 8 24 24 rs c --hole 7; }

test_full_areas_merged() {
	local count first second
	for count in 256 512; do
		while read -r first second; do
			pair 8 16
			cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count "$count" --seed "$count"
			SUM=$(cow_py digest "$cow" "$dev")
			by "$first"
			snap_create snap "$dev" "$cow" P 8
			equal "$(digest "$(path snap)")" "$SUM" "SNAP, opened by $first"
			dm_remove snap
			merged_by "$second" 8
			remove_all
		done <<<$'c rs\nrs c'
	done
}

# relay FIRST SECOND - FIRST begins to merge, SECOND goes on, FIRST ends it.
relay() {
	local disk t last
	disk=$(blk_create 24 cache_size=1)
	cow=$(blk_create 24)
	hold_create dev "$disk"
	dev=$(path dev)
	pattern "$dev" 3
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 3000 --seed 4
	SUM=$(cow_py digest "$cow" "$dev")
	last=3000
	for t in "$1" "$2"; do
		by "$t"
		merge_create origin "$dev" "$cow" P 8
		wait_for 60 less_left $((last * 8)) || fail "$t does not merge"
		stepping dm_remove origin
		last=$(cow_py count "$cow")
		note "$last records left by $t"
		((last > 0)) || fail "nothing is left by $t"
		equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format, as $t left it"
	done
	hold_end
	merged_by "$1" 8
}

# less_left SECTORS - takes a step; true when the merge has less than this before it.
less_left() {
	hold_step
	merge_left origin
	((LEFT < $1))
}

test_begun_by_c_and_gone_on_by_rust() { relay c rs; }

test_begun_by_rust_and_gone_on_by_c() { relay rs c; }

run_tests "$@"
