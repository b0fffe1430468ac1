#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Load, create, status, suspend, resume, remove, unload.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices - makes DEV of 16 MiB and COW of 32.
devices() {
	dev=$(blk_create 16)
	cow=$(blk_create 32)
}

# write_chunk NAME CHUNK - writes one 16K chunk through a device.
write_chunk() {
	dd if=/dev/urandom of="$(path "$1")" bs=16K count=1 seek="$2" oflag=direct status=none
}

# deps NAME - prints the names of the devices that a device depends on.
deps() {
	dmsetup deps -o blkdevname "$PREFIX$1" | grep -o '([^)]*)' | tr -d '()' | sort | tr '\n' ' '
}

# one_cycle STORE - creates both devices, uses them, and removes them.
one_cycle() {
	local store=$1 before
	devices
	pattern "$dev" 1
	before=$(digest "$dev")
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "$store" 32
	write_chunk origin 3
	write_chunk origin 700
	equal "$(digest "$(path snap)")" "$before" "what SNAP shows"
	equal "$(digest "$(path origin)")" "$(digest "$dev")" "what ORIGIN shows"
	dm_remove snap origin
	exclusive "$dev"
	exclusive "$cow"
}

test_persistent_snapshot() { one_cycle P; }

test_persistent_snapshot_with_overflow() { one_cycle PO; }

test_transient_snapshot() { one_cycle N; }

test_targets_and_versions() {
	have_target "$T_SNAP"
	have_target "$T_ORIGIN"
	have_target "$T_MERGE"
	matches "$(dmsetup targets | grep "^$T_SNAP ")" 'v[0-9]+\.[0-9]+\.[0-9]+$' "the version"
	matches "$(dmsetup targets | grep "^$T_ORIGIN ")" 'v[0-9]+\.[0-9]+\.[0-9]+$' "the version"
	matches "$(dmsetup targets | grep "^$T_MERGE ")" 'v[0-9]+\.[0-9]+\.[0-9]+$' "the version"
}

test_tables_are_told_back() {
	local store numbers s
	devices
	numbers="$(lsblk -dno MAJ:MIN "$dev" | tr -d ' ') $(lsblk -dno MAJ:MIN "$cow" | tr -d ' ')"
	s=$(sectors "$dev")
	origin_create origin "$dev"
	equal "$(table origin)" "0 $s $T_ORIGIN ${numbers% *}" "the origin's table"
	equal "$(dmsetup status "${PREFIX}origin")" "0 $s $T_ORIGIN " "the origin's status"
	for store in P PO N; do
		new_cow "$cow"
		snap_add origin snap "$dev" "$cow" "$store" 32
		equal "$(table snap)" "0 $s $T_SNAP $numbers $store 32" "the table"
		dm_remove snap
	done
}

test_store_type_in_small_letters() {
	# The C target takes both, and tells capitals back.
	local store
	devices
	for store in p po n; do
		new_cow "$cow"
		snap_create snap "$dev" "$cow" "$store" 32
		matches "$(table snap)" " ${store^^} 32\$" "the table"
		dm_remove snap
	done
}

test_feature_arguments() {
	local features all
	devices
	all=("discard_zeroes_cow" "discard_zeroes_cow discard_passdown_origin")
	# The features of these targets alone: what they do is shown in room.sh.
	on_c || all+=("queue_if_no_space" "error_if_no_space" "low_water_mark:100"
		"discard_zeroes_cow discard_passdown_origin queue_if_no_space low_water_mark:5")
	for features in "${all[@]}"; do
		new_cow "$cow"
		# shellcheck disable=SC2086
		snap_create snap "$dev" "$cow" P 32 $features
		matches "$(table snap)" " P 32 $(wc -w <<<"$features") $features\$" "the table"
		equal "$(status snap)" "64/65536 64" "the status"
		# What a device tells of itself makes the same device again.
		dm_load snap "$(table snap)"
		dm_resume snap
		matches "$(table snap)" " P 32 $(wc -w <<<"$features") $features\$" "the table of a reload"
		dm_remove snap
	done
}

test_status_figures() {
	local store want after=()
	devices
	for store in P PO N; do
		new_cow "$cow"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" "$store" 32
		# A new persistent store has its header and its first area.
		if [ "$store" = N ]; then want=0 after=(32 64); else want=64 after=(96 128); fi
		equal "$(status snap)" "$want/65536 $want" "a new $store snapshot"
		write_chunk origin 5
		equal "$(status snap)" "${after[0]}/65536 $want" "$store after a write to ORIGIN"
		write_chunk origin 5
		equal "$(status snap)" "${after[0]}/65536 $want" "$store after the same write again"
		write_chunk snap 9
		equal "$(status snap)" "${after[1]}/65536 $want" "$store after a write to SNAP"
		dm_remove snap origin
	done
}

