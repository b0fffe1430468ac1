#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# What the administrator has chosen for a full COW device: the writes wait until it
# has grown, or they fail, or the snapshot is given up; and the low-water mark that
# tells before it comes to that.  (What comes without any choice: full.sh.)

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

TIMEOUT=/sys/module/dm_snap_rs/parameters/no_space_timeout
QUEUE=queue_if_no_space
ERROR=error_if_no_space

# remove_first - a test that failed may have changed the time-out.
remove_first() {
	[ ! -e "$TIMEOUT" ] || echo 60 >"$TIMEOUT"
}

# devices - DEV of 16 MiB with a pattern whose checksum is in SUM, ORIGIN, and a COW
# of 1024 sectors that can grow: with chunks of 4 KiB there is room for 126 of them
# beside the metadata, or for 128 of a transient store.
devices() {
	dev=$(blk_create 16)
	space=$(blk_create 40)
	linear_create cow "$space" 1024
	cow=$(path cow)
	pattern "$dev" 1
	SUM=$(digest "$dev")
	origin_create origin "$dev"
}

# snap STORE [FEATURE]... - a snapshot of ORIGIN with chunks of 4 KiB.
snap() {
	snap_add origin snap "$dev" "$cow" "$1" 8 "${@:2}"
}

# grow SECTORS - COW has so many sectors from now on.
grow() {
	dm_load cow "$(linear_table "$space" "$1")"
	dm_resume cow
}

# write_blocks NAME FIRST COUNT [PER-WRITE] - writes blocks of 4 KiB, so many at a
# time.
write_blocks() {
	local each=${4:-1}
	dd if=/dev/urandom of="$(path "$1")" bs=$((each * 4096)) count=$(($3 / each)) \
		seek=$(($2 * 4096)) oflag=direct,seek_bytes iflag=fullblock conv=notrunc status=none
}

# events NAME - prints how many events of a device there have been.
events() {
	dmsetup info -c --noheadings -o events "$PREFIX$1" | tr -d ' '
}

# has_events NAME COUNT
has_events() {
	(($(events "$1") >= $2))
}

# logged MARK REGEX - prints when the kernel last logged such a line since the mark, in
# milliseconds.
logged() {
	dmesg | awk -v mark="dm-snap-rs-test: mark $1 $$" -v regex="$2" '
		index($0, mark) { n = 0 }
		$0 ~ regex { n = substr($0, 2) * 1000 }
		END { if (!n) exit 1; print int(n) }'
}

# is_full - true when SNAP has told that COW is full.
is_full() {
	log_has full 'device-mapper: snapshot-rs: COW device [0-9:]+ is full'
}

# start_writer NAME FIRST COUNT [PER-WRITE] - as write_blocks, in the background; its
# number is in WRITER.
start_writer() {
	write_blocks "$@" &
	WRITER=$!
}

# fills_up NAME FIRST COUNT [PER-WRITE] - the same, of more than there is room for;
# goes on when it waits.
fills_up() {
	log_mark full
	start_writer "$@"
	wait_for 20 is_full || fail "nothing was said of a full COW device: $(log_since full)"
	waits
}

# waits [SECONDS] - fails when the writer ends.
waits() {
	sleep "${1:-0.5}"
	kill -0 "$WRITER" 2>/dev/null || fail "the write has ended though there is no room"
}

# ends - the writer ends, without an error.
ends() {
	wait_for 120 eval "! kill -0 $WRITER 2>/dev/null" || fail "the write does not end"
	wait "$WRITER" || fail "the write failed"
}

# is_good NAME - SNAP is neither invalid nor overflowed.
is_good() {
	matches "$(status "$1")" '^[0-9]+/[0-9]+ [0-9]+$' "the status of $1"
}

# shows_old [NAME] - SNAP shows what DEV was.
shows_old() {
	equal "$(digest "$(path "${1:-snap}")")" "$SUM" "SNAP"
}

