#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The race between a snapshot read that was sent to DEV and an origin write to the
# same place.  However long the read takes, it returns the old data, and the write
# reaches DEV only after it, and then at once.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=stall.sh
. "$LIB_DIR/stall.sh"

# race STORE - the race itself, with an exception that is made by a copy.
race() {
	setup "$1"
	held_read reader snap 0 1
	start writer put origin 0 1 n
	covered snap 0 o
	not_written 0 1
	running writer
	running reader
	let_go reader
	follows writer 0 1 reader
	was_read reader o
	shows origin 0 no
	shows snap 0 oo
}

test_persistent_origin_write_waits_for_read() { race P; }

test_transient_origin_write_waits_for_read() { race N; }

# race_own_write STORE - the same with an exception that is made by the snapshot's
# own write of a whole chunk: nothing is copied, and still the read is out.
race_own_write() {
	setup "$1"
	held_read reader snap 0 1
	start "snapshot writer" put snap 0 1 s
	covered snap 0 s
	start writer put origin 0 1 n
	not_written 0 1
	running writer
	running reader
	let_go reader
	follows writer 0 1 reader
	was_read reader o
	finished "snapshot writer"
	shows origin 0 no
	shows snap 0 so
}

test_persistent_own_write_does_not_free_the_chunk() { race_own_write P; }

test_transient_own_write_does_not_free_the_chunk() { race_own_write N; }

# The read is older than the write, and need not end before the write may.
test_own_write_ends_while_read_is_out() {
	on_c && skip "the C target lets the write wait for the read"
	setup P
	held_read reader snap 0 1
	start "snapshot writer" put snap 0 1 s
	finished "snapshot writer"
	running reader
	let_go reader
	was_read reader o
}

# race_two STORE FIRST SECOND - a held read of each of two snapshots, whose chunks
# differ in size; the readers are let go in the given order.
race_two() {
	setup "$1" 1
	setup_second "$1" 4
	held_read "reader of snap" snap 1 1
	held_read "reader of snap2" snap2 0 4
	start writer put origin 1 1 n
	covered snap 1 o
	covered snap2 0 oooo
	not_written 1 1 "while two reads were out"
	running writer
	let_go "reader of $2"
	was_read "reader of $2" "$4"
	not_written 1 1 "while the read of $3 was out"
	running writer
	let_go "reader of $3"
	follows writer 1 1 "reader of snap" "reader of snap2"
	was_read "reader of $3" "$5"
	shows origin 0 onoo
	shows snap 0 oooo
	shows snap2 0 oooo
}

test_two_persistent_snapshots_small_chunk_first() { race_two P snap snap2 o oooo; }

test_two_persistent_snapshots_large_chunk_first() { race_two P snap2 snap oooo o; }

test_two_transient_snapshots_small_chunk_first() { race_two N snap snap2 o oooo; }

test_two_transient_snapshots_large_chunk_first() { race_two N snap2 snap oooo o; }

# The snapshot that needs no copy any more counts too: its exception is complete,
# and only a read of the other holds the write back, and the other way round.
test_covered_in_one_snapshot_and_read_in_the_other() {
	setup P
	setup_second P 1
	put snap 0 1 s
	held_read reader snap2 0 1
	start writer put origin 0 1 n
	covered snap2 0 o
	not_written 0 1
	let_go reader
	follows writer 0 1 reader
	was_read reader o
	shows snap 0 s
}

# two_readers FIRST SECOND - two reads of one snapshot, one of 16 chunks and one of
# a single chunk among them.
two_readers() {
	local -A data=(["long reader"]=oooooooooooooooo ["short reader"]=o)
	setup P
	held_read "long reader" snap 0 16
	held_read "short reader" snap 10 1
	start writer put origin 10 1 n
	covered snap 10 o
	not_written 10 1 "while two reads were out"
	let_go "$1"
	was_read "$1" "${data[$1]}"
	not_written 10 1 "while the $2 was out"
	running writer
	let_go "$2"
	follows writer 10 1 "long reader" "short reader"
	was_read "$2" "${data[$2]}"
	shows origin 9 ono
}

