#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The order of dmsetup commands never matters for what SNAP shows. Of the C
# target this does not hold: there, most of these tests fail.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices - DEV with a pattern, two COW devices; `sum` is what SNAP must show.
devices() {
	dev=$(blk_create 8)
	cow=$(blk_create 32)
	cow2=$(blk_create 32)
	pattern "$dev" 1
	sum=$(digest "$dev")
}

# overwrite NAME SEED - all of an origin device, by 1 MiB.
overwrite() {
	pattern "$(path "$1")" "$2"
}

# shows NAME - fails unless this snapshot shows what DEV held at first.
shows() {
	equal "$(digest "$(path "$1")")" "$sum" "what $1 shows"
}

test_origin_suspended_while_the_snapshot_is_created() {
	devices
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	overwrite origin 2
	shows snap
}

test_origin_not_suspended() {
	local store chunk
	devices
	for store in P N; do
		for chunk in 8 128; do
			new_cow "$cow"
			sum=$(digest "$dev")
			origin_create origin "$dev"
			snap_create snap "$dev" "$cow" "$store" "$chunk"
			overwrite origin $((chunk + 1))
			shows snap
			dm_remove snap origin
		done
	done
}

test_origin_not_suspended_under_load() {
	devices
	origin_create origin "$dev"
	model_py run --seed 3 --ops $((300 * LOAD)) --origin "$(path origin)" \
		--snap "$(path snap)=dmsetup create ${PREFIX}snap --table '$(snap_table "$dev" "$cow" P 8)'" \
		--snap "$(path snap2)=dmsetup create ${PREFIX}snap2 --table '$(snap_table "$dev" "$cow2" N 32)'"
}

test_origin_created_after_the_snapshot() {
	devices
	snap_create snap "$dev" "$cow" P 8
	origin_create origin "$dev"
	overwrite origin 2
	shows snap
}

test_origin_loaded_before_and_resumed_after() {
	devices
	dmsetup create "${PREFIX}origin" --notable
	dm_load origin "$(origin_table "$dev")"
	snap_create snap "$dev" "$cow" P 8
	dm_resume origin
	overwrite origin 2
	shows snap
}

test_snapshot_loaded_before_and_resumed_after() {
	devices
	dmsetup create "${PREFIX}snap" --notable
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	origin_create origin "$dev"
	dm_resume snap
	overwrite origin 2
	shows snap
}

test_a_snapshot_shows_what_is_there_at_its_resume() {
	# A table that is only loaded freezes nothing yet.
	devices
	origin_create origin "$dev"
	dmsetup create "${PREFIX}snap" --notable
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	overwrite origin 2
	sum=$(digest "$dev")
	dm_suspend origin
	dm_resume snap
	dm_resume origin
	overwrite origin 3
	shows snap
}

test_two_origins_on_one_device() {
	devices
	origin_create origin "$dev"
	origin_create other "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	overwrite other 2
	shows snap
	overwrite origin 3
	shows snap
}

test_small_chunks_join_large_ones() {
	devices
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 512
	# Each of the two is to keep its own.
	snap_create snap2 "$dev" "$cow2" P 8
	overwrite origin 2
	shows snap
	shows snap2
}

test_small_chunks_join_large_ones_later() {
	local sum1
	devices
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 512
	dd if=/dev/urandom of="$(path origin)" bs=4K count=3 seek=5 oflag=direct status=none
	sum1=$sum sum=$(digest "$dev")
	snap_create snap2 "$dev" "$cow2" N 8
	overwrite origin 3
	shows snap2
	sum=$sum1
	shows snap
}

test_large_chunks_join_small_ones() {
	devices
	origin_create origin "$dev"
	snap_create snap "$dev" "$cow" P 8
	snap_create snap2 "$dev" "$cow2" P 512
	overwrite origin 2
	shows snap
	shows snap2
}

test_small_chunks_leave_large_ones() {
	devices
	origin_create origin "$dev"
	snap_add origin snap2 "$dev" "$cow2" P 8
	snap_add origin snap "$dev" "$cow" P 512
	dd if=/dev/urandom of="$(path origin)" bs=4K count=3 seek=5 oflag=direct status=none
	dm_remove snap2
	overwrite origin 2
	shows snap
}

test_snapshot_suspended_and_resumed_in_between() {
	local pid
	devices
	origin_create origin "$dev"
	snap_create snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path origin)" bs=1M count=2 oflag=direct status=none
	dm_suspend snap
	# Origin writes to new places may wait for the snapshot or save its data
	# meanwhile; they must be done once it is resumed.
	overwrite origin 2 &
	pid=$!
	dm_suspend snap --noflush
	dm_resume snap
	wait "$pid"
	shows snap
}

test_origin_suspended_and_resumed_in_between() {
	devices
	origin_create origin "$dev"
	snap_create snap "$dev" "$cow" P 8
	dm_suspend origin
	dm_suspend snap
	dm_resume origin
	dm_resume snap
	overwrite origin 2
	shows snap
	dm_suspend snap
	dm_suspend origin
	dm_resume snap
	dm_resume origin
	overwrite origin 3
	shows snap
}

test_origin_removed_and_created_again() {
	devices
	origin_create origin "$dev"
	snap_create snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path origin)" bs=1M count=2 oflag=direct status=none
	dm_remove origin
	shows snap
	origin_create origin "$dev"
	overwrite origin 2
	shows snap
}

test_the_snapshot_writes_before_the_origin_exists() {
	devices
	snap_create snap "$dev" "$cow" P 8
	dd if=/dev/urandom of="$(path snap)" bs=64K count=8 oflag=direct status=none
	sum=$(digest "$(path snap)")
	origin_create origin "$dev"
	overwrite origin 2
	shows snap
}

run_tests "$@"
