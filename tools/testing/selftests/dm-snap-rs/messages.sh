#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# Messages: the figures of known workloads are exact, and after "commit" the records
# can be read from the COW device of a live snapshot.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=stall.sh
. "$LIB_DIR/stall.sh"

if on_c; then
	ktap_print_header
	ktap_skip_all "the C target knows no messages"
	exit "$KSFT_SKIP"
fi

# devices - DEV of 16 MiB and two COW devices; ORIGIN.
devices() {
	dev=$(blk_create 16)
	cow=$(blk_create 40)
	other=$(blk_create 40)
	pattern "$dev" 1
	origin_create origin "$dev"
}

# snap STORE [CHUNK] - a snapshot of ORIGIN.
snap() {
	snap_add origin snap "$dev" "$cow" "$1" "${2:-8}"
}

# write_blocks NAME FIRST COUNT [STEP] - writes blocks of 4 KiB one by one, each STEP
# blocks after the last.
write_blocks() {
	model_py blocks "$(path "$1")" "$2" "$3" "${4:-1}"
}

# message NAME WORD... - sends a message and prints the answer.
message() {
	dmsetup message "$PREFIX$1" 0 "${@:2}"
}

# stats NAME - asks for the figures: FIGURE[name] is the rest of the line.
declare -A FIGURE
stats() {
	local name rest text
	text=$(message "$1" stats)
	FIGURE=()
	while read -r name rest; do
		FIGURE[$name]=$rest
	done <<<"$text"
}

