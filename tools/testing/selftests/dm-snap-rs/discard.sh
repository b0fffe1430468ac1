#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Discards: what of them reaches which device, and that no snapshot ever loses old
# data by one.  The C target takes them on snapshots alone, and by whole chunks.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

ZEROES=discard_zeroes_cow
BOTH=(discard_zeroes_cow discard_passdown_origin)

# devices - DEV of 16 MiB with a pattern, which shows zeroes
# where it was discarded, and COW, as a device whose table can be changed.
devices() {
	dev=$(blk_create 16 discard=1)
	space=$(blk_create 40)
	linear_create cow "$space"
	cow=$(path cow)
	pattern "$dev" 1
	origin_create origin "$dev"
}

# discard NAME OFFSET COUNT [OPTION]... - discards sectors of a device.
discard() {
	blkdiscard -o $(($2 * 512)) -l $(($3 * 512)) "${@:4}" "$(path "$1")"
}

# remember - what DEV shows now, is what shows compares with.
remember() {
	dd if="$dev" of="$TMP/old" bs=1M iflag=direct status=none
}

# shows NAMES PART... - fails unless each of these devices shows, from its first
# sector on, parts of so many sectors: +N as DEV was, -N zeroes, =N whatever it be.
# The last may be without a number: all the rest.
shows() {
	local names=$1 name devices=()
	shift
	for name in $names; do
		devices+=("$(path "$name")")
	done
	model_py parts "$TMP/old" " $*" "${devices[@]}"
}

# add NAME STORE CHUNK [FEATURE]... - adds a snapshot on COW.
add() {
	snap_add origin "$1" "$dev" "$cow" "${@:2}"
}

# ---------------------------------------------------------------------------
# Discards of SNAP

# whole_chunks STORE CHUNK - a discard of saved chunks, of chunks that SNAP has
# written, and of others between them.
whole_chunks() {
	local c=$2 before list
	devices
	remember
	add snap "$1" "$c" "$ZEROES"
	write_sectors origin 0 $((2 * c))
	write_sectors snap $((4 * c)) $((2 * c))
	before=$(status snap)
	discard snap 0 $((8 * c))
	shows snap -$((2 * c)) +$((2 * c)) -$((2 * c)) +
	equal "$(status snap)" "$before" "the status: no chunk more, and none less"
	# A chunk keeps its place: what is written next needs no other.
	write_sectors snap $((4 * c)) "$c"
	equal "$(status snap)" "$before" "the status after another write"
	shows snap -$((2 * c)) +$((2 * c)) ="$c" -"$c" +
	shows origin =$((2 * c)) +
	[ "$1" = N ] && return
	list=$(digest "$(path snap)")
	dm_remove snap
	add snap "$1" "$c" "$ZEROES"
	equal "$(digest "$(path snap)")" "$list" "SNAP, created again"
	equal "$(status snap)" "$before" "the status, created again"
}

test_zeroes_of_p_with_4k_chunks() { whole_chunks P 8; }

test_zeroes_of_po_with_64k_chunks() { whole_chunks PO 128; }

test_zeroes_of_p_with_1m_chunks() { whole_chunks P 2048; }

test_zeroes_of_n_with_64k_chunks() { whole_chunks N 128; }

test_parts_of_chunks() {
	local store
	on_c && skip "the C target sends a discard of a part of a chunk to the COW device"
	for store in P N; do
		devices
		remember
		add snap "$store" 128 "$ZEROES"
		write_sectors origin 128 128
		discard snap 130 3
		shows snap +130 -3 +
		# From the middle of an unchanged chunk over a saved one into the next.
		discard snap 100 200
		shows snap +128 -128 +
		matches "$(status snap)" '^(128|384)/' "the status: one chunk is saved"
		dm_remove snap origin cow
	done
}

test_all_of_a_device_at_once() {
	# In one discard, by which the devices beneath are not bothered.
	local i parts=()
	devices
	remember
	add snap P 8 "$ZEROES"
	for ((i = 0; i < 32; i += 3)); do
		write_sectors origin $((i * 1024)) 64
		write_sectors snap $((i * 1024 + 512)) 8
	done
	io_mark "$dev"
	discard snap 0 32768
	equal "$(io_since "$dev" writes) $(io_since "$dev" discards)" "0 0" "writes and discards of DEV"
	for ((i = 0; i < 32; i += 3)); do
		parts+=(-64 +448 -8 +2552)
	done
	# The last of them begins 2 MiB before the end.
	shows snap "${parts[@]:0:${#parts[@]}-1}" +
}

