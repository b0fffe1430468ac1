#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Another table takes a live snapshot over: of the same device by a reload, or of
# another one while the old device is suspended.  Nothing is lost, nothing is read
# again, and what is cancelled has changed nothing.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

# devices DEV-MIB COW-MIB - DEV with a pattern, and COW.
devices() {
	dev=$(blk_create "$1")
	cow=$(blk_create "$2")
	pattern "$dev" 1
}

# live STORE CHUNK [OPS] - ORIGIN and its snapshot, both written at random.  What
# SNAP shows then is in SUM, and its status in STATUS.
live() {
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" "$1" "$2"
	load_once 7 "${3:-30}" snap
	SUM=$(digest "$(path snap)")
	STATUS=$(status snap)
}

# load_once SEED OPS NAME - verified random I/O on ORIGIN and a snapshot.
load_once() {
	model_py run --seed "$1" --ops "$2" --max-io 131072 \
		--origin "$(path origin)" --snap "$(path "$3")="
}

# unchanged NAME WHEN - the snapshot shows and tells what it did before.
unchanged() {
	equal "$(status "$1")" "$STATUS" "the status $2"
	equal "$(digest "$(path "$1")")" "$SUM" "SNAP $2"
}

# works NAME - the snapshot is still guarded and can be written to.
works() {
	load_once 8 20 "$1"
}

# reload STORE CHUNK... - the table of the existing device is loaded anew.
reload() {
	dm_load snap "$(snap_table "$dev" "$cow" "$@")" && dm_resume snap
}

# no_handover_on_c STORE - the C target can't hand a transient store over.
no_handover_on_c() {
	if on_c && [ "$1" = N ]; then
		skip "the C target does not hand a transient store over"
	fi
}

# ---------------------------------------------------------------------------
# On one device

# on_one_device STORE CHUNK
on_one_device() {
	local i
	no_handover_on_c "$1"
	devices 8 24
	live "$1" "$2"
	for i in 1 2 3; do
		reload "$1" "$2"
		unchanged snap "after reload $i"
		# With a suspend of its own, before or after the load.
		dm_suspend snap
		dm_load snap "$(snap_table "$dev" "$cow" "$1" "$2")"
		dm_resume snap
		unchanged snap "after reload $i of a suspended device"
	done
	works snap
	if [ "$1" != N ]; then
		# What is on COW is the same as well.
		SUM=$(digest "$(path snap)")
		dm_remove snap
		snap_create snap "$dev" "$cow" "$1" "$2"
		equal "$(digest "$(path snap)")" "$SUM" "SNAP, created again"
	fi
}

test_persistent_on_one_device() { on_one_device P 8; }

test_overflow_on_one_device() { on_one_device PO 64; }

test_transient_on_one_device() { on_one_device N 16; }

test_no_metadata_is_read_again() {
	local i
	# Six areas.
	devices 8 24
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 1500 --seed 3
	origin_create origin "$dev"
	snap_add origin snap "$dev" "$cow" P 8
	STATUS=$(status snap) SUM=$(digest "$(path snap)")
	io_mark "$cow"
	for i in 1 2 3; do
		reload P 8
		dm_suspend snap
		dm_create snap2 "$(snap_table "$dev" "$cow" P 8)"
		dm_remove snap
		dmsetup rename "${PREFIX}snap2" "${PREFIX}snap"
	done
	equal "$(io_since "$cow" reads)" 0 "reads of COW for six handovers"
	unchanged snap "after the handovers"
}

test_read_only_and_read_write_in_a_loop() {
	# Both sides are written all the while: ORIGIN by a load that verifies, SNAP in
	# each round, and what SNAP must show is kept on a device beside it.
	local i d mirror rounds=$((10 * LOAD))
	devices 8 64
	mirror=$(blk_create 8)
	live P 8 40
	dd if="$(path snap)" of="$mirror" bs=1M iflag=direct oflag=direct status=none
	start_load origin
	for ((i = 0; i < rounds; i++)); do
		dmsetup load --readonly "${PREFIX}snap" --table "$(snap_table "$dev" "$cow" P 8)"
		dm_resume snap
		equal "$(blockdev --getro "$(path snap)")" 1 "whether it is read-only"
		equal "$(part "$(path snap)" $((i % 8)))" "$(part "$mirror" $((i % 8)))" \
			"a part of SNAP in round $i, read-only"
		dm_load snap "$(snap_table "$dev" "$cow" P 8)"
		dm_resume snap
		dd if=/dev/urandom of="$TMP/data" bs=20K count=1 status=none
		for d in "$(path snap)" "$mirror"; do
			dd if="$TMP/data" of="$d" bs=20K count=1 seek=$((i * 37 % 400)) oflag=direct \
				conv=notrunc status=none
		done
	done
	still_loading
	stop_load
	equal "$(digest "$(path snap)")" "$(digest "$mirror")" "SNAP after $rounds rounds"
	dm_remove snap
	sound "$cow" "$dev"
	snap_create snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$(digest "$mirror")" "SNAP, created again"
}