# no_space COMMAND... - fails unless the command ends with ENOSPC.
no_space() {
	local text
	if text=$("$@" 2>&1); then
		fail "there should have been no room: $*"
	fi
	[[ $text == *"No space left on device"* ]] || fail "this is not ENOSPC: $text"
}

# ---------------------------------------------------------------------------
# Table lines

test_tables_are_told_back() {
	local features
	devices
	for features in $QUEUE $ERROR low_water_mark:10 "$QUEUE low_water_mark:10" \
		"discard_zeroes_cow $ERROR" "discard_zeroes_cow discard_passdown_origin $QUEUE low_water_mark:0"; do
		new_cow "$cow"
		# shellcheck disable=SC2086
		snap P $features
		# shellcheck disable=SC2086
		matches "$(table snap)" " P 8 $(set -- $features && echo $#) $features\$" "the table"
		equal "$(status snap)" "16/1024 16" "the status"
		dm_remove snap
	done
	new_cow "$cow"
	snap P LOW_WATER_MARK:7 Queue_If_No_Space
	matches "$(table snap)" " P 8 2 $QUEUE low_water_mark:7\$" "the table of large letters"
	dm_remove snap
	snap P "$QUEUE" "$QUEUE"
	matches "$(table snap)" " P 8 1 $QUEUE\$" "the table of the same word twice"
}

test_a_device_that_is_gone_is_not_full() {
	# The snapshot is given up: ORIGIN must not wait for room, nor fail.
	local policy folder
	for policy in "$ERROR" "$QUEUE"; do
		devices
		cow=$(blk_create 8)
		snap N "$policy"
		folder=$(blk_config "$cow")
		echo 0 >"$folder/power"
		write_blocks origin 0 16
		wait_for 20 status_is snap Invalid || fail "the status is '$(status snap)' with $policy"
		dm_remove snap origin cow
		rmdir "$folder"
	done
}

# ---------------------------------------------------------------------------
# queue_if_no_space

# queue_origin STORE - writes to ORIGIN wait, and go on when COW has grown.
queue_origin() {
	local now
	devices
	snap "$1" "$QUEUE"
	fills_up origin 0 200
	equal "$(events snap)" 1 "the events"
	is_good snap
	waits 2
	# What needs no room goes on.
	write_blocks origin 0 64 16
	shows_old
	dd if="$(path origin)" of=/dev/null bs=1M iflag=direct status=none
	equal "$(events snap)" 1 "the events"
	grow 4096
	ends
	write_blocks origin 1000 20
	is_good snap
	matches "$(status snap)" '^[0-9]+/4096 ' "the status of a grown one"
	shows_old
	equal "$(digest "$dev")" "$(digest "$(path origin)")" "ORIGIN"
	[ "$1" = N ] && return
	dm_remove snap
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "220 valid" "the records"
	snap "$1"
	shows_old
	now=$(digest "$dev")
	[ "$now" != "$SUM" ]
}

test_origin_writes_wait_p() { queue_origin P; }

test_origin_writes_wait_po() { queue_origin PO; }

test_origin_writes_wait_n() { queue_origin N; }

test_large_origin_writes_wait() {
	# One write of which a part has room, and which crosses the border of spans.
	devices
	snap P "$QUEUE"
	fills_up origin 192 256 256
	shows_old
	grow 8192
	ends
	shows_old
	dm_remove snap
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "256 valid" "the records"
}

# queue_snap STORE - writes to SNAP wait, of whole chunks and of parts.
queue_snap() {
	local part
	devices
	snap "$1" "$QUEUE"
	fills_up snap 0 200
	equal "$(events snap)" 1 "the events"
	is_good snap
	dd if=/dev/urandom of="$(path snap)" bs=512 count=1 seek=24003 oflag=direct status=none &
	part=$!
	waits 1
	kill -0 "$part" || fail "the write of a part of a chunk has ended though there is no room"
	dd if="$(path snap)" of=/dev/null bs=1M iflag=direct status=none
	grow 4096
	ends
	wait "$part"
	is_good snap
	equal "$(digest "$(path origin)")" "$SUM" "ORIGIN"
	equal "$(digest "$(path snap)" 1600 22403)" "$(digest "$dev" 1600 22403)" "SNAP, where nothing was written"
	equal "$(digest "$(path snap)" 24004 8764)" "$(digest "$dev" 24004 8764)" "SNAP behind the part"
	[ "$(digest "$(path snap)" 24003 1)" != "$(digest "$dev" 24003 1)" ]
}