test_the_limits_of_snap() {
	local q
	devices
	add snap P 32
	q=$(sysfs "$(path snap)")/queue
	equal "$(<"$q/discard_max_bytes")" 0 "the largest discard, without the feature"
	dm_remove snap
	add snap P 32 "$ZEROES"
	q=$(sysfs "$(path snap)")/queue
	on_c && return
	equal "$(<"$q/discard_granularity")" 16384 "the granularity"
	equal "$(<"$q/discard_max_bytes")" $((1 << 20)) "the largest discard"
}

test_refused_without_the_feature() {
	local sum
	devices
	sum=$(digest "$dev")
	add snap P 8
	write_sectors origin 0 64
	refused discard snap 0 64
	equal "$(digest "$(path snap)")" "$sum" "SNAP"
}

test_snap_on_devices_that_take_none() {
	# What is zeroed is zeroed by a write; what would be passed on, is not.
	dev=$(blk_create 16)
	cow=$(blk_create 40)
	pattern "$dev" 1
	remember
	origin_create origin "$dev"
	add snap P 8 "${BOTH[@]}"
	write_sectors origin 0 64
	discard snap 0 128
	shows snap -64 +
	shows origin =64 +
}

# passed_down STORE CHUNK - DEV gets the discard as well, also of unchanged chunks.
passed_down() {
	local c=$2
	devices
	remember
	add snap "$1" "$c" "${BOTH[@]}"
	write_sectors origin 0 $((2 * c))
	write_sectors snap $((2 * c)) $((2 * c))
	io_mark "$dev"
	discard snap 0 $((6 * c))
	equal "$(io_since "$dev" discard_sectors)" $((6 * c)) "the discarded sectors of DEV"
	shows "snap origin" -$((6 * c)) +
}

test_passed_down_of_p() { passed_down P 8; }

test_passed_down_of_n_with_64k_chunks() { passed_down N 128; }

test_not_passed_down_without_the_feature() {
	devices
	remember
	add snap P 8 "$ZEROES"
	write_sectors snap 0 64
	io_mark "$dev"
	discard snap 0 128
	equal "$(io_since "$dev" discards)" 0 "the discards of DEV"
	shows origin +
}

test_an_invalid_snapshot_takes_none() {
	devices
	dm_remove cow
	linear_create cow "$space" 512
	add snap P 8 "$ZEROES"
	write_sectors origin 0 2048
	equal "$(status snap)" Invalid "the status"
	refused discard snap 0 64
}

# still_runs PID WHAT - fails when this process ends within a second.
still_runs() {
	sleep 1
	kill -0 "$1" 2>/dev/null || fail "$2 has ended too early"
}

# in_flight STORE NAME CHUNKS - a discard of chunks that are just being saved, by a
# write through this device, waits for that and zeroes them then.
in_flight() {
	local writer discarder
	devices
	remember
	add snap "$1" 8 "$ZEROES"
	dm_suspend cow
	write_sectors "$2" 0 "$3" &
	writer=$!
	still_runs "$writer" "the write"
	discard snap 0 "$3" &
	discarder=$!
	still_runs "$discarder" "the discard"
	dm_resume cow
	wait "$writer"
	wait "$discarder"
	shows snap -"$3" +
}

test_a_discard_waits_for_a_copy_of_p() { in_flight P origin 64; }

test_a_discard_waits_for_a_write_of_snap_to_p() { in_flight P snap 64; }

test_a_discard_waits_for_a_write_of_snap_to_n() { in_flight N snap 64; }

# model STORE CHUNK [OPTION]... - random I/O and discards of both sides.
model() {
	local store=$1 chunk=$2 seed=$RANDOM
	note "seed $seed"
	devices
	add snap "$store" "$chunk" "$ZEROES"
	model_py run --seed "$seed" --ops $((LOAD * 800)) --jobs 6 \
		--max-io 131072 --origin "$(path origin)" --snap "$(path snap)=" \
		--discard "$(path snap):$chunk" "${@:3}"
}

