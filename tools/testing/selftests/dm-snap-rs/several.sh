#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Creating, removing, reloading and suspending while I/O flows: nothing is lost,
# nothing hangs. The load is model.py, so that all data is verified as well.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices - ORIGIN with one snapshot that stays.
devices() {
	# I/O takes a while, so that there is always some in flight.
	dev=$(blk_create 16 irqmode=2 completion_nsec=300000)
	cow=$(blk_create 32 irqmode=2 completion_nsec=300000)
	cow2=$(blk_create 32 irqmode=2 completion_nsec=300000)
	cow3=$(blk_create 32)
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "${1:-P}" 8
}

# start_load [OPTION]... - random I/O in the background until stop_load.
start_load() {
	local seed=$RANDOM
	note "seed $seed"
	rm -f "$TMP/stop"
	model_py run --seed "$seed" --ops 10000000 --max-io 262144 \
		--stop "$TMP/stop" --origin "$(path origin)" "$@" &
	LOAD_PID=$!
	writes_before=$(io_count "$dev" writes)
	wait_for 30 moved || fail "the load does not start"
}

# moved - true when DEV was written since this was set up.
moved() {
	(($(io_count "$dev" writes) > writes_before))
}

# still_moving - waits until the load goes on: it does not hang.
still_moving() {
	writes_before=$(io_count "$dev" writes)
	wait_for 30 moved || fail "the load does not go on"
	kill -0 "$LOAD_PID" || fail "the load has ended"
}

# stop_load - ends the load; all of every device is compared with the model.
stop_load() {
	touch "$TMP/stop"
	wait "$LOAD_PID" || fail "the load found wrong data"
}

rounds=$((4 * LOAD))

test_snapshots_come_and_go_under_writes() {
	local i
	devices
	start_load --snap "$(path snap)="
	for ((i = 0; i < rounds; i++)); do
		new_cow "$cow2"
		snap_add origin snap2 "$dev" "$cow2" P $((8 << i % 4))
		snap_add origin snap3 "$dev" "$cow3" N $((128 >> i % 4))
		still_moving
		if ((i % 2)); then dm_remove snap2 snap3; else dm_remove snap3 snap2; fi
	done
	still_moving
	stop_load
	dm_remove snap origin
	sound "$cow" "$dev"
}

test_reload_of_the_origin_under_writes() {
	local i
	devices
	start_load --snap "$(path snap)="
	for ((i = 0; i < rounds; i++)); do
		dm_load origin "$(origin_table "$dev")"
		dm_suspend origin
		dm_resume origin
		still_moving
		# And without a suspend of its own.
		dm_load origin "$(origin_table "$dev")"
		dm_resume origin
	done
	still_moving
	stop_load
}

test_reload_of_the_snapshot_under_writes() {
	local i
	devices
	start_load --snap "$(path snap)="
	for ((i = 0; i < rounds; i++)); do
		dm_load snap "$(snap_table "$dev" "$cow" P 8)"
		dm_suspend snap
		dm_resume snap
		still_moving
		dm_load snap "$(snap_table "$dev" "$cow" P 8)"
		dm_resume snap
	done
	still_moving
	stop_load
	dm_remove snap origin
	sound "$cow" "$dev"
	snap_add_alone
}

# snap_add_alone - the snapshot can be activated again.
snap_add_alone() {
	snap_create snap "$dev" "$cow" P 8
	matches "$(status snap)" '^[0-9]+/65536 ' "the status when it was created again"
}