test_snap_writes_wait_p() { queue_snap P; }

test_snap_writes_wait_po() { queue_snap PO; }

test_snap_writes_wait_n() { queue_snap N; }

test_load_while_cow_is_full_again_and_again() {
	local size load before
	devices
	snap P "$QUEUE"
	log_mark full
	note "seed ${before:=$RANDOM}"
	model_py run --seed "$before" --ops $((LOAD * 600)) --jobs 6 --max-io 65536 \
		--origin "$(path origin)" --snap "$(path snap)=" &
	load=$!
	for size in 2048 3072 4096 6144 8192 12288 16384 24576 32768 49152 65536; do
		wait_for 60 eval "is_full || ! kill -0 $load 2>/dev/null" || fail "neither full nor done"
		kill -0 "$load" 2>/dev/null || break
		log_mark full
		grow "$size"
	done
	wait "$load" || fail "the load found wrong data"
	((size > 8192)) || fail "COW was full only once or twice"
	is_good snap
}

test_time_out() {
	local store pid from to
	devices
	for store in PO N; do
		new_cow "$cow"
		snap "$store" "$QUEUE"
		echo 2 >"$TIMEOUT"
		log_mark full
		start_writer origin 0 200
		wait_for 30 status_is snap Invalid || fail "it is not given up: $(status snap)"
		from=$(logged full 'COW device .* is full: writes that need room')
		to=$(logged full 'COW device .* has not grown in time')
		((to - from >= 2000)) || fail "it was given up after $((to - from)) ms"
		ends
		wait_for 5 has_events snap 2 || fail "no event was raised"
		refused dd if="$(path snap)" of=/dev/null bs=4K count=1 iflag=direct status=none
		write_blocks origin 300 200
		equal "$(digest "$dev")" "$(digest "$(path origin)")" "ORIGIN"
		dm_remove snap
	done
	# A write of SNAP itself fails then, with each store.
	for store in P PO; do
		new_cow "$cow"
		snap "$store" "$QUEUE"
		write_blocks snap 0 200 2>/dev/null &
		pid=$!
		wait_for 30 eval "! kill -0 $pid 2>/dev/null" || fail "the write does not end"
		refused wait "$pid"
		equal "$(status snap)" Invalid "the status"
		dm_remove snap
	done
	equal "$(digest "$dev")" "$(digest "$(path origin)")" "ORIGIN"
}

test_no_time_out() {
	devices
	echo 1 >"$TIMEOUT"
	snap P "$QUEUE"
	echo 0 >"$TIMEOUT"
	fills_up origin 0 200
	waits 5
	is_good snap
	# It counts from then on, for those too that wait already.
	grow 4096
	ends
	shows_old
}

test_the_time_counts_anew_after_growth() {
	local from
	devices
	snap P "$QUEUE"
	echo 0 >"$TIMEOUT"
	fills_up origin 0 1000
	sleep 2
	log_mark full
	# Not enough.
	grow 2048
	wait_for 20 is_full || fail "it is not full again"
	echo 3 >"$TIMEOUT"
	from=$(logged full 'COW device .* is full: writes that need room')
	wait_for 30 status_is snap Invalid || fail "it is not given up: $(status snap)"
	(($(logged full 'has not grown in time') - from >= 3000)) || fail "it was given up too early"
	ends
}