test_a_table_that_is_longer() {
	# What is being written to ORIGIN behind the end of SNAP is a part of it, when SNAP has
	# become longer.
	local half before pid
	on_c && skip "the C target does not wait for such a write"
	disk=$(blk_create 8) cow=$(blk_create 16) other=$(blk_create 32)
	pattern "$disk" 1
	half=$(($(sectors "$disk") / 2))
	dm_create dev "0 $((2 * half)) delay $disk 0 0 $disk 0 2000"
	dev=$(path dev)
	origin_create origin "$dev"
	dm_create snap "0 $half $T_SNAP $dev $cow P 8"
	write_sectors origin "$half" 8 &
	pid=$!
	sleep 0.5
	# A table that is refused does not make it longer.
	dm_load snap "0 8 $T_SNAP $dev $other P 4096
8 $((2 * half - 8)) $T_SNAP $dev $cow P 8"
	refused dm_resume snap
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	dm_resume snap
	before=$(digest "$(path snap)")
	wait "$pid"
	equal "$(digest "$(path snap)")" "$before" "SNAP when the write has ended"
	write_sectors origin $((half + 64)) 8
	equal "$(digest "$(path snap)")" "$before" "SNAP after another one"
}

test_a_record_that_is_not_durable_yet() {
	# What SNAP wrote a moment ago goes along.
	local i
	devices 8 24
	live P 8 20
	for i in 1 2 3; do
		dd if=/dev/urandom of="$(path snap)" bs=4K count=5 seek=$((i * 300)) oflag=direct status=none
		reload P 8
		sound "$cow" "$dev" --old $((i * 300)) --old $((i * 300 + 4))
	done
	SUM=$(digest "$(path snap)")
	dm_remove snap
	snap_create snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$SUM" "SNAP, created again"
}

test_chunk_size_of_the_live_snapshot_stays() {
	devices 8 24
	live P 16
	reload P 64
	matches "$(table snap)" ' P 16$' "the table"
	unchanged snap "after a reload with another chunk size"
	works snap
}

test_features_change() {
	devices 8 24
	live P 16
	reload P 16 discard_zeroes_cow
	matches "$(table snap)" ' P 16 1 discard_zeroes_cow$' "the table"
	unchanged snap "with a feature"
	reload P 16 discard_zeroes_cow discard_passdown_origin
	matches "$(table snap)" ' P 16 2 discard_zeroes_cow discard_passdown_origin$' "the table"
	unchanged snap "with two features"
	reload P 16
	matches "$(table snap)" ' P 16$' "the table"
	unchanged snap "without features"
	works snap
}

# ---------------------------------------------------------------------------
# From one device to another

# to_another_device STORE CHUNK
to_another_device() {
	no_handover_on_c "$1"
	devices 8 24
	live "$1" "$2"
	dm_suspend snap
	snap_create snap2 "$dev" "$cow" "$1" "$2"
	unchanged snap2 "on the new device"
	# The old one is of no use any more, and does no harm.
	if dm_resume snap; then
		refused dd if="$(path snap)" of=/dev/null bs=4K count=1 iflag=direct status=none
		refused dd if=/dev/zero of="$(path snap)" bs=4K count=1 oflag=direct status=none
	fi
	unchanged snap2 "with the old device still there"
	dd if=/dev/urandom of="$(path origin)" bs=64K count=20 seek=30 oflag=direct status=none
	equal "$(digest "$(path snap2)")" "$SUM" "SNAP after a write to ORIGIN"
	dm_remove snap
	works snap2
	SUM=$(digest "$(path snap2)") STATUS=$(status snap2)
	# And back again.
	dm_suspend snap2
	snap_create snap "$dev" "$cow" "$1" "$2"
	dm_remove snap2
	unchanged snap "on a third device"
	works snap
}

test_persistent_to_another_device() { to_another_device P 8; }

test_transient_to_another_device() { to_another_device N 32; }