test_reload_read_only_and_read_write() {
	local i sum
	devices
	sum=$(digest "$(path snap)")
	start_load
	for ((i = 0; i < rounds; i++)); do
		dmsetup load --readonly "${PREFIX}snap" --table "$(snap_table "$dev" "$cow" P 8)"
		dm_resume snap
		still_moving
		dm_load snap "$(snap_table "$dev" "$cow" P 8)"
		dm_resume snap
	done
	still_moving
	stop_load
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_suspend_with_io_queued() {
	local i
	devices
	start_load --snap "$(path snap)="
	for ((i = 0; i < rounds; i++)); do
		dm_suspend snap
		dm_suspend origin
		dm_resume snap
		dm_resume origin
		still_moving
		dm_suspend origin --noflush --nolockfs
		dm_suspend snap --noflush --nolockfs
		dm_resume origin
		dm_resume snap
	done
	still_moving
	stop_load
}

test_suspend_of_a_transient_snapshot() {
	local i
	devices N
	start_load --snap "$(path snap)="
	for ((i = 0; i < rounds; i++)); do
		dm_suspend snap
		dm_resume snap
		still_moving
		dm_suspend origin
		dm_resume origin
	done
	stop_load
}

test_the_cow_device_suspended_under_writes() {
	local i
	devices
	linear_create under "$cow2"
	new_cow "$cow2"
	snap_add origin snap2 "$dev" "$(path under)" P 16
	start_load --snap "$(path snap)=" --snap "$(path snap2)="
	for ((i = 0; i < rounds; i++)); do
		dm_suspend under
		dm_resume under
		still_moving
	done
	stop_load
}

test_snapshots_become_full_one_after_the_other() {
	# Each overflow is one snapshot's own, while all the others go on.
	local i
	devices
	start_load --snap "$(path snap)="
	for ((i = 0; i < 4; i++)); do
		linear_create "small$i" "$cow2" $((256 << i)) 0
		new_cow "$(path "small$i")"
		snap_add origin "full$i" "$dev" "$(path "small$i")" "$( ((i % 2)) && echo N || echo P)" 8
		wait_for 60 status_is "full$i" Invalid || fail "full$i is not full: $(status "full$i")"
		still_moving
		((i % 2)) || dm_remove "full$i" "small$i"
	done
	stop_load
}

test_queued_writes_when_the_snapshot_is_removed() {
	# Writes to SNAP from a process that is killed, and the removal at once.
	local i pid
	devices
	for ((i = 0; i < rounds; i++)); do
		dd if=/dev/zero of="$(path snap)" bs=256K count=64 oflag=direct status=none &
		pid=$!
		dd if=/dev/zero of="$(path origin)" bs=256K count=64 oflag=direct status=none
		kill "$pid" 2>/dev/null || true
		wait "$pid" || true
		wait_for 10 dmsetup remove "${PREFIX}snap"
		sound "$cow" "$dev"
		new_cow "$cow"
		snap_add origin snap "$dev" "$cow" P 8
	done
}

test_eight_snapshots_and_a_fast_writer() {
	# Copies in flight are bounded: the slow COW devices must not fill the memory.
	local i start low=999999999 now cows=() pid
	dev=$(blk_create 32)
	origin_create origin "$dev"
	for i in 1 2 3 4 5 6 7 8; do
		cows+=("$(blk_create 48 irqmode=2 completion_nsec=4000000 hw_queue_depth=16)")
		snap_add origin "snap$i" "$dev" "${cows[i - 1]}" P 8
	done
	start=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
	dd if=/dev/zero of="$(path origin)" bs=1M count=$((8 * LOAD > 32 ? 32 : 8 * LOAD)) oflag=direct status=none &
	pid=$!
	while kill -0 "$pid" 2>/dev/null; do
		now=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)
		((now > low)) || low=$now
		sleep 0.2
	done
	wait "$pid"
	note "memory in use at most: $(((start - low) / 1024)) MiB more, with the contents of the devices"
	# 8 snapshots of 8 MiB are 64 MiB of data on the memory-backed devices; what
	# is in flight must not be many times as much.
	at_most $(((start - low) / 1024)) 400 "MiB"
	for i in 1 2 3 4 5 6 7 8; do
		matches "$(status "snap$i")" '^[0-9]+/98304 ' "the status of snap$i"
	done
}

test_blocks_of_cow_that_are_larger_than_chunks_of_another() {
	# zram writes whole pages, whatever part of one it is given. So where one copy is for
	# both, its data must lie in pages as it does in blocks of COW.
	local number zram sum sum2
	modprobe zram 2>/dev/null || skip "no zram here"
	number=$(cat /sys/class/zram-control/hot_add)
	zram=/dev/zram$number
	echo 16M >"/sys/block/zram$number/disksize"
	dev=$(blk_create 8) cow=$(blk_create 8)
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$zram" P 8
	sum=$(digest "$(path snap)")
	write_sectors origin 0 8
	snap_add origin snap2 "$dev" "$cow" P 4
	sum2=$(digest "$(path snap2)")
	write_sectors origin 0 4
	write_sectors origin 4 12
	equal "$(digest "$(path snap)")" "$sum" "SNAP, with blocks of 4096 bytes"
	equal "$(digest "$(path snap2)")" "$sum2" "SNAP2, with chunks of 2048 bytes"
	dm_remove snap2 snap origin
	echo "$number" >/sys/class/zram-control/hot_remove
}

