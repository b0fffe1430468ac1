#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Merging: the origin becomes again what the snapshot shows, while it is in use.
# In which order the requests of a merge reach the devices is the matter of
# race-merge.sh, and what a loss of power leaves also that of merge-reboot.sh.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# How many exceptions a merge has that is to go on by steps (lib.sh).  A step of the
# C target is one run of chunks, here it is an area of 256 records.
COUNT=5000
on_c && COUNT=500

# ---------------------------------------------------------------------------
# What the tests begin with

# devices DEV-MIB COW-MIB - DEV with a pattern, and COW.
devices() {
	dev=$(blk_create "$1")
	cow=$(blk_create "$2")
	pattern "$dev" 1
}

# written STORE CHUNK - ORIGIN and its snapshot, both written at random; what
# SNAP shows then is in SUM.
written() {
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "$1" "$2"
	model_py run --seed 7 --ops 60 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path snap)="
	SUM=$(digest "$(path snap)")
	[ "$(digest "$(path origin)")" != "$SUM" ] || fail "there is nothing to merge"
}

# held_devices - DEV and COW with COUNT scattered exceptions, whose merge goes on by
# steps.  Each is a device that stands on a disk, so that its table can be changed.
held_devices() {
	disk=$(blk_create 24 cache_size=1)
	room=$(blk_create 32)
	hold_create dev "$disk"
	linear_create cow "$room"
	dev=$(path dev) cow=$(path cow)
	pattern "$dev" 1
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count "$COUNT" --seed 5
	SUM=$(cow_py digest "$cow" "$dev")
}

# cow_table TABLE-LINE... - COW has this table from now on.
cow_table() {
	dm_suspend cow
	dm_load cow "$(printf '%s\n' "$@")"
	dm_resume cow
}

# has_begun - takes a step; true when something is merged then.
has_begun() {
	hold_step
	merge_left origin
	((LEFT < COUNT * 8))
}

# not_done - fails when all is merged already: the test would show nothing.
not_done() {
	merge_left origin
	((LEFT > 0)) || fail "the merge is over already"
}

# in_the_middle - takes steps until a part is merged, and only a part.
in_the_middle() {
	wait_for 60 has_begun || fail "the merge does not begin"
	not_done
}

# by_steps - goes on to the end, but most of the way by steps.
by_steps() {
	local i
	for ((i = 0; i < 15; i++)); do
		hold_step
		sleep 0.1
	done
	hold_end
	wait_merged origin
}

# merged - waits for the end, and fails unless ORIGIN, DEV and SNAP's content are
# the same then, and COW has no record left.
merged() {
	wait_merged origin
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, all merged"
	equal "$(digest "$dev")" "$SUM" "DEV, all merged"
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "0 valid" "the records, all merged"
}

# ---------------------------------------------------------------------------
# From the beginning to the end

# from_disk STORE CHUNK DEV-MIB COW-MIB - SNAP has been removed, and the merge reads
# what is on COW.
from_disk() {
	local store=$1 chunk=$2
	devices "$3" "$4"
	written "$store" "$chunk"
	dm_remove snap
	equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format"
	merge_reload origin "$dev" "$cow" "$store" "$chunk"
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN from the start"
	merged
	after "$store" "$chunk"
}

# by_handover STORE CHUNK DEV-MIB COW-MIB - SNAP is suspended, and the merge takes
# its exceptions over.
by_handover() {
	local store=$1 chunk=$2
	devices "$3" "$4"
	written "$store" "$chunk"
	# A record that is not on COW yet is not lost.
	dd if=/dev/urandom of="$(path snap)" bs="$chunk"b count=1 seek=3 oflag=direct status=none
	SUM=$(digest "$(path snap)")
	dm_suspend snap
	merge_reload origin "$dev" "$cow" "$store" "$chunk"
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN from the start"
	# SNAP's device has nothing to say any more.
	dm_remove snap
	merged
	after "$store" "$chunk"
}

# after STORE CHUNK - what can be done when all is merged: the emptied COW is an
# unchanged snapshot, and ORIGIN can be an origin or a linear device again.
after() {
	dm_load origin "$(origin_table "$dev")"
	dm_resume origin
	snap_add origin snap "$dev" "$cow" "$1" "$2"
	equal "$(digest "$(path snap)")" "$SUM" "SNAP of the emptied COW"
	dd if=/dev/urandom of="$(path origin)" bs=64K count=4 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$SUM" "SNAP of the emptied COW after a write"
	dm_remove snap
	dm_load origin "$(linear_table "$dev")"
	dm_resume origin
	exclusive "$cow"
}

test_from_disk_with_4k_chunks() { from_disk P 8 8 24; }

test_from_disk_with_64k_chunks_and_overflow() { from_disk PO 128 8 24; }

