#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The order in which a merge reads COW, writes DEV, and takes the records away, and
# what I/O of the merging device may do meanwhile, seen with devices that stall.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=stall.sh
. "$LIB_DIR/stall.sh"

# With chunks of 4 KiB chunk 0 of COW holds the header, chunk 1 the records, and
# data begins with chunk 2.  The snapshot has three exceptions, so that the old data
# of DEV's blocks 0, 8 and 16 is in COW's blocks 2, 3 and 4; DEV has new data there.

# setup_merge - makes this snapshot; it is not live any more.
setup_merge() {
	setup P
	put origin 0 1 n
	put origin 8 1 n
	put origin 16 1 n
	dm_remove snap
	set_mark
}

# merge - the origin's device begins to merge.
merge() {
	merge_reload origin "${NBD[dev]}" "${NBD[cow]}" P 8
}

# let_all_go - nothing is held any more.
let_all_go() {
	stall unhold
	stall release all
}

# all_merged [BLOCK LETTER] - waits for the end of the merge; all has the old data
# then, but for one block that was written meanwhile.
all_merged() {
	local want=ooooooooooooooooooooo
	wait_merged origin "$WAIT"
	(($# == 0)) || want=${want:0:$1}$2${want:$1+1}
	shows origin 0 "$want"
	dm_remove origin
	linear_create plain "${NBD[dev]}"
	shows plain 0 "$want"
	equal "$(cow_py check "${NBD[cow]}" 32768)" "0 valid" "the records"
}

# held N DEVICE WHAT - waits until N requests of a device are held.
held() {
	stall wait-held "$1" "$WAIT" "$2" || {
		show_log
		fail "$3"
	}
}

# not_seen OP DEVICE BLOCK COUNT WHAT - fails when such a request begins.
not_seen() {
	if seen begin "$1" "$2" "$3" "$4" "$GRACE"; then
		show_log
		fail "$5"
	fi
	[[ $ANSWER == *"no begin of such a $1" ]] || fail "$ANSWER"
}

test_data_is_durable_before_a_record_is_taken_away() {
	setup_merge
	stall hold write dev $((16 * 4096)) 4096
	merge
	held 1 dev "the merge does not write block 16"
	not_seen write cow 1 1 "a record was taken away before its data was written"
	let_all_go
	wait_merged origin "$WAIT"
	seen end write dev 16 1
	data=$SEEN
	seen begin write cow 1 1
	# Between the two, a flush of DEV; and the record is durable itself.
	stall log "$mark"
	awk -v data="$data" -v record="$SEEN" '
		$5 == "dev" && $4 == "flush" && $2 == "begin" && $1 > data { begun = 1 }
		$5 == "dev" && $4 == "flush" && $2 == "end" && begun && $1 < record { flushed = 1 }
		$1 == record && / fua$/ { durable = 1 }
		$1 > record && $5 == "cow" && $4 == "flush" && $2 == "end" { durable = 1 }
		END { exit !(flushed && durable) }' <<<"$ANSWER" || {
		show_log
		fail "not in the order of data, flush of DEV, record, flush of COW"
	}
	all_merged
}

test_copies_go_on_when_a_merge_begins() {
	# Chunks of 512 bytes: the records are more than the zeroed areas have places for.
	session
	origin_create origin "${NBD[dev]}"
	snap_add origin snap "${NBD[dev]}" "${NBD[cow]}" P 1
	set_mark
	stall hold write cow 1024 $((1 << 20))
	start write put origin 0 16 n
	start other put origin 16 16 n
	held 2 cow "no copies are written"
	dm_suspend snap
	dm_load origin "$(merge_table "${NBD[dev]}" "${NBD[cow]}" P 1)"
	# The writes are given back, and the copies go on.
	dm_suspend origin --noflush --nolockfs
	start resume dm_resume origin
	# It waits for them, and by then no other areas are wanted.
	sleep "$GRACE"
	running resume
	let_all_go
	finished resume
	wait_merged origin "$WAIT"
	finished write
	finished other
	shows origin 0 nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnno
	dm_remove snap origin
}

test_a_held_flush_of_dev_holds_the_records() {
	setup_merge
	stall hold flush dev 0 0
	merge
	held 1 dev "the merge does not flush DEV"
	not_seen write cow 1 1 "a record was taken away before DEV was flushed"
	let_all_go
	all_merged
}

test_read_of_a_chunk_that_is_being_written() {
	# It is answered from COW, and waits for nobody.
	setup_merge
	stall hold write dev $((16 * 4096)) 4096
	merge
	held 1 dev "the merge does not write block 16"
	shows origin 16 o
	shows origin 0 ooooooooooooooooooooo
	let_all_go
	all_merged
}

# write_meanwhile OP DEVICE BLOCK - a write to block 16 while this request of its
# merge is held.
write_meanwhile() {
	setup_merge
	stall hold "$1" "$2" $(($3 * 4096)) 4096
	merge
	held 1 "$2" "no $1 of $2"
	start writer put origin 16 1 s
	not_seen write cow 4 1 "it goes to COW, where it would be lost"
	running writer
	let_all_go
	finished writer
	all_merged 16 s
}

test_write_to_a_chunk_that_is_being_read() { write_meanwhile read cow 4; }

test_write_to_a_chunk_that_is_being_written() { write_meanwhile write dev 16; }

test_write_to_a_chunk_that_is_being_flushed() { write_meanwhile flush dev 0; }

test_write_to_a_chunk_whose_record_is_not_durably_gone() {
	# If the write went to DEV now, a crash would have the chunk merged once more,
	# over what was acknowledged.
	setup_merge
	stall hold write cow 4096 4096
	merge
	held 1 cow "no record is taken away"
	set_mark
	start writer put origin 16 1 s
	not_seen write dev 16 1 "the write reached DEV before the record was gone"
	running writer
	let_all_go
	finished writer
	all_merged 16 s
}

test_writes_to_other_chunks_pass_meanwhile() {
	setup_merge
	stall hold write dev $((16 * 4096)) 4096
	merge
	held 1 dev "the merge does not write block 16"
	put origin 5 1 s
	put origin 17 2 s
	shows origin 5 s
	shows origin 15 oossoo
	let_all_go
	put origin 17 2 o
	all_merged 5 s
}

test_write_to_a_chunk_that_is_not_merged_yet() {
	# It is merged later than others, or together with them: either is right, but
	# what was written is there in the end.
	setup_merge
	stall hold read cow $((4 * 4096)) 4096 1
	merge
	held 1 cow "the merge does not read COW"
	stall hold write cow $((2 * 4096)) 4096 1
	start writer put origin 0 1 s
	if seen begin write cow 2 1 2; then
		# It is on its way to COW: the merge must not read that before its end.
		set_mark
		stall list
		stall release "$(awk '$3 == "cow" && $2 == "read" { print $1 }' <<<"$ANSWER")"
		not_seen read cow 2 1 "the merge read what is just being written"
	fi
	let_all_go
	finished writer
	all_merged 0 s
}

test_a_part_of_a_chunk_that_is_not_merged_yet() {
	setup_merge
	stall hold read cow $((4 * 4096)) 4096 1
	merge
	held 1 cow "the merge does not read COW"
	start writer dd if="$TMP/data.s" of="$(path origin)" bs=512 count=3 seek=2 \
		oflag=direct conv=notrunc status=none
	sleep "$GRACE"
	let_all_go
	finished writer
	wait_merged origin "$WAIT"
	equal "$(dd if="$(path origin)" bs=4K count=1 iflag=direct status=none | tr -s os)" oso "block 0"
	dm_remove origin
	linear_create plain "${NBD[dev]}"
	equal "$(dd if="$(path plain)" bs=4K count=1 iflag=direct status=none | tr -s os)" oso "block 0 of DEV"
}

test_a_flush_goes_to_both_devices() {
	setup_merge
	stall hold read cow $((2 * 4096)) $((3 * 4096))
	merge
	held 1 cow "the merge does not read COW"
	set_mark
	# Without data fsync is a flush and nothing else.
	dd if=/dev/null of="$(path origin)" count=0 conv=notrunc,fsync status=none
	seen end flush dev 0 0 || fail "no flush of DEV"
	seen end flush cow 0 0 || fail "no flush of COW"
	let_all_go
	all_merged
}

test_suspend_waits_for_what_is_under_way() {
	setup_merge
	stall hold write dev $((16 * 4096)) 4096
	merge
	held 1 dev "the merge does not write block 16"
	start suspend dm_suspend origin
	sleep "$GRACE"
	running suspend
	let_all_go
	finished suspend
	set_mark
	sleep "$GRACE"
	stall log "$mark"
	equal "$ANSWER" "" "requests while it is suspended"
	dm_resume origin
	all_merged
}

test_removal_waits_for_what_is_under_way() {
	setup_merge
	stall hold write dev $((16 * 4096)) 4096
	merge
	held 1 dev "the merge does not write block 16"
	start removal dm_remove origin
	sleep "$GRACE"
	running removal
	let_all_go
	finished removal
	# What was not merged is still on COW.
	snap_create snap "${NBD[dev]}" "${NBD[cow]}" P 8
	shows snap 0 ooooooooooooooooooooo
	dm_remove snap
	merge_create origin "${NBD[dev]}" "${NBD[cow]}" P 8
	all_merged
}

test_a_read_of_another_snapshot_is_out() {
	# R1 holds for what the merge writes as well.
	setup_merge
	setup_second P 1
	held_read reader snap2 16 1
	# The resume may wait for what the merge waits for.
	start resume merge
	not_written 16 1
	let_go reader
	was_read reader n
	follows_merge reader
	finished resume
	shows snap2 0 nooooooonooooooonoooo
	dm_remove snap2
	all_merged
}

# follows_merge READER - the merge's write of block 16 comes, and after the read.
follows_merge() {
	seen begin write dev 16 1 || {
		show_log
		fail "the merge does not go on"
	}
	# shellcheck disable=SC2086
	ended_before ${HELD[$1]}
}

test_the_copy_for_another_snapshot_comes_first() {
	setup_merge
	setup_second P 1
	# Chunk 1 holds its records.
	stall hold write cow2 4096 4096
	start resume merge
	held 1 cow2 "nothing is saved for the other snapshot"
	not_written 0 21 "before the record of the other snapshot was durable"
	let_all_go
	finished resume
	wait_merged origin "$WAIT"
	shows snap2 0 nooooooonooooooonoooo
	dm_remove snap2
	all_merged
}

# failing OP DEVICE BLOCK - one request of the merge fails, while a write to a chunk
# of the batch waits: it ends, in whichever way, and if it succeeds it is kept.
failing() {
	local rc want=o
	setup_merge
	stall hold "$1" "$2" $(($3 * 4096)) 4096 1
	merge
	held 1 "$2" "no $1 of $2"
	start writer put origin 16 1 s
	sleep "$GRACE"
	stall unhold
	stall fail all
	wait_for 45 status_is origin "Merge failed" || {
		show_log
		fail "the status is '$(status origin)'"
	}
	read -r -t "$WAIT" -u "${ENDED[writer]}" rc || fail "the write that waited does not end"
	say "the write that waited has ended with $rc"
	fetch origin 16 1
	if ((rc == 0)); then
		equal "$FETCHED" s "block 16 after a write that succeeded"
	fi
	want=$FETCHED
	shows origin 0 oooooooooooooooo
	shows origin 17 oooo
	# Elsewhere writes go on, and reads.
	put origin 30 2 s
	shows origin 29 osso
	put origin 30 2 o
	# What was read is what is merged in the end.
	dm_remove origin
	merge_create origin "${NBD[dev]}" "${NBD[cow]}" P 8
	shows origin 16 "$want"
	all_merged 16 "$want"
}

test_a_read_of_cow_fails() { failing read cow 4; }

test_a_write_of_dev_fails() { failing write dev 16; }

test_a_flush_of_dev_fails() { failing flush dev 0; }

test_a_write_of_the_records_fails() {
	# Nobody knows whether they are gone.  The server has not done the write, but
	# might have: after either, a write that was acknowledged must be there.
	failing write cow 1
}

stall_tests "$@"