test_a_merge_that_is_stopped_waits_no_longer() {
	# The time of a write that waits later begins anew.
	small_cows q
	grow 65536
	snap P
	write_blocks snap 0 300
	snap_add origin q "$dev" "$(path cow-q)" P 8 "$QUEUE"
	echo 0 >"$TIMEOUT"
	log_mark full
	dm_suspend snap
	merge_reload origin "$dev" "$cow" P 8
	wait_for 20 is_full || fail "the merge does not wait"
	dm_load origin "$(origin_table "$dev")"
	dm_resume origin
	fills_up origin 2000 200
	dm_remove q
	ends
}

# ---------------------------------------------------------------------------
# COW becomes smaller

test_nothing_is_written_behind_the_end() {
	# Areas were zeroed ahead there, and the next one would be.
	devices
	grow 32768
	snap P
	write_blocks origin 0 1
	grow 4112
	write_blocks origin 1 300
	is_good snap
	shows_old
	# When it grows again, other data may be there.
	dd if=/dev/urandom of="$space" bs=4112b seek=1 count=7 oflag=direct status=none
	grow 32768
	write_blocks origin 301 1000
	is_good snap
	dm_remove snap
	sound "$cow" "$dev"
	snap_create snap "$dev" "$cow" P 8
	shows_old
}

test_it_grows_again_before_anything_is_saved() {
	# The areas that were zeroed ahead are not there any more, as the status has seen.
	devices
	grow 32768
	snap P
	write_blocks origin 0 1
	sleep 1
	grow 4112
	equal "$(status snap)" "24/4112 16" "the status"
	dd if=/dev/urandom of="$space" bs=4112b seek=1 count=7 oflag=direct status=none
	grow 32768
	# The last block of the third area is full then.
	write_blocks origin 1 543
	dm_remove snap
	sound "$cow" "$dev"
	snap_create snap "$dev" "$cow" P 8
	shows_old
}

test_the_room_that_is_left_counts() {
	devices
	grow 2064
	snap P "$ERROR"
	grow 1600
	no_space write_blocks origin 0 300
	is_good snap
	shows_old
}

# ---------------------------------------------------------------------------
# Devices with waiting writes are suspended, reloaded and removed

test_suspend_of_origin_without_flush() {
	devices
	snap P "$QUEUE"
	fills_up origin 0 200
	within 20 dmsetup suspend --noflush --nolockfs "${PREFIX}origin" || fail "it cannot be suspended"
	waits 1
	dm_resume origin
	# There is still no room.
	waits 1
	is_good snap
	dm_suspend origin --noflush --nolockfs
	grow 4096
	waits 1
	dm_resume origin
	ends
	shows_old
	equal "$(digest "$dev")" "$(digest "$(path origin)")" "ORIGIN"
}

test_suspend_of_snap_without_flush() {
	devices
	snap P "$QUEUE"
	fills_up snap 0 200
	within 20 dmsetup suspend --noflush --nolockfs "${PREFIX}snap" || fail "it cannot be suspended"
	waits 1
	dm_resume snap
	waits 1
	is_good snap
	dm_suspend snap --noflush --nolockfs
	grow 4096
	dm_resume snap
	ends
	is_good snap
	equal "$(digest "$(path snap)" 1600)" "$(digest "$dev" 1600)" "SNAP, where nothing was written"
}

test_suspends_while_writes_come() {
	# A write that comes just when the device is being suspended must not wait
	# where nobody gives it back.
	local i name pids=()
	devices
	snap P "$QUEUE"
	fills_up origin 0 200
	for name in origin snap; do
		for ((i = 0; i < 12; i++)); do
			pids+=("$(burst "$name" $((400 + i * 40)))")
			within 20 dmsetup suspend --noflush --nolockfs "$PREFIX$name" ||
				fail "$name cannot be suspended, attempt $i"
			dm_resume "$name"
		done
	done
	grow 65536
	ends
	for i in "${pids[@]}"; do
		wait_for 120 eval "! kill -0 $i 2>/dev/null" || fail "a write does not end"
	done
	[ ! -s "$TMP/burst" ] || fail "a write has failed: $(<"$TMP/burst")"
	for name in origin snap; do
		dd if="$(path "$name")" bs=4K skip=400 count=480 iflag=direct status=none |
			cmp -n $((480 * 4096)) - /dev/zero
	done
	is_good snap
}

