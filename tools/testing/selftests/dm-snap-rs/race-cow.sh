#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
#
# The order between COW and DEV: how far a copy must have come before the origin
# write reaches DEV, seen with a COW device that holds its writes.

# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=stall.sh
. "$LIB_DIR/stall.sh"

# hold_cow - holds all writes of COW from now on.
hold_cow() {
	stall hold write cow 0 $((16 << 20))
}

# stage N - waits for the next held write of COW, the Nth; its number is in STAGE.
stage() {
	stall wait-held 1 "$WAIT" cow || {
		show_log
		fail "there is no write number $1 of COW"
	}
	STAGE=${ANSWER%% *}
}

let_cow_go() {
	stall unhold
	stall release all
}

# With chunks of 4 KiB chunk 0 holds the header, chunk 1 the records, and data
# begins with chunk 2.

test_persistent_copy_is_durable_before_the_origin_write() {
	local data record
	setup P
	hold_cow
	start writer put origin 0 1 n
	stage 1
	not_written 0 1 "before the data was on COW"
	seen begin write cow 2 1000 || fail "the first write of COW is not the data"
	stall release all
	seen end write cow 2 1000
	data=$SEEN
	stage 2
	seen begin write cow 1 1 || fail "the second write of COW is not the record"
	record=$SEEN
	not_written 0 1 "before the record was on COW"
	running writer
	let_cow_go
	seen begin write dev 0 1 || fail "the origin write does not follow"
	finished writer
	# Data, flush, record, and the record itself with FUA or a flush of its own.
	stall log "$mark"
	awk -v data="$data" -v record="$record" -v at="$SEEN" '
		$1 == record { durable = / fua$/ ? "write" : "flush" }
		$5 != "cow" { next }
		$1 > data && $1 < record && $2 == "end" && $4 == "flush" { flushed = 1 }
		$1 > record && $1 < at && $2 == "end" && $4 == durable { done = 1 }
		END { exit !(flushed && done) }' <<<"$ANSWER" || {
		say "$ANSWER"
		fail "not in the order of data, flush, record, flush, origin write"
	}
	shows snap 0 o
	shows origin 0 n
}

# An own write makes an exception whose record may stay in memory for a while, but
# not beyond the first origin write to that chunk.
test_record_of_own_write_is_durable_before_the_origin_write() {
	setup P
	stall hold write cow 4096 4096
	start "snapshot writer" put snap 0 1 s
	seen end write cow 2 1000 || fail "the snapshot's write does not reach COW"
	start writer put origin 0 1 n
	stage 1
	not_written 0 1 "before the record was on COW"
	running writer
	let_cow_go
	follows writer 0 1
	finished "snapshot writer"
	shows snap 0 s
	shows origin 0 n
}

# A held copy holds back nothing but its own chunks.
test_writes_elsewhere_pass_while_a_copy_is_held() {
	setup P
	put origin 1 1 n
	# The record of block 1 is written; what follows is about block 0 only.
	hold_cow
	start writer put origin 0 1 n
	stage 1
	put origin 1 1 n
	shows snap 1 o
	running writer
	let_cow_go
	finished writer
	shows snap 0 oo
}

# A transient snapshot may let the origin write go as soon as the old data is in
# memory. Then reads of the snapshot must wait for COW: DEV has changed.
test_transient_read_while_the_copy_is_in_memory() {
	setup N
	hold_cow
	start writer put origin 0 1 n
	stage 1
	# Either is right; when the write passes, the read below must not go to DEV.
	seen end write dev 0 1 2 || say "the origin write waits for COW"
	start reader get snap 0 1
	seen end read dev 0 1 1 || true
	let_cow_go
	was_read reader o
	finished writer
	shows snap 0 o
	shows origin 0 n
}

# And a read that is out counts as ever.
test_transient_read_is_out_and_the_copy_in_memory() {
	setup N
	held_read reader snap 0 1
	hold_cow
	start writer put origin 0 1 n
	stage 1
	not_written 0 1
	running writer
	let_go reader
	was_read reader o
	seen end write dev 0 1 2 || say "the origin write waits for COW"
	start "later reader" get snap 0 1
	seen end read dev 0 1 1 || true
	let_cow_go
	follows writer 0 1 reader
	was_read "later reader" o
	shows origin 0 n
}

# The snapshot is lost with its copy, and the origin write goes on: at once, or
# after the read.  If it goes first, the read may fail, but not return new data.
test_failed_copy_with_a_read_out() {
	local rc
	on_c && skip "the C target returns the new data"
	setup P
	held_read reader snap 0 1
	hold_cow
	start writer put origin 0 1 n
	stage 1
	stall unhold
	stall fail "$STAGE"
	seen end write dev 0 1 2 || say "the origin write waits for the read"
	let_go reader
	read -r -t "$WAIT" -u "${ENDED[reader]}" rc || fail "the read does not end"
	((rc != 0)) || equal "$(<"$TMP/out.reader")" o "what the read was given"
	finished writer
	wait_for 45 status_is snap Invalid || fail "status: $(status snap)"
	shows origin 0 n
}

# An area must be zeroed before records come to it, or what was there before would be taken
# for some. That is done ahead; here it fails, and no other request does. An area of 256
# records is as many chunks apart from the next, and its own.
test_failed_zeroing_of_the_next_area() {
	on_c && skip "the C target does that only when the area is needed"
	setup P
	stall hold write cow $((258 * 4096)) 4096 1
	put origin 0 1 n
	stage 1
	stall fail "$STAGE"
	wait_for 45 status_is snap Invalid || fail "status: $(status snap)"
	shows origin 0 n
}

stall_tests "$@"