# on_both_sides - the options with which ORIGIN is discarded too.
on_both_sides() {
	on_c || echo --discard "/dev/mapper/${PREFIX}origin:1"
}

# shellcheck disable=SC2046
test_random_discards_of_p() { model P 8 $(on_both_sides); }

# shellcheck disable=SC2046
test_random_discards_of_n() { model N 32 $(on_both_sides); }

# shellcheck disable=SC2046
test_random_discards_of_po_with_1m_chunks() { model PO 2048 $(on_both_sides); }

# ---------------------------------------------------------------------------
# Discards of ORIGIN

# many_snapshots - SNAPs of ORIGIN with different chunks and stores; their names
# are in ALL.
many_snapshots() {
	local name spec
	ALL=()
	for spec in "a P 8" "b PO 128" "c P 2048" "d N 8" "e N 128"; do
		name=${spec%% *}
		cow=$(blk_create 40)
		# shellcheck disable=SC2086
		add "$name" ${spec#* }
		ALL+=("$name")
	done
}

test_discards_of_origin() {
	local range at count
	on_c && skip "the C target takes none"
	devices
	remember
	many_snapshots
	# Within a chunk, within a span, over spans, at an odd place, the end.
	for range in "3 2" "64 1024" "2048 2048" "5001 9003" "30000 2768"; do
		read -r at count <<<"$range"
		io_mark "$dev"
		discard origin "$at" "$count"
		equal "$(io_since "$dev" discard_sectors)" "$count" "the discarded sectors of DEV"
		shows "${ALL[*]}" +
	done
	shows origin +3 -2 +59 -1024 +960 -2048 +905 -9003 +15996 -
	discard origin 0 32768
	shows origin -
	shows "${ALL[*]}" +
}

test_zeroes_written_to_origin() {
	# blkdiscard -z.  null_blk takes no write-zeroes, but a loop device does.
	local range at count
	modprobe loop || skip "no loop devices here"
	truncate -s 16M "$TMP/loop"
	dev=$(losetup --show -f --direct-io=off "$TMP/loop")
	pattern "$dev" 1
	remember
	origin_create origin "$dev"
	many_snapshots
	on_c || (($(<"$(sysfs "$(path origin)")/queue/write_zeroes_max_bytes") > 0)) ||
		fail "ORIGIN takes no write-zeroes though DEV does"
	for range in "3 2" "64 1024" "5001 9003"; do
		read -r at count <<<"$range"
		discard origin "$at" "$count" -z
		shows "${ALL[*]}" +
	done
	shows origin +3 -2 +59 -1024 +3913 -9003 +
	discard origin 0 32768 -z
	shows origin -
	shows "${ALL[*]}" +
}

test_origin_without_snapshots() {
	# All goes down as it is.
	on_c && skip "the C target takes none"
	devices
	blk_exact "$dev"
	io_mark "$dev"
	discard origin 5 32000
	equal "$(io_since "$dev" discards)" 1 "the discards of DEV"
	remember
	shows origin =5 -32000 =763
}

test_origin_on_a_device_that_takes_none() {
	dev=$(blk_create 16)
	cow=$(blk_create 40)
	pattern "$dev" 1
	remember
	origin_create origin "$dev"
	add snap P 8
	refused discard origin 0 1024
	shows "origin snap" +
	equal "$(status snap | cut -d / -f 1)" 16 "the sectors of COW in use"
}

test_fstrim() {
	local before
	on_c && skip "the C target takes none"
	dev=$(blk_create 64 discard=1)
	cow=$(blk_create 80)
	mkfs.ext4 -q -F -E nodiscard "$dev"
	origin_create origin "$dev"
	mkdir "$TMP/origin" "$TMP/snap"
	mount "$(path origin)" "$TMP/origin"
	dd if=/dev/urandom of="$TMP/origin/old" bs=1M count=20 status=none
	echo kept >"$TMP/origin/kept"
	add snap P 8
	before=$(digest "$(path snap)")
	mount -o ro "$(path snap)" "$TMP/snap"
	equal "$(md5sum <"$TMP/snap/old")" "$(md5sum <"$TMP/origin/old")" "the file in SNAP"
	rm "$TMP/origin/old"
	sync "$TMP/origin"
	io_mark "$dev"
	fstrim -v "$TMP/origin"
	(($(io_since "$dev" discard_sectors) >= 20 * 2048)) || fail "DEV was not trimmed"
	equal "$(digest "$(path snap)")" "$before" "SNAP"
	umount "$TMP/origin" "$TMP/snap"
	e2fsck -fn "$(path origin)"
	dm_remove origin
	e2fsck -fn "$dev"
}

test_a_discard_beyond_the_threshold() {
	# Of much more than may be copied at a time: it waits in line.
	local parameter=/sys/module/dm_snap_rs/parameters/snapshot_cow_threshold before
	on_c && skip "the C target takes none"
	devices
	remember
	many_snapshots
	before=$(<"$parameter")
	echo 8 >"$parameter"
	discard origin 0 32768 || fail "refused"
	echo "$before" >"$parameter"
	shows origin -
	shows "${ALL[*]}" +
}

# ---------------------------------------------------------------------------
# Discards of a merge

test_discards_of_a_merge() {
	# What is still to be merged stays, though a discard may do as it likes; so the
	# data that comes back is never lost.  All else is discarded.
	local disk count=3000 last first hole text
	on_c && skip "the C target takes none"
	disk=$(blk_create 24 cache_size=1 discard=1)
	dm_create dev "0 $(sectors "$disk") delay $disk 0 0 $disk 0 0 $disk 0 3000"
	dev=$(path dev)
	# A merge takes discards where both devices do.
	cow=$(blk_create 32 discard=1)
	pattern "$dev" 1
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count "$count" --seed 5
	snap_create snap "$dev" "$cow" P 8
	text=$(cow_py list "$cow")
	# The last record is merged first.
	first=$(tail -n 1 <<<"$text")
	first=${first% *} last=${text%% *}
	hole=$(cut -d ' ' -f 1 <<<"$text" | sort -n | awk '{ if ($1 != n) { print n; exit } n++ }')
	[ -n "$hole" ] || fail "all is in use"
	SUM=$(digest "$(path snap)" $((last * 8)) 8)
	dm_remove snap
	remember
	merge_create origin "$dev" "$cow" P 8
	discard origin $((last * 8)) 8
	equal "$(digest "$(path origin)" $((last * 8)) 8)" "$SUM" "a chunk that is still to be merged"
	discard origin $((hole * 8)) 8
	shows origin =$((hole * 8)) -8 =
	text=$(status origin)
	say "$text"
	discard origin $((first * 8)) 8
	((${text%%/*} > ${text##* })) || fail "all is merged already: this shows nothing"
	dm_load dev "0 $(sectors "$disk") linear $disk 0"
	dm_resume dev
	wait_merged origin
	equal "$(digest "$(path origin)" $((last * 8)) 8)" "$SUM" "the chunk, merged"
	shows origin =$((hole * 8)) -8 =
	discard origin 0 "$(sectors "$dev")"
	shows origin -
}

test_discards_while_it_merges() {
	# Two snapshots; what a discard changes is saved for the other one.
	local disk other before
	on_c && skip "the C target takes none"
	disk=$(blk_create 16 cache_size=1 discard=1)
	dm_create dev "0 $(sectors "$disk") delay $disk 0 0 $disk 0 0 $disk 0 30"
	dev=$(path dev)
	other=$(blk_create 40)
	pattern "$dev" 1
	cow=$(blk_create 40 discard=1)
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 2000 --seed 6
	origin_create origin "$dev"
	snap_add origin other "$dev" "$other" P 32
	before=$(digest "$(path other)")
	merge_reload origin "$dev" "$cow" P 8
	for ((i = 0; i < 30; i++)); do
		discard origin $((i * 1000 + 3)) 500
	done
	equal "$(digest "$(path other)")" "$before" "the other SNAP meanwhile"
	wait_merged origin
	equal "$(digest "$(path other)")" "$before" "the other SNAP at the end"
}

run_tests "$@"