# burst NAME FIRST - begins 40 writes of zeroes one after the other, without waiting for them;
# prints the number of the process. What goes wrong is told in $TMP/burst.
burst() {
	python3 - "$(path "$1")" "$2" 2>>"$TMP/burst" >"$TMP/burst.out" <<'EOP' &
import mmap, os, sys, threading, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
def write(block):
    os.pwrite(fd, page, block * 4096)
threads = [threading.Thread(target=write, args=(int(sys.argv[2]) + i,)) for i in range(40)]
for thread in threads:
    thread.start()
    time.sleep(0.002)
for thread in threads:
    thread.join()
EOP
	echo $!
}

test_a_suspend_with_flush_waits_for_the_time_out() {
	devices
	snap P "$QUEUE"
	echo 3 >"$TIMEOUT"
	fills_up origin 0 200
	within 30 dmsetup suspend --nolockfs "${PREFIX}origin" || fail "it cannot be suspended"
	equal "$(status snap)" Invalid "the status"
	dm_resume origin
	ends
}

test_removal_of_snap_lets_the_origin_go() {
	devices
	snap P "$QUEUE"
	fills_up origin 0 200
	dm_remove snap
	ends
	equal "$(digest "$dev")" "$(digest "$(path origin)")" "ORIGIN"
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "126 valid" "the records"
}

test_deferred_removal_of_snap() {
	devices
	snap P "$QUEUE"
	fills_up snap 0 200
	dmsetup remove --deferred "${PREFIX}snap"
	waits 1
	grow 4096
	ends
	wait_for 10 eval '! dm_exists snap' || fail "it is still there"
	equal "$(cow_py check "$cow" "$(sectors "$dev")")" "200 valid" "the records"
}

test_forced_removal() {
	# An error target takes the place of the device: its writes fail.
	local name
	devices
	for name in snap origin; do
		new_cow "$cow"
		snap P "$QUEUE"
		log_mark full
		write_blocks "$name" 0 200 2>/dev/null &
		WRITER=$!
		wait_for 20 is_full || fail "it is not full"
		within 30 dmsetup wipe_table --noflush --nolockfs "$PREFIX$name" ||
			fail "$name cannot be wiped"
		wait_for 20 eval "! kill -0 $WRITER 2>/dev/null" || fail "the write does not end"
		refused wait "$WRITER"
		[ "$name" = origin ] || dm_remove snap
	done
	is_good snap
	shows_old
}

test_another_policy_while_writes_wait() {
	# The new one holds for what waits already.
	devices
	snap P "$QUEUE"
	log_mark full
	no_space write_blocks snap 0 200 &
	WRITER=$!
	wait_for 20 is_full || fail "it is not full"
	waits
	dm_load snap "$(snap_table "$dev" "$cow" P 8 "$ERROR")"
	dm_suspend snap --noflush --nolockfs
	dm_resume snap
	ends
	is_good snap
	matches "$(table snap)" " P 8 1 $ERROR\$" "the table"
	no_space write_blocks origin 2000 1
}

test_another_policy_while_origin_writes_wait() {
	devices
	snap P "$QUEUE"
	log_mark full
	no_space write_blocks origin 0 200 &
	WRITER=$!
	wait_for 20 is_full || fail "it is not full"
	waits
	dm_load snap "$(snap_table "$dev" "$cow" P 8 "$ERROR")"
	dm_suspend snap
	dm_resume snap
	ends
	is_good snap
	shows_old
}

# ---------------------------------------------------------------------------
# error_if_no_space