test_blocks_of_cow_that_are_larger_than_pages() {
	# What is copied for both need not end with such a block.
	on_c && skip "the C target takes no such device"
	dev=$(blk_create 8) cow=$(blk_create 16)
	cow2=$(blk_create 16 blocksize=16384 2>/dev/null) || true
	[ "$(cat "/sys/block/${cow2##*/}/queue/logical_block_size")" = 16384 ] ||
		skip "no blocks of 16384 bytes here"
	pattern "$dev" 1
	sum=$(digest "$dev")
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	snap_add origin snap2 "$dev" "$cow2" P 32
	write_sectors origin 32 8
	write_sectors origin 24 24
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
	equal "$(digest "$(path snap2)")" "$sum" "SNAP2, with blocks of 16384 bytes"
}

# origin_on_disk MIB - ORIGIN on a DEV that stands on a disk, so that its table can be changed;
# what they show is in sum.
origin_on_disk() {
	disk=$(blk_create "$1")
	pattern "$disk" 1
	sum=$(digest "$disk")
	linear_create dev "$disk"
	dev=$(path dev)
	origin_create origin "$dev"
}

test_a_bad_sector_that_one_snapshot_needs() {
	# One read serves both, but only one of them needs what can't be read.
	local bad=1024
	cow=$(blk_create 16) cow2=$(blk_create 24)
	origin_on_disk 16
	snap_add origin snap "$dev" "$cow" P 8
	snap_add origin snap2 "$dev" "$cow2" P 2048
	dm_load dev "$(broken_table "$disk" "$bad" 8)"
	dm_resume dev
	write_sectors origin 0 8
	write_sectors origin 2048 8
	equal "$(status snap2)" Invalid "the status of the one that needs it"
	matches "$(status snap)" '^[0-9]+/32768 ' "the status of the other one"
	dm_load dev "$(linear_table "$disk")"
	dm_resume dev
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_a_bad_sector_that_only_a_full_one_would_need() {
	# For its blocks, more is read than the other one needs.
	cow=$(blk_create 8)
	linear_create cow2 "$(blk_create 8 blocksize=4096)" 24
	origin_on_disk 8
	snap_add origin snap "$dev" "$cow" P 2
	snap_add origin snap2 "$dev" "$(path cow2)" P 8
	write_sectors origin 1024 8
	dm_load dev "$(broken_table "$disk" 0 2)"
	dm_resume dev
	write_sectors origin 6 2
	equal "$(status snap2)" Invalid "the status of the one that is full"
	matches "$(status snap)" '^[0-9]+/16384 ' "the status of the other one"
	dm_load dev "$(linear_table "$disk")"
	dm_resume dev
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_a_bad_sector_among_many_runs() {
	# As many runs as one copy can save, and one more: each is judged by itself.
	local i
	cow=$(blk_create 16) cow2=$(blk_create 16)
	origin_on_disk 16
	snap_add origin snap "$dev" "$cow" P 8
	snap_add origin snap2 "$dev" "$cow2" P 8
	for ((i = 0; i < 64; i++)); do
		write_sectors snap $((16 * i + 8)) 8
	done
	write_sectors snap2 8 1016
	sum=$(digest "$(path snap2)")
	dm_load dev "$(broken_table "$disk" 1008 8)"
	dm_resume dev
	write_sectors origin 0 1024 || true
	dm_load dev "$(linear_table "$disk")"
	dm_resume dev
	equal "$(status snap)" Invalid "the status of the one that needs it"
	equal "$(digest "$(path snap2)")" "$sum" "the other SNAP"
}

test_a_snapshot_joins_while_another_leaves() {
	local i
	# Large enough for all of the module's slots; which the one that joins must know.
	dev=$(blk_create 256) cow=$(blk_create 4) cow2=$(blk_create 4)
	origin_create origin "$dev"
	for ((i = 0; i < 5 * LOAD; i++)); do
		snap_create snap "$dev" "$cow" N 8
		dmsetup create "${PREFIX}snap2" --notable
		dm_load snap2 "$(snap_table "$dev" "$cow2" N 8)"
		dm_remove snap &
		dm_resume snap2
		wait $! || fail "SNAP cannot be removed"
		dd if="$(path snap2)" of=/dev/null bs=1M iflag=direct status=none ||
			fail "SNAP2 cannot be read, in round $i"
		dm_remove snap2
	done
}

run_tests "$@"