test_two_readers_short_one_first() { two_readers "short reader" "long reader"; }

test_two_readers_long_one_first() { two_readers "long reader" "short reader"; }

# overlap READ-BLOCK READ-COUNT WRITE-BLOCK WRITE-COUNT SHARED-BLOCK SHARED-COUNT -
# a read and an origin write that share only some chunks.
overlap() {
	local i old='' new=''
	for ((i = 0; i < $2; i++)); do old+=o; done
	for ((i = 0; i < $4; i++)); do new+=n; done
	setup P
	held_read reader snap "$1" "$2"
	start writer put origin "$3" "$4" n
	# The C target completes one chunk after the other, each when no read is out.
	on_c || covered snap "$5" "${old:0:$6}"
	not_written "$5" "$6"
	running writer
	let_go reader
	follows writer "$5" "$6" reader
	was_read reader "$old"
	shows origin "$3" "$new"
	shows snap "$1" "$old"
	shows snap "$3" "${new//n/o}"
}

test_write_of_last_chunk_of_a_read() { overlap 0 16 15 1 15 1; }

test_write_across_the_end_of_a_read() { overlap 0 16 14 4 14 2; }

test_write_across_the_begin_of_a_read() { overlap 8 16 4 8 8 4; }

test_write_within_a_read() { overlap 0 16 5 3 5 3; }

test_write_around_a_read() { overlap 6 2 0 16 6 2; }

# 1 MiB is where bios are split whatever the chunks.
test_read_and_write_across_a_border_of_spans() { overlap 248 16 252 8 252 8; }

test_writes_elsewhere_pass() {
	setup P
	held_read reader snap 0 16
	put origin 16 1 n
	put origin 300 1 n
	shows snap 16 o
	running reader
	let_go reader
	was_read reader oooooooooooooooo
	shows origin 16 n
}

# What waits for a read must not block the copies of others.
test_writes_elsewhere_pass_behind_a_waiting_one() {
	on_c && skip "the C target sleeps in the thread that completes all copies"
	setup P
	held_read reader snap 0 1
	start writer put origin 0 1 n
	covered snap 0 o
	put origin 1 1 n
	put origin 300 1 n
	not_written 0 1
	let_go reader
	follows writer 0 1 reader
	was_read reader o
}

# Four pairs, let go from the last to the first.
test_each_write_follows_its_own_read() {
	local i
	on_c && skip "the C target sleeps in the thread that completes all copies"
	setup P
	for i in 0 1 2 3; do
		held_read "reader$i" snap "$i" 1
		start "writer$i" put origin "$i" 1 n
	done
	covered snap 0 oooo
	not_written 0 4
	for i in 3 2 1 0; do
		let_go "reader$i"
		follows "writer$i" "$i" 1 "reader$i"
		was_read "reader$i" o
		((i == 0)) || not_written 0 "$i"
	done
}

# Several writes of one place wait for one read, and end in some order.
test_several_writes_wait_for_one_read() {
	setup P
	held_read reader snap 0 1
	start writer1 put origin 0 1 n
	start writer2 put origin 0 1 n
	start writer3 put origin 0 1 n
	covered snap 0 o
	not_written 0 1
	let_go reader
	follows writer1 0 1 reader
	finished writer2
	finished writer3
	was_read reader o
	shows origin 0 n
}

# An exception that was complete before: the read goes to COW, and the write
# passes although COW holds the read.
test_read_of_cow_holds_nothing_back() {
	setup P
	put origin 0 1 n
	stall hold read cow 0 $((16 << 20))
	start reader get snap 0 1
	stall wait-held 1 "$WAIT"
	put origin 0 1 n
	running reader
	stall unhold
	stall release all
	was_read reader o
}

test_failed_read_lets_the_write_go() {
	setup P
	held_read reader snap 0 1
	start writer put origin 0 1 n
	covered snap 0 o
	not_written 0 1
	stall fail "${HELD[reader]}"
	follows writer 0 1 reader
	finished reader 1
	matches "$(status snap)" '^[0-9]+/[0-9]+ [0-9]+$' "the status"
	shows snap 0 o
	shows origin 0 n
}

stall_tests "$@"