# error_origin STORE - a write to ORIGIN fails, and everything else is as before.
error_origin() {
	local now
	devices
	snap "$1" "$ERROR"
	no_space write_blocks origin 0 200
	is_good snap
	shows_old
	# A write in one piece leaves all of DEV as it was.
	now=$(digest "$dev")
	no_space write_blocks origin 1000 32 32
	equal "$(digest "$dev")" "$now" "DEV after a write that was refused"
	# It tells once.
	equal "$(events snap)" 1 "the events"
	write_blocks origin 0 100 50
	shows_old
	no_space write_blocks snap 2000 1
	is_good snap
	grow 4096
	write_blocks origin 1000 32 32
	shows_old
	no_space write_blocks origin 2000 400
	equal "$(events snap)" 2 "the events, full again"
	shows_old
	dm_suspend snap
	dm_resume snap
	is_good snap
	[ "$1" = N ] && return
	dm_remove snap
	sound "$cow" "$dev"
	snap "$1" "$ERROR"
	shows_old
}

test_origin_writes_fail_p() { error_origin P; }

test_origin_writes_fail_n() { error_origin N; }

# error_snap STORE - writes to SNAP fail.
error_snap() {
	local now
	devices
	snap "$1" "$ERROR"
	no_space write_blocks snap 0 200
	is_good snap
	now=$(digest "$(path snap)")
	no_space write_blocks snap 1000 1
	# A part of a chunk, too.
	no_space dd if=/dev/urandom of="$(path snap)" bs=512 count=1 seek=24003 oflag=direct status=none
	equal "$(digest "$(path snap)")" "$now" "SNAP"
	equal "$(digest "$dev")" "$SUM" "DEV"
	no_space write_blocks origin 3000 1
	equal "$(digest "$dev")" "$SUM" "DEV after a write that was refused"
	write_blocks origin 0 64
	equal "$(digest "$(path snap)")" "$now" "SNAP after a write to ORIGIN"
	grow 4096
	write_blocks snap 1000 1
	is_good snap
}

test_snap_writes_fail_p() { error_snap P; }

test_snap_writes_fail_po() { error_snap PO; }

test_snap_writes_fail_n() { error_snap N; }

test_other_snapshots_after_a_refused_write() {
	local other store more
	for store in P N; do
		devices
		other=$(blk_create 40) more=$(blk_create 40)
		snap P "$ERROR"
		snap_add origin other "$dev" "$other" "$store" 32
		snap_add origin more "$dev" "$more" P 8
		no_space write_blocks origin 0 200
		no_space write_blocks origin 1000 32 32
		shows_old
		shows_old other
		shows_old more
		grow 65536
		pattern "$(path origin)" 7
		shows_old
		shows_old other
		shows_old more
		dm_remove other more snap
		equal "$(cow_py check "$more" "$(sectors "$dev")")" "4096 valid" "the records"
		dm_remove origin cow
	done
}

# small_cows NAME... - the devices, and for each name a COW device of 512 KiB more.
small_cows() {
	local name
	devices
	for name; do
		linear_create "cow-$name" "$(blk_create 2)" 1024
	done
}

test_a_refused_write_waits_for_nobody() {
	# The time of the one that would have it wait does not begin.
	small_cows a b
	snap_add origin a "$dev" "$(path cow-a)" P 8 "$QUEUE"
	snap_add origin b "$dev" "$(path cow-b)" P 8 "$ERROR"
	log_mark refused
	no_space write_blocks origin 0 200
	no_space write_blocks origin 0 200
	refused log_has refused 'wait until it has grown'
	is_good a
	is_good b
	dm_remove b
	start_writer origin 0 200
	waits
	log_has refused 'wait until it has grown' || fail "nothing is said"
	dm_remove a
	ends
}

test_each_snapshot_that_refuses_tells_so() {
	small_cows a b
	snap_add origin a "$dev" "$(path cow-a)" P 8 "$ERROR"
	snap_add origin b "$dev" "$(path cow-b)" P 8 "$ERROR"
	no_space write_blocks origin 0 200
	has_events a 1 || fail "no event of the one"
	has_events b 1 || fail "no event of the other"
}