# sum NAME - puts into SUM how often all buckets of a histogram were met.
sum() {
	local bucket
	SUM=0
	for bucket in ${FIGURE[$1]}; do
		[[ $bucket =~ ^'<'[0-9]+:[0-9]+$ ]] || fail "$1 has a bucket '$bucket'"
		SUM=$((SUM + ${bucket#*:}))
	done
}

# figures NAME FIGURE=VALUE... - fails unless the figures of a target are these; all
# that are not named, are 0.  That of a histogram is the sum of its buckets.
figures() {
	local name=$1 figure got
	local -A want=()
	shift
	for figure; do
		want[${figure%%=*}]=${figure#*=}
	done
	stats "$name"
	for figure in "${!want[@]}"; do
		[ -n "${FIGURE[$figure]+there}" ] || fail "$name has no figure $figure"
	done
	for figure in "${!FIGURE[@]}"; do
		got=${FIGURE[$figure]}
		if [[ $figure == *_us ]]; then
			sum "$figure"
			got=$SUM
		fi
		equal "$got" "${want[$figure]-0}" "$figure of $name"
	done
}

# committed RECORDS GENERATION [NAME] - "commit" answers this, and so many records are
# on the COW device then.
committed() {
	local chunk
	chunk=$(table "${3:-snap}" | cut -d ' ' -f 7)
	equal "$(message "${3:-snap}" commit)" "chunk_size $chunk records $1 generation $2" "the answer"
	equal "$(cow_py count "$cow")" "$1" "the records on COW"
}

# Of the reads of ORIGIN one in 16 is timed, the first being the first, and with it
# the copies that it is for.
timed() {
	echo $((($1 + 15) / 16))
}

test_names_of_the_figures() {
	devices
	snap P
	stats snap
	equal "$(message snap stats | cut -d ' ' -f 1 | tr '\n' ' ')" \
		"copies copied_chunks shared_reads own_runs own_chunks commits records metadata_bytes\
 merged_chunks merge_batches conflicts copy_us commit_us wait_us " "the figures of SNAP"
	equal "$(message origin stats | cut -d ' ' -f 1 | tr '\n' ' ')" \
		"reads read_sectors shared_reads conflicts throttled wait_us " "the figures of ORIGIN"
	figures snap
	figures origin
}

test_first_touches() {
	local commits bytes
	devices
	snap P
	# Every other block, so that no two could be one.
	write_blocks origin 0 50 2
	stats snap
	commits=${FIGURE[commits]} bytes=${FIGURE[metadata_bytes]}
	at_most "$commits" 50 "commits"
	((commits > 0)) || fail "no commits"
	# Each writes blocks of 512 bytes, and at least one.
	((bytes >= commits * 512 && bytes % 512 == 0)) || fail "$bytes bytes in $commits commits"
	figures snap copies=50 copied_chunks=50 records=50 commits="$commits" \
		metadata_bytes="$bytes" copy_us="$(timed 50)" commit_us="$(timed "$commits")"
	figures origin reads=50 read_sectors=400
	# Nothing more is to be done for what is saved.
	write_blocks origin 0 50 2
	dd if="$(path snap)" of=/dev/null bs=1M iflag=direct status=none
	figures snap copies=50 copied_chunks=50 records=50 commits="$commits" \
		metadata_bytes="$bytes" copy_us="$(timed 50)" commit_us="$(timed "$commits")"
	figures origin reads=50 read_sectors=400
	committed 50 0
}

test_first_touches_of_a_transient_snapshot() {
	devices
	snap N 32
	write_blocks origin 0 20 4
	figures snap copies=20 copied_chunks=20 copy_us="$(timed 20)"
	figures origin reads=20 read_sectors=640
}

test_a_large_write_is_one_copy() {
	devices
	snap P
	sequential write "$(path origin)" 3
	stats snap
	figures snap copies=3 copied_chunks=768 records=768 copy_us="$(timed 3)" commits="${FIGURE[commits]}" \
		metadata_bytes="${FIGURE[metadata_bytes]}" commit_us="$(timed "${FIGURE[commits]}")"
	figures origin reads=3 read_sectors=6144
}

test_one_read_serves_two_snapshots() {
	devices
	snap N
	snap_add origin snap2 "$dev" "$other" N 32
	write_blocks origin 0 10 4
	figures snap copies=10 copied_chunks=10 shared_reads=10 copy_us="$(timed 10)"
	figures snap2 copies=10 copied_chunks=10 shared_reads=10 copy_us="$(timed 10)"
	figures origin reads=10 read_sectors=320 shared_reads=10
	# The second one has saved its large chunks.
	write_blocks origin 1 10 4
	figures snap copies=20 copied_chunks=20 shared_reads=10 copy_us="$(timed 20)"
	figures snap2 copies=10 copied_chunks=10 shared_reads=10 copy_us="$(timed 10)"
	figures origin reads=20 read_sectors=400 shared_reads=10
}

test_own_writes() {
	devices
	snap N
	dd if=/dev/urandom of="$(path snap)" bs=64K count=4 oflag=direct status=none
	figures snap own_runs=4 own_chunks=64
	# Again: they have their places.
	dd if=/dev/urandom of="$(path snap)" bs=64K count=4 oflag=direct status=none
	figures snap own_runs=4 own_chunks=64
	figures origin
	# A part of a chunk takes a copy.
	dd if=/dev/urandom of="$(path snap)" bs=512 count=1 seek=1003 oflag=direct status=none
	figures snap own_runs=4 own_chunks=64 copies=1 copied_chunks=1 copy_us=1
	figures origin reads=1 read_sectors=8
}

test_commit_of_own_writes() {
	# Their records are put off, until they are asked for.
	devices
	snap P
	write_blocks snap 0 100 3
	committed 100 0
	write_blocks snap 1 7 3
	write_blocks origin 1000 3
	committed 110 0
	stats snap
	equal "${FIGURE[records]}" 110 "records"
	equal "${FIGURE[own_chunks]}" 107 "own_chunks"
	equal "${FIGURE[copied_chunks]}" 3 "copied_chunks"
	committed 110 0
	equal "$(message snap stats | grep ^records)" "records 110" "records"
}

test_commit_of_several_areas() {
	devices
	snap P 1
	write_blocks snap 0 20
	# A chunk of a sector has 32 records.
	committed 160 0
	dm_suspend snap
	committed 160 0
	dm_resume snap
	dm_remove snap
	snap P 1
	committed 160 0
}

test_reset_stats() {
	devices
	snap P
	write_blocks origin 0 5
	dd if=/dev/urandom of="$(path snap)" bs=512 count=1 seek=1003 oflag=direct status=none
	equal "$(message snap commit)" "chunk_size 8 records 6 generation 0" "the answer"
	equal "$(message snap reset_stats)" "" "the answer"
	figures snap
	stats origin
	equal "${FIGURE[reads]}" 6 "reads of ORIGIN, which has its own figures"
	equal "$(message origin reset_stats)" "" "the answer of ORIGIN"
	figures origin
	# The records are not gone.
	committed 6 0
	write_blocks origin 100 1
	figures origin reads=1 read_sectors=8
}

test_figures_of_a_load() {
	# In the end all sums are right.
	local seed=$RANDOM runs
	note "seed $seed"
	devices
	snap P
	model_py run --seed "$seed" --ops $((LOAD * 200)) --jobs 6 --max-io 65536 \
		--origin "$(path origin)" --snap "$(path snap)="
	runs=$(message snap commit | cut -d ' ' -f 4)
	stats snap
	sum copy_us
	((SUM > 0)) || fail "no copy was timed"
	at_most "$SUM" "${FIGURE[copies]}" "the copies of the histogram"
	sum commit_us
	equal "$SUM" "$(timed "${FIGURE[commits]}")" "the commits of the histogram"
	sum wait_us
	equal "$SUM" "${FIGURE[conflicts]}" "the waits of the histogram"
	equal "${FIGURE[records]}" "$runs" "the records"
	equal $((FIGURE[copied_chunks] + FIGURE[own_chunks])) "$runs" "the saved chunks"
	committed "$runs" 0
}

test_throttled_writes() {
	local parameter=/sys/module/dm_snap_rs/parameters/snapshot_cow_threshold before pids=() i
	devices
	linear_create cow "$cow"
	cow=$(path cow)
	snap N
	before=$(<"$parameter")
	echo 2 >"$parameter"
	dm_suspend cow
	for i in 0 1 2 3 4; do
		write_blocks origin $((i * 300)) 1 &
		pids+=($!)
	done
	# Two are being copied, three are over the bound.
	wait_for 30 eval 'stats origin; ((FIGURE[throttled] >= 3))' || fail "only ${FIGURE[throttled]} are"
	equal "${FIGURE[reads]}" 2 "reads while COW is suspended"
	dm_resume cow
	wait "${pids[@]}"
	echo "$before" >"$parameter"
	stats origin
	equal "${FIGURE[reads]}" 5 "reads"
	sum wait_us
	equal "$SUM" 3 "the waits of ORIGIN"
	equal "${FIGURE[conflicts]}" 0 "conflicts"
}

test_a_merge() {
	# Each batch takes records away, and a new generation begins.
	local disk text generation
	disk=$(blk_create 16 cache_size=1)
	dm_create dev "0 $(sectors "$disk") delay $disk 0 0 $disk 0 0 $disk 0 150"
	dev=$(path dev)
	cow=$(blk_create 40)
	pattern "$dev" 1
	cow_py make "$cow" "$(sectors "$dev")" --chunk 8 --count 2000 --seed 5
	snap_create snap "$dev" "$cow" P 8
	committed 2000 0
	dm_suspend snap
	merge_create origin "$dev" "$cow" P 8
	dm_remove snap
	wait_for 60 eval 'stats origin; ((FIGURE[merge_batches] > 0))' || fail "nothing is merged"
	text=$(message origin commit)
	matches "$text" '^chunk_size 8 records [0-9]+ generation [1-9][0-9]*$' "the answer"
	say "$text"
	refused message origin no_such_message
	dm_load dev "0 $(sectors "$disk") linear $disk 0"
	dm_resume dev
	wait_merged origin
	stats origin
	equal "${FIGURE[merged_chunks]}" 2000 "merged_chunks"
	generation=${FIGURE[merge_batches]}
	at_most "$generation" 200 "the batches"
	committed 0 "$generation" origin
}

# wrong REGEX NAME WORD... - the message is refused with EINVAL, and a line of the log
# that matches.
wrong() {
	local regex=$1
	shift
	log_mark wrong
	refused message "$@" 2>"$TMP/refused"
	grep -q "Invalid argument" "$TMP/refused" || fail "another error: $(<"$TMP/refused")"
	log_has wrong "^device-mapper: $regex" || fail "no line of the log matches /$regex/: $(log_since wrong)"
}

test_messages_that_are_not_known() {
	local known="allowed are stats, reset_stats, commit\$"
	devices
	snap P
	wrong "snapshot-rs: message 'no_such' is not known: $known" snap no_such
	wrong "snapshot-rs: message 'stat' is not known: $known" snap stat
	wrong "snapshot-rs: message 'statsx' is not known: $known" snap statsx
	wrong "snapshot-rs: wrong number of words in a message: 2 given, 1 needed" snap stats now
	wrong "snapshot-rs: wrong number of words in a message: 3 given, 1 needed" snap commit 1 2
	wrong "snapshot-rs: snap-origin-rs: message 'no_such' is not known: allowed are stats, reset_stats\$" origin no_such
	wrong "snapshot-rs: snap-origin-rs: message 'commit' is not known: allowed are stats, reset_stats\$" origin commit
	wrong "snapshot-rs: snap-origin-rs: wrong number of words in a message: 2 given, 1 needed" origin reset_stats now
	# As with all arguments, small letters are not asked for.
	matches "$(message snap STATS)" '^copies 0' "the answer"
	# They have changed nothing.
	write_blocks origin 0 3
	committed 3 0
}

test_messages_to_a_transient_snapshot() {
	devices
	snap N
	wrong "snapshot-rs: message 'commit': a snapshot of store type N has no records" snap commit
	write_blocks origin 0 3
	figures snap copies=3 copied_chunks=3 copy_us="$(timed 3)"
	message snap reset_stats
	figures snap
}

# not_committed WHY - the message commit fails, and the log says what the snapshot is.
not_committed() {
	log_mark commit
	refused message snap commit
	log_has commit "^device-mapper: snapshot-rs: message 'commit': the snapshot is $1" ||
		fail "no line in the log: $(log_since commit)"
}

test_messages_to_an_invalid_snapshot() {
	devices
	linear_create cow "$cow" 512
	cow=$(path cow)
	snap P
	write_blocks origin 0 100
	equal "$(status snap)" Invalid "the status"
	not_committed "invalid"
	stats snap
	# 64 chunks: the header, an area, and what there was room for.
	equal "${FIGURE[copies]} ${FIGURE[records]}" "62 62" "copies and records"
	message snap reset_stats
	figures snap
}

test_messages_to_a_snapshot_that_has_left() {
	# The table has been taken over by another device, which is gone: nothing is guarded.
	devices
	snap P
	dm_suspend snap
	snap_create snap2 "$dev" "$cow" P 8
	dm_remove snap2
	write_blocks origin 0 3
	not_committed "not in use"
	equal "$(status snap)" Invalid "the status"
}

# ---------------------------------------------------------------------------
# Conflicts, on devices whose requests stall

test_a_write_that_meets_a_read() {
	# All is saved, by the snapshot's own write, but an older read is still out.
	setup P
	held_read reader snap 0 1
	start "snapshot writer" put snap 0 1 s
	finished "snapshot writer"
	# The record is not what the write waits for.
	message snap commit
	start writer put origin 0 1 n
	wait_for 45 eval 'stats origin; ((FIGURE[conflicts] > 0))' || fail "no conflict is told"
	not_written 0 1
	figures origin conflicts=1
	let_go reader
	was_read reader o
	finished writer
	figures origin conflicts=1 wait_us=1
	figures snap own_runs=1 own_chunks=1 commits=1 records=1 metadata_bytes=512 commit_us=1
}

test_a_write_that_is_copied_for_and_meets_a_read() {
	setup N
	held_read reader snap 0 1
	start writer put origin 0 1 n
	covered snap 0 o
	not_written 0 1
	let_go reader
	was_read reader o
	finished writer
	# That it waited for its copy too, is none.
	figures origin reads=1 read_sectors=8 conflicts=1 wait_us=1
}

test_two_writes_of_one_chunk() {
	# The second waits for the copy of the first.
	setup P
	stall hold write cow 0 $((16 << 20))
	start writer1 put origin 0 1 n
	stall wait-held 1 "$WAIT"
	start writer2 put origin 0 1 n
	wait_for 45 eval 'stats origin; ((FIGURE[conflicts] > 0))' || fail "no conflict is told"
	stall unhold
	stall release all
	finished writer1
	finished writer2
	figures origin reads=1 read_sectors=8 conflicts=1 wait_us=1
	stats snap
	equal "${FIGURE[copies]} ${FIGURE[conflicts]}" "1 0" "copies and conflicts of SNAP"
}

test_a_snapshot_write_that_meets_a_copy() {
	setup P
	stall hold write cow 0 $((16 << 20))
	start writer put origin 0 1 n
	stall wait-held 1 "$WAIT"
	start "snapshot writer" put snap 0 1 s
	wait_for 45 eval 'stats snap; ((FIGURE[conflicts] > 0))' || fail "no conflict is told"
	running "snapshot writer"
	stall unhold
	stall release all
	finished writer
	finished "snapshot writer"
	stats snap
	equal "${FIGURE[copies]} ${FIGURE[conflicts]} ${FIGURE[own_runs]}" "1 1 0" "copies, conflicts, own_runs"
	sum wait_us
	equal "$SUM" 1 "the waits of SNAP"
	shows snap 0 s
	shows origin 0 n
}

stall_tests "$@"