# script_of_statuses - a script of actions; prints the status after each.
script_of_statuses() {
	local store chunk
	while read -r store chunk; do
		new_cow "$cow"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" "$store" "$chunk"
		echo "$store $chunk new: $(status snap)"
		write_chunk origin 100
		echo "$store $chunk written: $(status snap)"
		dd if=/dev/urandom of="$(path snap)" bs=512 count=3 seek=70 oflag=direct status=none
		echo "$store $chunk snap written: $(status snap)"
		dm_suspend snap
		echo "$store $chunk suspended: $(status snap)"
		dm_resume snap
		dd if=/dev/urandom of="$(path origin)" bs=1M count=6 oflag=direct status=none
		echo "$store $chunk much written: $(status snap)"
		dm_remove snap
		snap_add origin snap "$dev" "$cow" "$store" "$chunk"
		echo "$store $chunk reopened: $(status snap)"
		dm_remove snap origin
	done <<<$'P 8\nPO 128\nN 8'
}

test_status_texts_as_of_the_c_target() {
	on_c && skip "this compares with the C target"
	devices
	use_targets c
	script_of_statuses >"$TMP/c"
	use_targets rs
	script_of_statuses >"$TMP/rs"
	diff "$TMP/c" "$TMP/rs" || fail "the texts differ (< C, > here)"
}