test_the_old_device_must_be_suspended() {
	devices 8 24
	live P 8
	log_mark handover
	refused snap_create snap2 "$dev" "$cow" P 8
	log_has handover 'device-mapper: snap.*suspend' || fail "refused without a reason: $(log_since handover)"
	dmsetup remove "${PREFIX}snap2" 2>/dev/null || true
	unchanged snap "after the attempt"
	works snap
	# A table that was loaded, and resumed too early, does once the old is suspended.
	SUM=$(digest "$(path snap)") STATUS=$(status snap)
	dmsetup create "${PREFIX}snap2" --notable
	dm_load snap2 "$(snap_table "$dev" "$cow" P 8)"
	refused dm_resume snap2
	dm_suspend snap
	dm_resume snap2
	dm_remove snap
	unchanged snap2 "on the new device"
	works snap2
}

test_another_store_type_is_refused() {
	local store
	on_c && skip "the C target does not compare them"
	for store in P N; do
		devices 8 24
		live "$store" 8
		dm_suspend snap
		log_mark handover
		refused reload "$([ "$store" = P ] && echo N || echo P)" 8
		log_has handover 'device-mapper: snap.*store type' || fail "refused without a reason: $(log_since handover)"
		dm_resume snap
		unchanged snap "after the attempt"
		works snap
		remove_all
	done
}

test_another_chunk_size_of_a_transient_one_is_refused() {
	on_c && skip "the C target does not compare them"
	devices 8 24
	live N 8
	log_mark handover
	refused reload N 16
	log_has handover 'device-mapper: snap.*chunk size' || fail "refused without a reason: $(log_since handover)"
	unchanged snap "after the attempt"
	works snap
}

test_overflow_is_reported_as_the_new_table_says() {
	devices 8 24
	linear_create small "$cow" 1024
	cow=$(path small)
	live P 8 0
	reload PO 8
	matches "$(table snap)" ' PO 8$' "the table"
	refused dd if=/dev/urandom of="$(path snap)" bs=4K count=500 oflag=direct status=none
	equal "$(status snap)" Overflow "the status"
}

# ---------------------------------------------------------------------------
# Cancelled

test_a_table_that_is_loaded_and_cleared() {
	devices 8 24
	live P 8
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	unchanged snap "with a table that waits"
	dmsetup clear "${PREFIX}snap"
	unchanged snap "when it is cleared"
	dm_suspend snap
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	dmsetup clear "${PREFIX}snap"
	dm_resume snap
	unchanged snap "when it is cleared, suspended"
	works snap
}

test_a_new_device_that_is_removed_before_it_was_resumed() {
	local state
	devices 8 24
	live P 8
	for state in running suspended; do
		[ "$state" = running ] || dm_suspend snap
		dmsetup create "${PREFIX}snap2" --notable
		dm_load snap2 "$(snap_table "$dev" "$cow" P 8)"
		dm_remove snap2
		[ "$state" = running ] || dm_resume snap
		unchanged snap "which was $state"
	done
	works snap
}

test_a_table_that_never_ran_is_replaced() {
	on_c && skip "the C target does not hand over what never ran"
	devices 8 8
	origin_create origin "$dev"
	dmsetup create "${PREFIX}snap" --notable
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	dm_load snap "$(snap_table "$dev" "$cow" P 8)"
	dm_resume snap
	works snap
}

# never_ran STEP - of two devices whose tables have never run, the first, which answers for
# the snapshot, loses it by this step of dmsetup.
never_ran() {
	local name
	on_c && skip "the C target does not hand over what never ran"
	devices 8 8
	origin_create origin "$dev"
	for name in snap2 snap; do
		dmsetup create "$PREFIX$name" --notable
		dm_load "$name" "$(snap_table "$dev" "$cow" P 8)"
	done
	dmsetup "$1" "${PREFIX}snap2"
	dm_resume snap
	works snap
}

test_a_table_that_never_ran_is_cleared_on_one_of_two_devices() { never_ran clear; }

test_a_device_that_never_ran_is_removed_beside_another() { never_ran remove; }

test_the_old_device_goes_while_the_new_one_waits() {
	# What the new one has loaded is worth nothing then: it must not go on as if it
	# were live.  A table that is loaded now is right.
	devices 8 24
	live P 8
	dm_suspend snap
	dmsetup create "${PREFIX}snap2" --notable
	dm_load snap2 "$(snap_table "$dev" "$cow" P 8)"
	dm_remove snap
	# This is not saved any more.
	dd if=/dev/urandom of="$(path origin)" bs=64K count=10 seek=50 oflag=direct status=none
	if dm_resume snap2; then
		refused dd if="$(path snap2)" of=/dev/null bs=4K count=1 iflag=direct status=none
		equal "$(status snap2)" Invalid "the status"
	fi
	dm_remove snap2
	SUM=$(cow_py digest "$cow" "$dev")
	snap_add origin snap "$dev" "$cow" P 8
	equal "$(digest "$(path snap)")" "$SUM" "SNAP, loaded anew"
	works snap
}