test_from_disk_with_1m_chunks() { from_disk P 2048 16 40; }

test_by_handover_with_4k_chunks() { by_handover P 8 8 24; }

test_by_handover_with_64k_chunks() { by_handover P 128 8 24; }

test_by_handover_with_1m_chunks() { by_handover PO 2048 16 40; }

test_large_runs() {
	# All of DEV, written in order by 1 MiB.
	local chunk writes
	devices 16 40
	blk_exact "$dev"
	for chunk in 8 128 2048; do
		new_cow "$cow"
		pattern "$dev" "$chunk"
		origin_create origin "$dev"
		snap_add origin snap "$dev" "$cow" P "$chunk"
		SUM=$(digest "$(path snap)")
		sequential write "$(path origin)" 16
		dm_remove snap
		io_mark "$dev"
		merge_reload origin "$dev" "$cow" P "$chunk"
		wait_merged origin
		writes=$(io_since "$dev" writes)
		note "$writes writes of DEV for 16 MiB in chunks of $chunk sectors"
		merged
		dm_remove origin
	done
}

test_an_origin_that_ends_within_a_chunk() {
	local disk
	disk=$(blk_create 16)
	cow=$(blk_create 24)
	# 8 MiB and 24 KiB: the last chunk of 64K is not a whole one.
	linear_create dev "$disk" $((16384 + 48))
	dev=$(path dev)
	pattern "$disk" 1
	local rest
	rest=$(digest "$disk" $((16384 + 48)) 1000)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 128
	SUM=$(digest "$(path snap)")
	dd if=/dev/urandom of="$(path origin)" bs=8K seek=1016 count=11 oflag=direct status=none
	dm_remove snap
	merge_reload origin "$dev" "$cow" P 128
	merged
	equal "$(digest "$disk" $((16384 + 48)) 1000)" "$rest" "what lies behind DEV"
}

test_20000_scattered_exceptions() {
	devices 128 110
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 20000 --seed 3
	SUM=$(cow_py digest "$cow" "$dev")
	merge_create origin "$dev" "$cow" P 8
	merged
}

test_runs_with_holes_of_a_crash() {
	devices 32 40
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 4000 --seed 4 --run 40 --hole 33
	SUM=$(cow_py digest "$cow" "$dev")
	merge_create origin "$dev" "$cow" P 8
	merged
}

test_full_areas() {
	# The last area is full, and its next is empty.
	local count
	devices 16 16
	for count in 1 256 512; do
		cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count "$count" --seed "$count"
		SUM=$(cow_py digest "$cow" "$dev")
		merge_create origin "$dev" "$cow" P 8
		merged
		equal "$(status origin)" "16/32768 16" "the status after $count"
		dm_remove origin
	done
}

test_nothing_to_merge() {
	local how
	devices 8 8
	for how in new used; do
		SUM=$(digest "$dev")
		merge_create origin "$dev" "$cow" P 16
		equal "$(status origin)" "32/16384 32" "the status, COW is $how"
		wait_merged origin 1
		dd if=/dev/urandom of="$(path origin)" bs=64K count=3 oflag=direct status=none
		[ "$(digest "$dev")" != "$SUM" ]
		equal "$(status origin)" "32/16384 32" "the status after a write"
		dm_remove origin
	done
}

