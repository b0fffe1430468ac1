#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# A COW device that the C target wrote is opened here, and the other way round,
# again and again, with random writes to both sides in between.

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
		python3 "$LIB_DIR/model.py" run --seed "$seed" --ops 120 --max-io 131072 \
			--origin "$(path origin)" --snap "$(path snap)="
		sum=$(digest "$(path snap)") osum=$(digest "$(path origin)")
		dm_remove snap origin
		say "records by $t: $(python3 "$LIB_DIR/cow.py" check "$cow" "$(sectors "$dev")")"
		seed=$((seed + 1))
	done
	if [ "$chunk" = 8 ]; then
		# More than an area of 256 records was filled.
		(($(python3 "$LIB_DIR/cow.py" count "$cow") > 512)) || fail "too few records"
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
	equal "$(python3 "$LIB_DIR/cow.py" check "$cow" "$(sectors "$dev")")" "$count valid" "records of $first"
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
	equal "$(python3 "$LIB_DIR/cow.py" check "$cow" "$(sectors "$dev")")" "$((count + 5)) valid" "records of $second"
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
		python3 "$LIB_DIR/cow.py" new "$cow" --chunk 8
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

run_tests "$@"