test_a_merge_that_is_loaded_and_cleared() {
	local state
	devices 8 24
	live P 8
	for state in running suspended; do
		[ "$state" = running ] || dm_suspend snap
		dm_load origin "$(merge_table "$dev" "$cow" P 8)"
		dmsetup clear "${PREFIX}origin"
		[ "$state" = running ] || dm_resume snap
		unchanged snap "which was $state"
	done
	works snap
}

test_the_snapshot_goes_while_a_merge_waits() {
	devices 8 24
	live P 8
	dm_suspend snap
	dm_load origin "$(merge_table "$dev" "$cow" P 8)"
	dm_remove snap
	if dm_resume origin; then
		equal "$(status origin)" Invalid "the status"
		equal "$(digest "$(path origin)")" "$(digest "$dev")" "ORIGIN"
	fi
	equal "$(cow_py digest "$cow" "$dev")" "$SUM" "SNAP by the format"
	dm_load origin "$(origin_table "$dev")"
	dm_resume origin
	merge_reload origin "$dev" "$cow" P 8
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN, with the table loaded anew"
	wait_merged origin
	equal "$(digest "$dev")" "$SUM" "DEV"
}

# ---------------------------------------------------------------------------
# The state goes along

test_an_invalid_snapshot_stays_invalid() {
	local store
	devices 8 24
	linear_create small "$cow" 1024
	cow=$(path small)
	for store in P N; do
		on_c && [ "$store" = N ] && continue
		new_cow "$cow"
		live "$store" 8 0
		dd if=/dev/urandom of="$(path origin)" bs=64K count=20 oflag=direct status=none
		equal "$(status snap)" Invalid "the status of $store"
		reload "$store" 8
		equal "$(status snap)" Invalid "the status of $store after a reload"
		refused dd if="$(path snap)" of=/dev/null bs=4K count=1 iflag=direct status=none
		dd if=/dev/urandom of="$(path origin)" bs=64K count=20 seek=30 oflag=direct status=none
		dm_suspend snap
		snap_create snap2 "$dev" "$cow" "$store" 8
		equal "$(status snap2)" Invalid "the status of $store on another device"
		dm_remove snap snap2 origin
	done
}

test_an_overflowed_snapshot_stays_so() {
	devices 8 24
	linear_create small "$cow" 1024
	cow=$(path small)
	live PO 8 0
	refused dd if=/dev/urandom of="$(path snap)" bs=4K count=500 oflag=direct status=none
	equal "$(status snap)" Overflow "the status"
	SUM=$(digest "$(path snap)")
	reload PO 8
	equal "$(status snap)" Overflow "the status after a reload"
	equal "$(digest "$(path snap)")" "$SUM" "SNAP after a reload"
	refused dd if=/dev/urandom of="$(path snap)" bs=4K seek=700 count=1 oflag=direct status=none
}

# opens NAME - prints how often a device is open.
opens() {
	dmsetup info -c --noheadings -o open "$PREFIX$1"
}

test_tables_that_are_loaded_and_cleared_hold_nothing() {
	local i before
	devices 8 24
	linear_create d "$dev"
	linear_create c "$cow"
	dev=$(path d) cow=$(path c)
	live P 8 20
	before="$(opens d) $(opens c)"
	for ((i = 0; i < 25; i++)); do
		dm_load snap "$(snap_table "$dev" "$cow" P 8)"
		# Loaded over another, and for another device: of the C target only one
		# can wait.
		on_c || dm_load snap "$(snap_table "$dev" "$cow" PO 8)"
		on_c || dm_load origin "$(merge_table "$dev" "$cow" P 8)"
		dmsetup clear "${PREFIX}snap"
		dmsetup clear "${PREFIX}origin"
	done
	equal "$(opens d) $(opens c)" "$before" "how often DEV and COW are open"
	unchanged snap "after all these tables"
	dm_remove snap
	equal "$(opens c)" 0 "how often COW is open, with SNAP removed"
	dm_remove origin
	equal "$(opens d)" 0 "how often DEV is open, with ORIGIN removed"
}

run_tests "$@"