test_dependencies() {
	devices
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 32
	equal "$(deps origin)" "$(basename "$dev") " "what ORIGIN depends on"
	equal "$(deps snap)" "$(printf '%s\n' "${dev##*/}" "${cow##*/}" | sort | tr '\n' ' ')" \
		"what SNAP depends on"
	refused exclusive "$dev"
	refused exclusive "$cow"
}

test_sizes_and_block_limits() {
	devices
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 32
	equal "$(sectors "$(path snap)")" 32768 "the size of SNAP"
	equal "$(blockdev --getss "$(path snap)")" 512 "the logical block size of SNAP"
	equal "$(blockdev --getss "$(path origin)")" 512 "the logical block size of ORIGIN"
	dm_remove snap origin
	dev=$(blk_create 16 blocksize=4096)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" N 32
	equal "$(blockdev --getss "$(path snap)")" 4096 "the logical block size of SNAP on 4K DEV"
}

test_a_line_that_begins_later() {
	local half
	# The sectors of a table are those of DEV: nothing is shifted.
	on_c && skip "the C target does not show the old data there"
	dev=$(blk_create 8) cow=$(blk_create 16) cow2=$(blk_create 16)
	pattern "$dev" 1
	sum=$(digest "$dev")
	half=$(($(sectors "$dev") / 2))
	origin_create origin "$dev"
	dm_create snap "0 $half $T_SNAP $dev $cow P 8
$half $half $T_SNAP $dev $cow2 P 8"
	pattern "$(path origin)" 2
	equal "$(digest "$(path snap)")" "$sum" "SNAP, of two lines"
}

# beside_a_line_on_dev TABLE [OPTION] - a table of SNAP and of another line with DEV.
beside_a_line_on_dev() {
	dm_create snap "$1" ${2:+"$2"}
	equal "$(digest "$(path snap)")" "$sum" "a table of SNAP and DEV"
	dm_remove snap
	exclusive "$dev"
}

test_lines_that_have_the_same_dev() {
	local half snap linear
	# device-mapper opens DEV anew where a line asks for more than those before it.
	on_c && skip "device-mapper frees what the C target has open"
	dev=$(blk_create 8) cow=$(blk_create 16)
	pattern "$dev" 1
	sum=$(digest "$dev")
	half=$(($(sectors "$dev") / 2))
	snap="$half $T_SNAP $dev $cow P 8" linear="$half linear $dev"
	beside_a_line_on_dev "0 $snap
$half $linear $half"
	beside_a_line_on_dev "0 $linear 0
$half $snap"
	beside_a_line_on_dev "0 $snap
$half $linear $half" --readonly
	beside_a_line_on_dev "0 $linear 0
$half $snap" --readonly
}

test_an_origin_that_is_longer_than_its_device() {
	# A write that reaches across the end of DEV fails there; what is before it is saved.
	on_c && skip "the C target gives the snapshot up"
	dev=$(blk_create 12) cow=$(blk_create 16)
	pattern "$dev" 1
	linear_create dev "$dev"
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$cow" P 8
	sum=$(part "$(path snap)" 9)
	dm_load dev "$(linear_table "$dev" 21504)"
	dm_resume dev
	sequential write "$(path origin)" 1 19968 &&
		fail "a write beyond the end of DEV did not fail"
	equal "$(part "$(path snap)" 9)" "$sum" "SNAP before the end of DEV"
}

test_a_device_that_was_smaller_for_a_while() {
	# A chunk that has its first part there only can't be saved. Another snapshot, which has
	# smaller chunks, is not concerned.
	on_c && skip "the C target takes the chunk as saved"
	dev=$(blk_create 12) cow=$(blk_create 16) cow2=$(blk_create 16)
	pattern "$dev" 1
	linear_create dev "$dev"
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$cow" P 16
	snap_add origin snap2 "$(path dev)" "$cow2" P 8
	sum=$(digest "$(path snap2)")
	dm_load dev "$(linear_table "$dev" 20008)"
	dm_resume dev
	write_sectors origin 20000 8
	dm_load dev "$(linear_table "$dev")"
	dm_resume dev
	[ "$(status snap)" = Invalid ] ||
		equal "$(part "$(path snap)" 9)" "$(part "$dev" 9)" "SNAP behind that end"
	equal "$(digest "$(path snap2)")" "$sum" "the other SNAP"
}

# refused_line SECTOR BEFORE AFTER - SNAP, of the table BEFORE, is given the table AFTER, of
# which a line can't be resumed, and then its own again. What it guards begins at SECTOR.
refused_line() {
	local sum
	dm_create snap "$2"
	sum=$(digest "$(path snap)")
	dm_load snap "$3"
	refused dm_resume snap
	sequential write "$(path origin)" 1 "$1"
	dm_load snap "$2"
	dm_resume snap
	sequential write "$(path origin)" 1 $(($1 + 2048))
	equal "$(digest "$(path snap)")" "$sum" "SNAP from sector $1 on"
	dm_remove snap
}

test_one_of_two_lines_that_is_refused() {
	# device-mapper gives the table before up, although the next one was not resumed.
	local half snap large
	on_c && skip "the C target does not refuse it"
	dev=$(blk_create 16) cow=$(blk_create 32) other=$(blk_create 32)
	pattern "$dev" 1
	half=$(($(sectors "$dev") / 2))
	snap="$half $T_SNAP $dev $cow P 8"
	# Chunks that need larger spans than those in use.
	large="$half $T_SNAP $dev $other P 4096"
	origin_create origin "$dev"
	refused_line "$half" "0 $half linear $dev 0
$half $snap" "0 $large
$half $snap"
	new_cow "$cow"
	new_cow "$other"
	refused_line 0 "0 $snap
$half $half linear $dev $half" "0 $snap
$half $large"
}

test_a_merge_that_is_longer_than_its_device() {
	# The same, by the device of a merge. The other snapshot is not concerned.
	on_c && skip "the C target gives the snapshot up"
	dev=$(blk_create 12) cow=$(blk_create 16) cow2=$(blk_create 16)
	pattern "$dev" 1
	linear_create dev "$dev"
	origin_create origin "$(path dev)"
	snap_add origin snap "$(path dev)" "$cow" P 8
	snap_add origin snap2 "$(path dev)" "$cow2" P 8
	dm_suspend snap
	merge_reload origin "$(path dev)" "$cow" P 8
	wait_merged origin 30
	dm_load dev "$(linear_table "$dev" 21504)"
	dm_resume dev
	sequential write "$(path origin)" 1 21504 &&
		fail "a write beyond the end of DEV did not fail"
	sum=$(part "$(path snap2)" 9)
	sequential write "$(path origin)" 1 19968 &&
		fail "a write across the end of DEV did not fail"
	equal "$(part "$(path snap2)" 9)" "$sum" "SNAP2 before the end of DEV"
}

test_suspend_and_resume() {
	local before name
	devices
	pattern "$dev" 2
	before=$(digest "$dev")
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 32
	for name in origin snap; do
		write_chunk "$name" 1
		dm_suspend "$name"
		matches "$(dmsetup info "$PREFIX$name")" 'State: *SUSPENDED' "the state"
		# A write waits for the resume, and is then done.
		write_chunk "$name" 2 &
		wait_for 10 pgrep -g 0 -x dd >/dev/null || fail "no writer"
		dm_resume "$name"
		wait $!
	done
	dm_suspend snap --noflush
	dm_resume snap
	equal "$(digest "$(path snap)" 96)" "$(digest "$(path origin)" 96)" "SNAP after what was written"
	dm_remove snap
	new_cow "$cow"
	snap_add origin snap "$dev" "$cow" P 32
	equal "$(digest "$(path snap)")" "$(digest "$(path origin)")" "a new SNAP"
	[ "$before" != "$(digest "$dev")" ]
}

test_remove_in_every_order() {
	local order
	devices
	for order in "snap origin" "origin snap"; do
		new_cow "$cow"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" P 32
		write_chunk origin 4
		# shellcheck disable=SC2086
		dm_remove $order
		exclusive "$dev"
		exclusive "$cow"
	done
	# Suspended devices can be removed as well.
	for order in "snap origin" "origin snap"; do
		new_cow "$cow"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" P 32
		dm_suspend origin
		dm_suspend snap
		# shellcheck disable=SC2086
		dm_remove $order
	done
}

test_a_table_that_is_loaded_and_cleared() {
	devices
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 32
	dm_load snap "$(snap_table "$dev" "$cow" P 32)"
	dmsetup clear "${PREFIX}snap"
	dm_load origin "$(origin_table "$dev")"
	dmsetup clear "${PREFIX}origin"
	write_chunk origin 6
	equal "$(status snap)" "96/65536 64" "the status"
}

test_reload_keeps_the_snapshot() {
	local before store
	devices
	for store in P N; do
		new_cow "$cow"
		pattern "$dev" 3
		before=$(digest "$dev")
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" "$store" 32
		write_chunk origin 7
		dm_load snap "$(snap_table "$dev" "$cow" "$store" 32)"
		if ! dm_resume snap; then
			[ "$store" = N ] || fail "a reload is refused"
			# The C target cannot hand over a transient store: nor need it.
			note "a transient snapshot is not reloaded"
		fi
		write_chunk origin 8
		[ "$store" = N ] || equal "$(digest "$(path snap)")" "$before" "what SNAP shows"
		dm_remove snap origin
	done
}

test_an_origin_without_snapshots() {
	local before
	devices
	# On such a device each bio counts as one.
	linear_create below "$dev"
	dev=$(path below)
	pattern "$dev" 4
	before=$(digest "$dev")
	origin_create origin "$dev"
	equal "$(digest "$(path origin)")" "$before" "what ORIGIN shows"
	# Without snapshots nothing has to be split.
	io_mark "$dev"
	sequential write "$(path origin)" 4
	at_most "$(io_since "$dev" writes)" 4 "writes for 4 MiB"
	pattern "$(path origin)" 4
	equal "$(digest "$dev")" "$before" "DEV"
}

test_events_and_uevents_of_status() {
	# Waiting for an event must end when the snapshot becomes invalid.
	local pid
	devices
	linear_create small "$cow" 512
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$(path small)" P 8
	dmsetup wait "${PREFIX}snap" &
	pid=$!
	dd if=/dev/urandom of="$(path origin)" bs=1M count=1 oflag=direct status=none
	equal "$(status snap)" Invalid "the status"
	wait_for 10 eval "! kill -0 $pid 2>/dev/null" || fail "dmsetup wait goes on"
}

test_unload_leaves_no_trace() {
	local module=dm_snap_rs round before
	on_c && module=dm_snapshot
	devices
	unload_targets
	before=$(slabs)
	for round in 1 2 3; do
		log_mark load
		if on_c; then load_c; else load_rs; fi
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" P 32
		write_chunk origin 1
		write_chunk snap 2
		refused unload_targets
		dm_remove snap origin
		unload_targets
		[ ! -d "/sys/module/$module" ] || fail "$module is still there"
		refused have_target "$T_SNAP"
		say "round $round: $(log_since load)"
		refused log_has load 'Objects remaining|still|leak|busy|slab'
		new_cow "$cow"
	done
	equal "$(slabs)" "$before" "the slab caches"
	# Nor has it a thread left: that which rescues its workqueue. The kernel's own
	# workers go by the name of what they last did, and say nothing.
	refused pgrep 'R-dm-snap'
	if on_c; then load_c; else load_rs; fi
}

# slabs - prints the names of the slab caches that belong to snapshots.
slabs() {
	awk '/snap/ { print $1 }' /proc/slabinfo
	find /sys/kernel/slab -maxdepth 1 -name '*snap*' 2>/dev/null
}

run_tests "$@"