test_table_and_dependencies() {
	local numbers
	devices 8 8
	numbers="$(lsblk -dno MAJ:MIN "$dev" | tr -d ' ') $(lsblk -dno MAJ:MIN "$cow" | tr -d ' ')"
	merge_create origin "$dev" "$cow" P 16
	equal "$(table origin)" "0 16384 $T_MERGE $numbers P 16" "the table"
	equal "$(dmsetup deps -o blkdevname "${PREFIX}origin" | grep -o '([^)]*)' | sort | tr -d '()\n')" \
		"$(printf '%s\n' "${dev##*/}" "${cow##*/}" | sort | tr -d '\n')" "what it depends on"
	refused exclusive "$dev"
	refused exclusive "$cow"
	dm_remove origin
	exclusive "$dev" "$cow"
}

test_status_falls_to_the_metadata() {
	local last=$((1 << 30)) seen=0 text allocated metadata
	held_devices
	merge_create origin "$dev" "$cow" P 8
	while true; do
		text=$(status origin)
		matches "$text" '^[0-9]+/65536 [0-9]+$' "the status"
		allocated=${text%%/*} metadata=${text##* }
		at_most "$allocated" "$last" "sectors allocated, after $last"
		((allocated == last)) || seen=$((seen + 1))
		last=$allocated
		((allocated > metadata)) || break
		if ((seen < 8)); then hold_step; else hold_end; fi
	done
	((seen >= 8)) || fail "only $seen different figures were seen"
	equal "$text" "16/65536 16" "the last status"
}

test_an_event_when_all_is_merged() {
	local pid
	on_c && skip "the C target raises none"
	held_devices
	merge_create origin "$dev" "$cow" P 8
	dmsetup wait "${PREFIX}origin" &
	pid=$!
	in_the_middle
	kill -0 "$pid" || fail "an event was raised before the end"
	hold_end
	wait_merged origin
	wait_for 20 eval "! kill -0 $pid 2>/dev/null" || fail "no event was raised"
}

# ---------------------------------------------------------------------------
# In use meanwhile

test_verified_load_while_it_merges() {
	held_devices
	merge_create origin "$dev" "$cow" P 8
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN from the start"
	start_load origin
	not_done
	by_steps
	still_loading
	stop_load
	SUM=$(digest "$(path origin)")
	merged
}

test_verified_load_while_large_chunks_merge() {
	# Most I/O is for a part of a chunk.
	disk=$(blk_create 24 cache_size=1)
	cow=$(blk_create 24)
	hold_create dev "$disk"
	dev=$(path dev)
	pattern "$dev" 1
	cow_py make "$cow" "$(sectors "$dev")" --chunk 2048 --count 20 --seed 8
	SUM=$(cow_py digest "$cow" "$dev")
	merge_create origin "$dev" "$cow" P 2048
	start_load origin
	not_done
	by_steps
	still_loading
	stop_load
	SUM=$(digest "$(path origin)")
	merged
}

test_other_snapshots_keep_their_image() {
	local a b c
	held_devices
	a=$(blk_create 64) b=$(blk_create 64) c=$(blk_create 64)
	origin_create origin "$dev"
	snap_add origin a "$dev" "$a" P 16
	dd if=/dev/urandom of="$(path origin)" bs=128K count=8 oflag=direct status=none
	snap_add origin b "$dev" "$b" N 128
	snap_add origin c "$dev" "$c" PO 8
	SUM=$(cow_py digest "$cow" "$dev")
	a=$(digest "$(path a)") b=$(digest "$(path b)") c=$(digest "$(path c)")
	merge_reload origin "$dev" "$cow" P 8
	in_the_middle
	equal "$(digest "$(path a)")" "$a" "P 16 in the middle"
	equal "$(digest "$(path b)")" "$b" "N 128 in the middle"
	equal "$(digest "$(path c)")" "$c" "PO 8 in the middle"
	hold_end
	merged
	equal "$(digest "$(path a)")" "$a" "P 16 at the end"
	equal "$(digest "$(path b)")" "$b" "N 128 at the end"
	equal "$(digest "$(path c)")" "$c" "PO 8 at the end"
}

test_verified_load_with_other_snapshots() {
	local a b
	held_devices
	a=$(blk_create 64) b=$(blk_create 64)
	origin_create origin "$dev"
	snap_add origin a "$dev" "$a" P 32
	snap_add origin b "$dev" "$b" N 8
	merge_reload origin "$dev" "$cow" P 8
	start_load origin --snap "$(path a)=" --snap "$(path b)="
	not_done
	by_steps
	still_loading
	stop_load
	SUM=$(digest "$(path origin)")
	merged
}

test_a_new_snapshot_while_it_merges() {
	# It freezes DEV, as it is between two steps of the merge.
	local new image
	held_devices
	new=$(blk_create 64)
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	stepping dm_suspend origin
	snap_create new "$dev" "$new" P 16
	image=$(digest "$dev")
	dm_resume origin
	not_done
	equal "$(digest "$(path new)")" "$image" "the new SNAP"
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
	start_load origin --snap "$(path new)="
	not_done
	by_steps
	still_loading
	stop_load
	SUM=$(digest "$(path origin)")
	merged
}

test_new_snapshots_without_a_suspend() {
	# The same at any moment: the image is DEV with nothing but the last records
	# merged, and it stays as it is.
	local disk2 room2 new newer a b first second
	on_c && skip "the C target wants the merging device suspended"
	held_devices
	disk2=$(blk_create 24) room2=$(blk_create 32)
	dd if="$disk" of="$disk2" bs=1M iflag=direct oflag=direct status=none
	dd if="$room" of="$room2" bs=1M iflag=direct oflag=direct status=none
	new=$(blk_create 64) newer=$(blk_create 64)
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	stepping snap_create new "$dev" "$new" P 8
	hold_step
	stepping snap_create newer "$dev" "$newer" N 64
	not_done
	a=$(digest "$(path new)") b=$(digest "$(path newer)")
	first=$(cow_py merged "$room2" "$disk2" "$(path new)")
	second=$(cow_py merged "$room2" "$disk2" "$(path newer)")
	say "merged when they were created: $first, $second of $COUNT"
	((first > 0 && first <= second && second < COUNT)) || fail "merged $first and $second of $COUNT"
	start_load origin
	not_done
	by_steps
	stop_load
	equal "$(digest "$(path new)")" "$a" "the first at the end"
	equal "$(digest "$(path newer)")" "$b" "the second at the end"
	SUM=$(digest "$(path origin)")
	merged
}

test_in_use_when_all_is_merged() {
	local new
	devices 16 24
	new=$(blk_create 24)
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 300 --seed 6
	SUM=$(cow_py digest "$cow" "$dev")
	merge_create origin "$dev" "$cow" P 8
	merged
	dm_suspend origin
	snap_create new "$dev" "$new" P 8
	dm_resume origin
	model_py run --seed 3 --ops 100 --max-io 131072 \
		--origin "$(path origin)" --snap "$(path new)="
	equal "$(status origin)" "16/49152 16" "the status"
}

test_flush_and_fua() {
	# Both reach their end, and what was written with them is there.
	local i
	held_devices
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	for i in 0 1 2; do
		stepping dd if=/dev/urandom of="$(path origin)" bs=4K count=1 seek=$((i * 1300)) \
			oflag=direct,dsync status=none
		stepping dd if=/dev/urandom of="$(path origin)" bs=4K count=2 seek=$((i * 1300 + 1)) \
			conv=fsync status=none
	done
	not_done
	SUM=$(digest "$(path origin)")
	hold_end
	merged
}

# ---------------------------------------------------------------------------
# Interrupted, and going on

test_suspend_and_resume_in_the_middle() {
	local i text
	held_devices
	merge_create origin "$dev" "$cow" P 8
	start_load origin
	for i in 1 2 3; do
		stepping dm_suspend origin
		not_done
		text=$(status origin)
		# Nothing goes on: no request of the merge reaches either device.
		io_mark "$disk" "$room"
		sleep 0.7
		equal "$(io_since "$disk" writes) $(io_since "$room" reads) $(io_since "$room" writes)" \
			"0 0 0" "requests while it is suspended"
		equal "$(status origin)" "$text" "the status while it is suspended"
		dm_resume origin
		hold_step
		still_loading
	done
	by_steps
	stop_load
	SUM=$(digest "$(path origin)")
	merged
}

test_reload_in_the_middle() {
	local i
	on_c && skip "the C target refuses it"
	held_devices
	merge_create origin "$dev" "$cow" P 8
	start_load origin
	for i in 1 2 3; do
		stepping merge_reload origin "$dev" "$cow" P 8
		not_done
		hold_step
		still_loading
		# Loaded and cleared again: the live table goes on.  Nothing is read for it.
		stepping dm_suspend origin
		io_mark "$room"
		dm_load origin "$(merge_table "$dev" "$cow" P 8)"
		equal "$(io_since "$room" reads)" 0 "reads of COW for a new table"
		dmsetup clear "${PREFIX}origin"
		dm_resume origin
	done
	not_done
	by_steps
	stop_load
	SUM=$(digest "$(path origin)")
	merged
}

# back_to_origin - ORIGIN is no merge any more.
back_to_origin() {
	dm_load origin "$(origin_table "$dev")" && dm_resume origin
}

test_back_to_an_origin_in_the_middle() {
	local count
	held_devices
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	stepping back_to_origin
	count=$(cow_py count "$cow")
	((count > 0 && count < COUNT)) || fail "$count records are left of $COUNT"
	# The snapshot shows what it showed: a part of it is in DEV now.
	snap_add origin snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$SUM" "SNAP, merged in part"
	[ "$(digest "$(path origin)")" != "$SUM" ] || fail "DEV has all of the snapshot"
	# It is a snapshot as any other.
	dd if=/dev/urandom of="$(path origin)" bs=256K count=20 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$SUM" "SNAP after writes to ORIGIN"
	dd if=/dev/urandom of="$(path snap)" bs=64K count=20 seek=70 oflag=direct status=none
	SUM=$(digest "$(path snap)")
	# And can be merged again.
	hold_end
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	dm_remove snap
	merged
}

test_removed_in_the_middle() {
	held_devices
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	stepping dm_remove origin
	equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format"
	exclusive "$dev" "$cow"
	merge_create origin "$dev" "$cow" P 8
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, created again"
	not_done
	hold_end
	merged
}

# power_cut DEVICE DEVICE - copies what is on DEV and COW at one moment of the merge.
# The devices are stopped one after the other.  What the second still gets cannot
# depend on what the first no longer did, so this is a state that a loss of power
# could have left, whichever is the first.
power_cut() {
	dm_suspend "$1"
	dm_suspend "$2"
	dd if="$disk" of="$disk2" bs=1M iflag=direct oflag=direct status=none
	dd if="$room" of="$room2" bs=1M iflag=direct oflag=direct status=none
	dm_resume "$1"
	dm_resume "$2"
}

test_power_cuts_in_the_middle() {
	local i disk2 room2 count
	held_devices
	disk2=$(blk_create 24)
	room2=$(blk_create 32)
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	for i in 1 2 3 4; do
		# What was acknowledged must be there afterwards.
		stepping dd if=/dev/urandom of="$(path origin)" bs=$((i * 100))K count=1 \
			seek=$((i * 7)) oflag=direct,dsync status=none
		SUM=$(digest "$(path origin)")
		if ((i % 2)); then power_cut dev cow; else power_cut cow dev; fi
		count=$(cow_py check "$room2" "$(sectors "$disk2")")
		say "$count records at cut $i"
		((${count% *} > 0)) || fail "cut $i came after the end"
		equal "$(cow_py digest "$room2" "$disk2")" "$SUM" "SNAP by the format at cut $i"
		snap_create copy "$disk2" "$room2" P 8
		equal "$(digest "$(path copy)")" "$SUM" "SNAP at cut $i"
		dm_remove copy
		merge_create copy "$disk2" "$room2" P 8
		wait_merged copy
		equal "$(digest "$disk2")" "$SUM" "what is merged after cut $i"
		dm_remove copy
	done
	hold_end
	merged
}

# ---------------------------------------------------------------------------
# Errors

# failed - waits until the merge has given up.
failed() {
	wait_for 60 status_is origin "Merge failed" || fail "the status is '$(status origin)'"
}

# waits_for_event - begins to wait for an event of ORIGIN; event_came waits for it.
waits_for_event() {
	dmsetup wait "${PREFIX}origin" &
	EVENT=$!
	sleep 0.3
}

event_came() {
	if ! on_c; then
		wait_for 20 eval "! kill -0 $EVENT 2>/dev/null" || fail "no event was raised"
	fi
	kill "$EVENT" 2>/dev/null || true
}

# goes_on_after_repair - the devices are right again: what was left of the merge is
# done when it is begun anew.
goes_on_after_repair() {
	dm_remove origin
	equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format"
	merge_create origin "$dev" "$cow" P 8
	merged
}

# flakey DISK - prints the table of a device whose writes fail.
flakey() {
	modprobe dm-flakey 2>/dev/null || have_target flakey || skip "no dm-flakey here"
	echo "0 $(sectors "$1") flakey $1 0 0 3600 1 error_writes"
}

test_data_of_cow_that_cannot_be_read() {
	local bad good old new
	held_devices
	# What is merged last: the first data chunks.
	cow_table "$(broken_table "$room" 16 80)"
	read -r bad _ <<<"$(cow_py list "$room" | sed -n 3p)"
	read -r good new <<<"$(cow_py list "$room" | sed -n 11p)"
	merge_create origin "$dev" "$cow" P 8
	waits_for_event
	log_mark merge
	hold_end
	failed
	event_came
	log_has merge 'device-mapper: snap' || fail "the log says nothing"
	# All but the broken places is right, merged or not.
	refused dd if="$(path origin)" of=/dev/null bs=4K count=1 skip="$bad" iflag=direct status=none
	equal "$(digest "$(path origin)" $((good * 8)) 8)" "$(digest "$room" $((new * 8)) 8)" \
		"a chunk that is not merged"
	# Writes elsewhere go on: to a merged chunk, and to one that never was in COW.
	read -r old _ <<<"$(cow_py list "$room" | tail -n 1)"
	say "records left: $(cow_py count "$room"), the last one for $old"
	cow_table "$(linear_table "$room")"
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, with COW right again"
	dd if=/dev/urandom of="$(path origin)" bs=64K count=90 seek=100 oflag=direct status=none
	SUM=$(digest "$(path origin)")
	equal "$(status origin)" "Merge failed" "the status"
	goes_on_after_repair
}

test_dev_that_cannot_be_written() {
	held_devices
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	waits_for_event
	dm_load dev "$(flakey "$disk")"
	dm_resume dev
	failed
	event_came
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, with DEV not writable"
	hold_end
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, with DEV right again"
	goes_on_after_repair
}

test_cow_that_cannot_be_written() {
	# Data can be read, but no record taken away.
	held_devices
	merge_create origin "$dev" "$cow" P 8
	in_the_middle
	waits_for_event
	cow_table "$(flakey "$room")"
	hold_step
	failed
	event_came
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, with COW not writable"
	cow_table "$(linear_table "$room")"
	hold_end
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, with COW right again"
	goes_on_after_repair
}

test_a_failed_merge_can_be_removed_at_once() {
	local i
	held_devices
	merge_create origin "$dev" "$cow" P 8
	dm_load dev "$(flakey "$disk")"
	dm_resume dev
	failed
	dm_suspend origin
	dm_resume origin
	dm_remove origin
	exclusive "$dev" "$cow"
	hold_end
	equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format"
}

# devices_to_reduce - DEV stands on a disk, so that its size can be changed.
devices_to_reduce() {
	disk=$(blk_create 8) cow=$(blk_create 16)
	linear_create dev "$disk"
	dev=$(path dev)
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 16
}

test_a_device_that_was_reduced() {
	# DEV, ORIGIN and SNAP have become smaller, to an end within a chunk.
	devices_to_reduce
	dm_load dev "$(linear_table "$disk" 2056)"
	dm_resume dev
	dm_load origin "$(origin_table "$dev")"
	dm_resume origin
	dm_load snap "$(snap_table "$dev" "$cow" P 16)"
	dm_resume snap
	SUM=$(digest "$(path snap)")
	pattern "$(path origin)" 2
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 16
	dm_remove snap
	wait_merged origin 60
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
}

test_chunks_that_a_reduced_device_has_no_more() {
	# The records of what can't be merged stay, until DEV is as it was.
	on_c && skip "the C target does not see that DEV is smaller"
	devices_to_reduce
	SUM=$(digest "$(path snap)")
	write_sectors origin 2048 128
	dm_suspend snap
	dm_load dev "$(linear_table "$disk" 2056)"
	dm_resume dev
	dm_load origin "0 2056 $T_MERGE $dev $cow P 16"
	dm_resume origin
	dm_remove snap
	wait_for 30 status_is origin "Merge failed" || fail "the status is $(status origin)"
	dm_load dev "$(linear_table "$disk")"
	dm_resume dev
	merge_reload origin "$dev" "$cow" P 16
	wait_merged origin 60
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
}

test_a_device_that_is_not_there_yet() {
	# DEV has no size before it has been resumed: nothing can be written to it, and the
	# records must stay.
	disk=$(blk_create 8) cow=$(blk_create 16)
	pattern "$disk" 1
	cow_py make "$cow" "$(sectors "$disk")" --chunk 8 --count 300 --seed 5
	SUM=$(cow_py digest "$cow" "$disk")
	dmsetup create "${PREFIX}dev" --notable
	dm_load dev "$(linear_table "$disk")"
	dev=$(dmsetup info -c --noheadings --separator : -o major,minor "${PREFIX}dev")
	dm_create origin "0 $(sectors "$disk") $T_MERGE $dev $cow P 8"
	failed
	equal "$(cow_py check "$cow" "$(sectors "$disk")")" "300 valid" "the records"
	dm_resume dev
	dev=$(path dev)
	goes_on_after_repair
}

test_metadata_that_cannot_be_read() {
	# All data can: so a verified load goes on over the failure.
	held_devices
	merge_create origin "$dev" "$cow" P 8
	# The first area is read last.
	cow_table "$(broken_table "$room" 8 8)"
	start_load origin
	hold_end
	failed
	still_loading
	stop_load
	SUM=$(digest "$(path origin)")
	cow_table "$(linear_table "$room")"
	goes_on_after_repair
}

# ---------------------------------------------------------------------------
# What is refused

test_a_transient_snapshot() {
	devices 8 8
	log_mark merge
	refused merge_create origin "$dev" "$cow" N 8
	log_has merge 'device-mapper: .*(persistent|store|merge)' || fail "refused without a reason: $(log_since merge)"
	exclusive "$dev" "$cow"
	# Nor one that is live.
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" N 8
	dm_suspend snap
	refused merge_reload origin "$dev" "$cow" P 8
	refused merge_reload origin "$dev" "$cow" N 8
	dm_resume snap
	SUM=$(digest "$(path snap)")
	dd if=/dev/urandom of="$(path origin)" bs=64K count=4 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$SUM" "SNAP, still live"
}

test_an_invalid_snapshot() {
	# Refused, or Invalid and of no consequence for ORIGIN: then it is DEV.
	devices 8 8
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 40 --seed 2
	cow_py new "$cow" --chunk 8 --valid 0
	SUM=$(digest "$dev")
	log_mark merge
	if merge_create origin "$dev" "$cow" P 8; then
		equal "$(status origin)" Invalid "the status"
		equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
		dd if=/dev/urandom of="$(path origin)" bs=64K count=9 oflag=direct status=none
		equal "$(digest "$(path origin)")" "$(digest "$dev")" "ORIGIN after writes"
		equal "$(status origin)" Invalid "the status at the end"
		dm_remove origin
	else
		log_has merge 'device-mapper: snap.*[Ii]nvalid' || fail "refused without a reason: $(log_since merge)"
	fi
	exclusive "$dev" "$cow"
}

test_a_snapshot_that_has_overflowed() {
	# What it has shows, and is merged; the numbers of the status tell how far.
	on_c && skip "the C target says Overflow until it's removed"
	devices 8 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" PO 8
	dd if=/dev/urandom of="$(path snap)" bs=4K count=400 oflag=direct status=none || true
	equal "$(status snap)" Overflow "the status"
	SUM=$(digest "$(path snap)")
	dm_suspend snap
	merge_reload origin "$dev" "$cow" PO 8
	dm_remove snap
	wait_merged origin
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
}

test_flushes_when_the_snapshot_is_lost() {
	# ORIGIN is DEV, whatever has become of COW.
	local room
	on_c && skip "the C target sends them to COW as well"
	dev=$(blk_create 8)
	room=$(blk_create 16 cache_size=1)
	linear_create cow "$room"
	cow=$(path cow)
	pattern "$dev" 1
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	cow_table "$(flakey "$room")"
	dd if=/dev/zero of="$(path origin)" bs=64K count=1 oflag=direct status=none
	wait_for 20 status_is snap Invalid || fail "the status is '$(status snap)'"
	refused dd if=/dev/zero of="$cow" bs=4K count=1 conv=fsync status=none
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	equal "$(status origin)" Invalid "the status of the merge"
	dd if=/dev/urandom of="$(path origin)" bs=64K count=9 conv=fsync status=none
}

test_a_snapshot_that_is_not_suspended() {
	devices 8 16
	written P 8
	dm_load origin "$(merge_table "$dev" "$cow" P 8)"
	log_mark merge
	refused dm_resume origin
	log_has merge 'device-mapper: snap.*suspend' || fail "refused without a reason: $(log_since merge)"
	equal "$(digest "$(path snap)")" "$SUM" "SNAP"
	# With the snapshot suspended the same table does.
	dm_suspend snap
	dm_resume origin
	dm_remove snap
	merged
}

test_a_second_merge_of_one_origin() {
	local cow2 image
	held_devices
	cow2=$(blk_create 64)
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	snap_add origin snap2 "$dev" "$cow2" P 8
	image=$(digest "$(path snap2)")
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	dm_remove snap
	dm_suspend snap2
	log_mark merge
	refused merge_create other "$dev" "$cow2" P 8
	log_has merge 'device-mapper: .*(merg|origin)' || fail "refused without a reason: $(log_since merge)"
	dmsetup remove "${PREFIX}other" 2>/dev/null || true
	dm_resume snap2
	in_the_middle
	hold_end
	merged
	equal "$(digest "$(path snap2)")" "$image" "the other SNAP"
}

test_a_merge_that_is_refused_changes_nothing() {
	# The other snapshot goes on with the table that it had.
	local cow2 image
	on_c && skip "the C target does not refuse it"
	devices 8 16
	cow2=$(blk_create 16)
	written P 8
	snap_add origin snap2 "$dev" "$cow2" P 8
	image=$(digest "$(path snap2)")
	dmsetup create "${PREFIX}other" --notable
	dm_load other "$(merge_table "$dev" "$cow2" P 8)"
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	dm_remove snap
	wait_merged origin 60
	dm_suspend origin
	dm_suspend snap2
	refused dm_resume other
	dm_remove other
	dm_resume snap2
	dm_resume origin
	equal "$(digest "$(path snap2)")" "$image" "the other SNAP"
	pattern "$(path origin)" 3
	equal "$(digest "$(path snap2)")" "$image" "the other SNAP after writes to ORIGIN"
}

# refused_on_snap [SECTORS] - a merge, of so many sectors, is refused on SNAP's own device.
refused_on_snap() {
	# device-mapper gives the table before up, although the next one could not be resumed.
	# That one answers for the snapshot then, which goes on.
	local table
	on_c && skip "the C target does not refuse it"
	devices 8 16
	written P 8
	table=$(merge_table "$dev" "$cow" P 8)
	dm_load snap "0 ${1:-$(sectors "$dev")} ${table#* * }"
	refused dm_resume snap
	pattern "$(path origin)" 3
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	dm_resume snap
	equal "$(digest "$(path snap)")" "$SUM" "SNAP"
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	dm_remove snap
	wait_merged origin 60
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
}

test_a_merge_that_is_refused_on_the_device_of_the_snapshot() { refused_on_snap; }

test_a_shorter_merge_that_is_refused_there() { refused_on_snap 4096; }

test_a_merge_beside_an_origin_in_one_table() {
	# What is written by way of the other line would be overwritten by the merge.
	local half
	on_c && skip "the C target does not refuse it"
	devices 8 16
	written P 8
	half=$(($(sectors "$dev") / 2))
	dm_suspend snap
	dm_load origin "0 $half $T_ORIGIN $dev
$half $half $T_MERGE $dev $cow P 8"
	refused dm_resume origin
	dm_load origin "$(origin_table "$dev")"
	dm_resume origin
	dm_resume snap
	equal "$(digest "$(path snap)")" "$SUM" "SNAP"
}

test_a_second_merge_from_disk() {
	local cow2
	on_c && skip "the C target does not see it"
	held_devices
	cow2=$(blk_create 64)
	cow_py make "$cow2" "$(sectors "$dev")" --chunk 8 --count 300 --seed 9
	merge_create origin "$dev" "$cow" P 8
	log_mark merge
	refused merge_create other "$dev" "$cow2" P 8
	log_has merge 'device-mapper: snap.*merg' || fail "refused without a reason: $(log_since merge)"
	in_the_middle
	hold_end
	merged
	equal "$(cow_py check "$cow2" "$(sectors "$dev")")" "300 valid" "the records of the second"
}

test_an_origin_target_on_another_device() {
	on_c && skip "the C target does not see it"
	held_devices
	origin_create other "$dev"
	log_mark merge
	refused merge_create origin "$dev" "$cow" P 8
	log_has merge 'device-mapper: snap.*origin' || fail "refused without a reason: $(log_since merge)"
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "$COUNT valid" "the records"
	dmsetup remove "${PREFIX}origin" 2>/dev/null || true
	# It works when that one has gone.
	dm_remove other
	hold_end
	merge_create origin "$dev" "$cow" P 8
	merged
}

test_an_origin_target_that_comes_later() {
	# The other way round: DEV is changed by the merge alone.
	on_c && skip "the C target does not see it"
	held_devices
	merge_create origin "$dev" "$cow" P 8
	log_mark merge
	refused origin_create other "$dev"
	log_has merge 'device-mapper: snap.*merg' || fail "refused without a reason: $(log_since merge)"
	in_the_middle
	hold_end
	merged
}

# bad REGEX ARGUMENTS WHAT - a table with these arguments is refused, and a line of
# the log says what is wrong.  The C target is not held to a line of its own.
bad() {
	local line told=
	log_mark bad
	if dm_create bad "0 16384 $T_MERGE $2" 2>/dev/null; then
		dm_remove bad
		fail "$3: accepted ($2)"
	fi
	while read -r line; do
		[[ $line =~ device-mapper:\ .*($1) ]] && told=1
	done <<<"$(log_since bad)"
	[ -n "$told" ] || fail "$3: no line of the log matches /$1/: $(log_since bad)"
	exclusive "$dev" "$cow" || fail "$3: a device is held"
}

test_bad_arguments() {
	local n
	devices 8 8
	cow_py make "$cow" "$(sectors "$dev")" --chunk 16 --count 20 --seed 2
	bad argument "" "no arguments"
	bad argument "$dev $cow P" "three arguments"
	bad 'argument|feature' "$dev $cow P 16 x" "features that are no number"
	bad 'argument|feature' "$dev $cow P 16 1 no_such_feature" "an unknown feature"
	bad 'argument|feature' "$dev $cow P 16 2 discard_zeroes_cow" "fewer features than told"
	bad origin "/dev/no-such-device $cow P 16" "a missing origin"
	bad 'COW device' "$dev /dev/no-such-device P 16" "a missing COW device"
	bad 'COW device|same' "$dev $dev P 16" "the same device"
	bad 'type|store' "$dev $cow X 16" "an unknown store type"
	for n in x -8 3 24 4294967296; do
		bad 'chunk size|store' "$dev $cow P $n" "chunk size $n"
	done
	if ! on_c; then
		bad 'argument' "$dev $cow P 16 0 more" "an argument too many"
		bad 'chunk size' "$dev $cow P 0" "chunk size 0"
		blockdev --setro "$dev"
		bad 'origin' "$dev $cow P 16" "an origin that is read-only"
		blockdev --setrw "$dev"
		cow_py record "$cow" 3 5 99999
		bad 'record' "$dev $cow P 16" "a record that points outside"
		cow_py make "$cow" "$(sectors "$dev")" --chunk 16 --count 20 --seed 2
	fi
	cow_py new "$cow" --chunk 16 --magic 1
	bad 'header|magic|store|metadata' "$dev $cow P 16" "a wrong magic"
	cow_py make "$cow" "$(sectors "$dev")" --chunk 16 --count 20 --seed 2
	SUM=$(cow_py digest "$cow" "$dev")
	# What is right still works: another chunk size than that of the header as well.
	merge_create origin "$dev" "$cow" P 32
	merged
}

run_tests "$@"