test_each_snapshot_has_its_own_policy() {
	# One waits, one fails, one is given up.
	local name
	small_cows a b c
	snap_add origin a "$dev" "$(path cow-a)" P 8
	snap_add origin b "$dev" "$(path cow-b)" P 8 "$ERROR"
	snap_add origin c "$dev" "$(path cow-c)" P 8 "$QUEUE"
	no_space write_blocks origin 0 200
	for name in a b c; do
		is_good "$name"
		shows_old "$name"
	done
	dm_remove b
	start_writer origin 0 200
	wait_for 20 has_events c 1 || fail "no event"
	waits
	equal "$(status a)" Invalid "the status of the one that is given up"
	shows_old c
	dm_remove c
	ends
}

# ---------------------------------------------------------------------------
# Neither

test_given_up_without_a_choice() {
	local store
	devices
	for store in P PO N; do
		new_cow "$cow"
		snap "$store"
		write_blocks origin 0 200
		matches "$(status snap)" '^(Invalid|Overflow)$' "the status of $store"
		wait_for 5 has_events snap 1 || fail "no event was raised"
		dm_remove snap
	done
}

test_overflow_is_only_without_a_choice() {
	devices
	snap PO
	refused write_blocks snap 0 200
	equal "$(status snap)" Overflow "the status"
	wait_for 5 has_events snap 1 || fail "no event was raised"
}

# ---------------------------------------------------------------------------
# low_water_mark

# low STORE FREE - with a mark of 25, and FREE chunks in all.
low() {
	devices
	snap "$1" "$QUEUE" low_water_mark:25
	write_blocks origin 0 $(($2 - 26))
	sleep 0.5
	equal "$(events snap)" 0 "the events, one chunk above the mark"
	log_mark low
	write_blocks origin $(($2 - 26)) 1
	wait_for 5 has_events snap 1 || fail "no event at the mark"
	log_has low 'COW device [0-9:]+ has no more than 25 free chunks' || fail "the log says nothing"
	write_blocks origin $(($2 - 25)) 10
	sleep 0.5
	equal "$(events snap)" 1 "the events below the mark"
	is_good snap
	# From 1024 sectors to 1120: 12 chunks more, so 27 are free, then 26, then 25.
	grow 1120
	write_blocks origin $(($2 - 15)) 1
	sleep 0.5
	equal "$(events snap)" 1 "the events after growth"
	write_blocks origin $(($2 - 14)) 1
	wait_for 5 has_events snap 2 || fail "no event at the mark, the second time"
	write_blocks origin $(($2 - 13)) 20
	sleep 0.5
	equal "$(events snap)" 2 "the events in the end"
	shows_old
}

test_low_water_mark_p() { low P 126; }

test_low_water_mark_n() { low N 128; }

test_low_water_mark_crossed_at_once_after_growth() {
	# More chunks are taken by one write than there were above the mark.
	devices
	snap P low_water_mark:25
	write_blocks origin 0 111
	wait_for 5 has_events snap 1 || fail "no event at the mark"
	grow 1120
	write_blocks origin 111 10 10
	wait_for 5 has_events snap 2 || fail "no event at the mark, the second time"
}

test_low_water_mark_by_snap_writes() {
	local pid
	devices
	snap P low_water_mark:25
	dmsetup wait "${PREFIX}snap" &
	pid=$!
	write_blocks snap 0 64 16
	sleep 0.5
	kill -0 "$pid" || fail "an event above the mark"
	write_blocks snap 64 48 16
	wait_for 10 eval "! kill -0 $pid 2>/dev/null" || fail "dmsetup wait goes on"
	sleep 0.5
	equal "$(events snap)" 1 "the events"
}

test_low_water_mark_from_the_beginning() {
	# A mark above what there is: the first chunk tells.  None at all says nothing.
	devices
	snap P low_water_mark:1000
	write_blocks origin 0 1
	wait_for 5 has_events snap 1 || fail "no event"
	dm_remove snap
	new_cow "$cow"
	snap P low_water_mark:0
	write_blocks origin 200 100
	sleep 0.5
	equal "$(events snap)" 0 "the events without a mark"
}

run_tests "$@"
